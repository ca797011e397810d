"""What one process alone has met is told by that process, also from a block within a block."""

from __future__ import annotations

import pytest

from tests.support.launch import NUM_PROCESSES, run

PROGRAM = """
import sys
sys.path.insert(0, {repository!r})
from datetime import timedelta
from model.errors import InputError
from utils import dist

dist.join("gloo", timeout=timedelta(seconds=60))
try:
    with dist.stop_together():
        with dist.stop_together():
            if dist.rank() == 1:
                raise InputError("the reason")
except InputError as err:
    print(f"{{dist.rank()}} {{type(err).__name__}}: {{err}}", flush=True)
"""


@pytest.mark.skipif(NUM_PROCESSES < 2, reason="two processes or more")
def test_an_error_within_two_blocks_keeps_its_reason(repository, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(repository=str(repository)), encoding="utf-8")
    finished = run(["torchrun", "--standalone", "--nproc_per_node=2", program], cwd=tmp_path)
    assert finished.code == 0, finished.text
    assert "1 StoppedHere: the reason" in finished.stdout
    assert "0 StoppedByPeer: process 1 met bad input" in finished.stdout
