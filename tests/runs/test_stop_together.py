"""What one process alone has met is told by that process, also from a block within a block; counts travel with it."""

from __future__ import annotations

import pytest

from tests.support.launch import NUM_PROCESSES

# A line is written in one piece, as both processes write to the same pipe.
PROGRAM = """
import sys
sys.path.insert(0, {repository!r})
from datetime import timedelta
from model.errors import InputError
from utils import dist

def tell(text):
    sys.stdout.write(f"<{{dist.rank()}} {{text}}>\\n")
    sys.stdout.flush()

def exchange(error, sums):
    try:
        with dist.stop_together(sums):
            with dist.stop_together():
                if error and dist.rank() == 1:
                    raise InputError("the reason")
            sums[:] = [number + dist.rank() for number in sums]
    except InputError as err:
        tell(f"{{type(err).__name__}}: {{err}}")

dist.join("gloo", timeout=timedelta(seconds=60))
sums = [10, 20]
exchange(False, sums)
tell(sums)
exchange(True, sums)
if dist.rank() == 0:
    dist.leave()
# The other one forgets to leave, which the end of the program does for it.
"""


@pytest.mark.skipif(NUM_PROCESSES < 2, reason="two processes or more")
def test_an_error_within_two_blocks_keeps_its_reason(repository, forks, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(repository=str(repository)), encoding="utf-8")
    finished = forks.python(program, processes=2)
    assert finished.code == 0, finished.text
    assert "<1 StoppedHere: the reason>" in finished.stdout
    assert "<0 StoppedByPeer: process 1 met bad input>" in finished.stdout
    assert all(f"<{rank} [21, 41]>" in finished.stdout for rank in range(2))
