"""Memory that runs out ends a run in one line that says which flags take less."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.errors import InputError
from utils import dist
from utils.cli.config import RunConfig
from utils.training.out_of_memory import advice_for, describe, is_out_of_memory, memory_told

CUDA = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.25 GiB is free."
    " Of the allocated memory 76.00 GiB is allocated by PyTorch, and 0.50 GiB is reserved but unallocated."
)
LEAST = RunConfig(batch_size=1, activation_checkpointing="always", precision="bf16")


def real_failure_of_the_cpu() -> RuntimeError:
    """What the allocator raises for 4 PB."""
    try:
        torch.empty(10**15)
    except RuntimeError as err:
        return err
    raise AssertionError("there are 4 PB of memory")


def told(error: BaseException, *, run: RunConfig = LEAST) -> str:
    with (
        pytest.raises(InputError) as raised,
        memory_told("update", run, torch.device("cpu"), update=3, whereabouts=lambda: "It goes on from here"),
    ):
        raise error
    assert isinstance(raised.value, dist.StoppedHere), "the only process speaks"
    return str(raised.value)


def test_what_was_asked_for_is_told_for_cpu_and_cuda():
    assert describe(CUDA) == "2.50 GiB more were asked for, 1.25 GiB are free"
    assert describe(real_failure_of_the_cpu()) == "3725290.30 GiB more were asked for"
    assert describe(MemoryError()) == "MemoryError"
    assert describe(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when\nmore")).endswith("ALLOC_FAILED when")


def test_other_errors_keep_their_traceback():
    assert is_out_of_memory(real_failure_of_the_cpu())
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        told(RuntimeError("shapes do not fit"))


def test_the_line_says_where_how_much_and_how_it_goes_on():
    line = told(CUDA)
    assert line.startswith("out of memory in update 3, on cpu (2.50 GiB more were asked for, 1.25 GiB are free); give ")
    assert line.endswith(". It goes on from here")


@pytest.mark.parametrize(
    ("size", "passes", "advised"), [(2, 10, (1, 20)), (12, 1, (6, 2)), (9, 2, (3, 6)), (7, 1, (1, 7))]
)
def test_a_smaller_batch_keeps_the_images_of_an_update(size, passes, advised):
    run = replace(LEAST, batch_size=size, grad_accumulation_steps=passes)
    smaller, more = advised
    assert smaller * more == size * passes
    flags = f"--batch_size={smaller} --grad_accumulation_steps={more}"
    assert f"give {flags}, which keeps the update the same;" in advice_for(run, "update", on_gpu=True)
    local = advice_for(replace(run, loss_normalization="local"), "update", on_gpu=True)
    assert f"give {flags};" in local, "the mean of means is another one"


def test_what_is_done_already_is_not_advised(tmp_path):
    heavy = RunConfig(batch_size=2, gradient_checkpointing=False, precision="fp32", val_batch_size=4)
    for flags in ("--batch_size=1", "--activation_checkpointing=always", "--precision=bf16", "offload_optimizer"):
        assert flags in advice_for(heavy, "update", on_gpu=True)
        assert flags not in advice_for(offloaded(tmp_path), "update", on_gpu=True)
    assert "--batch_size" not in advice_for(heavy, "validation", on_gpu=True)
    assert "--val_batch_size=1" in advice_for(heavy, "validation", on_gpu=True)
    assert "offload_optimizer" not in advice_for(heavy, "update", on_gpu=False), "it is the same memory"
    assert "offload" not in advice_for(replace(heavy, optimizer="muon"), "update", on_gpu=True), "it is refused"


def offloaded(folder: Path) -> RunConfig:
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    (folder / "zero.json").write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
    return replace(LEAST, deepspeed_config=str(folder / "zero.json"))


@pytest.mark.parametrize(("stage", "advised"), [(2, True), (3, False)])
def test_more_division_is_advised_where_there_is_something_to_divide(tmp_path, monkeypatch, stage, advised):
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}), encoding="utf-8")
    run = replace(LEAST, deepspeed_config=str(tmp_path / "zero.json"))
    assert "ZeRO-3" not in advice_for(run, "update", on_gpu=True), "one process has all of it"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ("ZeRO-3" in advice_for(run, "update", on_gpu=True)) == advised
