"""A checkpoint is the same whatever ZeRO stage and number of processes wrote it, or read it."""

from __future__ import annotations

import pytest

from tests.support.launch import NUM_PROCESSES, deepspeed, python


@pytest.mark.long
@pytest.mark.skipif(NUM_PROCESSES < 2, reason="two processes or more")
def test_every_stage_optimizer_and_precision_goes_on_bit_for_bit_and_reads_the_others(repository, tmp_path):
    """Masters and moments that lie in the parts of several processes, paddings, persistent weights, loss scales."""
    program = ("tests.support.shard_stages", "write", tmp_path)
    finished = deepspeed("--module", *program, cwd=repository)
    assert finished.code == 0, finished.text
    assert "passed: write" in finished.text
    finished = python("-m", "tests.support.shard_stages", "read", tmp_path, cwd=repository)
    assert finished.code == 0, finished.text
    assert "passed: read" in finished.text
