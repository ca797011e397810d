"""Three kills of tests/kills/run.py, one at each moment; in full: ``python -m tests.kills.run --kills 100``."""

from __future__ import annotations

import pytest

from tests.support.launch import NUM_PROCESSES

from .run import kill_many

pytestmark = pytest.mark.slow


@pytest.mark.skipif(NUM_PROCESSES < 2, reason="two processes or more")
def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(tmp_path):
    tally = kill_many(tmp_path, kills=3, seed=18, launchers=["torchrun"])
    assert sum(tally.kills.values()) == 3
