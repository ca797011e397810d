"""``--precision auto`` of a merge is the precision of the run; where nothing describes the run, that of the machine."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from utils.cli.config import MergeConfig, RunConfig
from utils.training.merge import saved_precision
from utils.training.run_description import RunDescription


@pytest.mark.parametrize("recorded", ["bf16", "fp16", "fp32"])
def test_a_merge_keeps_the_precision_of_the_run(tmp_path, recorded):
    RunDescription(tmp_path).write_flags(RunConfig(precision=recorded))
    flags = MergeConfig(weight=str(tmp_path / "pytorch_model.bin"), precision="auto")
    assert saved_precision(flags) == recorded
    assert saved_precision(dataclasses.replace(flags, precision="bf16")) == "bf16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
def test_without_a_description_the_machine_decides(tmp_path):
    assert saved_precision(MergeConfig(weight=str(tmp_path / "pytorch_model.bin"), precision="auto")) == "fp32"
