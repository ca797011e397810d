"""What training keeps in memory, by hand, and the refusal of what cannot fit."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from model.errors import InputError
from utils.training import memory
from utils.training.memory import MemoryNeed, check_memory

TRAINED, ALL = 110, 330
GIB = 2**30


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    """110 trained numbers, and 220 frozen ones."""
    layers = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 20)).to(dtype)
    layers[1].requires_grad_(False)
    return layers


def need(stage: int, dtype: torch.dtype = torch.float32, *, on_gpu: bool = False, **zero: Any) -> MemoryNeed:
    """Of one of two processes."""
    settings = {"zero_optimization": {"stage": stage, **zero}} if stage else {}
    return MemoryNeed.of(network(dtype), settings, world_size=2, on_gpu=on_gpu)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (0, {"weights": 4 * ALL, "gradients": 4 * TRAINED, "master weights": 0, "moments": 8 * TRAINED}),
        (1, {"weights": 4 * ALL, "gradients": 4 * TRAINED, "master weights": 2 * TRAINED, "moments": 4 * TRAINED}),
        (2, {"weights": 4 * ALL, "gradients": 2 * TRAINED, "master weights": 2 * TRAINED, "moments": 4 * TRAINED}),
        (3, {"weights": 2 * ALL, "gradients": 2 * TRAINED, "master weights": 2 * TRAINED, "moments": 4 * TRAINED}),
    ],
)
def test_each_zero_stage_divides_more_between_two_processes(stage, expected):
    buffers = {"buffers": 4 * TRAINED} if stage else {}
    assert need(stage) == MemoryNeed(expected | buffers, host={})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_float32_weights_beside_its_own(dtype):
    kept = {"weights": 2 * ALL, "gradients": 2 * TRAINED, "master weights": 4 * TRAINED, "moments": 8 * TRAINED}
    assert need(0, dtype).device == kept


@pytest.mark.parametrize("zero", [{"offload_optimizer": {"device": "cpu"}}, {"cpu_offload": True}])
def test_an_offloaded_optimizer_takes_memory_of_the_machine(zero):
    found = need(2, torch.bfloat16, **zero)
    assert found.device == {"weights": 2 * ALL, "gradients": TRAINED, "buffers": 2 * TRAINED}
    assert found.host == {"master weights": 2 * TRAINED, "moments": 4 * TRAINED, "gradients": 2 * TRAINED}


def test_offloaded_weights_take_memory_of_the_machine_and_nvme_takes_none():
    nvme, cpu = {"device": "nvme"}, {"device": "cpu"}
    found = need(3, torch.bfloat16, offload_optimizer=nvme, offload_param=cpu)
    assert found.device == {"gradients": TRAINED, "buffers": 2 * TRAINED}
    assert found.host == {"weights": ALL}


def test_a_gpu_reserves_whole_buffers():
    assert need(2, on_gpu=True, reduce_bucket_size=1000).device["buffers"] == 4000
    assert need(2, on_gpu=True, reduce_bucket_size=1000, overlap_comm=True).device["buffers"] == 8000
    assert need(2, on_gpu=True).device["buffers"] == 4 * 500_000_000
    assert need(2, on_gpu=True, reduce_bucket_size="auto").device["buffers"] == 4 * TRAINED


def test_what_fits_is_told_in_one_line(caplog, monkeypatch):
    monkeypatch.setattr(memory, "_host_memory", lambda num_local: GIB)
    with caplog.at_level(logging.INFO):
        left = check_memory(network(), {}, torch.device("cpu"))
    assert left == GIB - 4 * ALL - 12 * TRAINED, "for activations"
    (message,) = caplog.messages
    assert message.startswith("memory before activations, on this machine: 0.0 MiB of 1.00 GiB (of a process: weights ")


def test_what_cannot_fit_is_refused_with_both_numbers_and_the_flags_that_help(monkeypatch):
    monkeypatch.setattr(memory, "_host_memory", lambda num_local: 2**20)
    large = nn.Linear(1000, 1000)  # 1,001,000 numbers: 3.82 MiB of weights, as much of gradients, and 7.64 of moments
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError) as refused:
        check_memory(large, {}, torch.device("cpu"))
    assert str(refused.value) == (
        "training takes 30.5 MiB of memory on this machine for 2 processes before activations, but there is 1.0 MiB "
        "(of a process: weights 3.8 MiB, gradients 3.8 MiB, master weights 0.0 MiB, moments 7.6 MiB); take --precision "
        "bf16, --load_in_4bit, ZeRO-3 or offload_optimizer in --deepspeed_config, or more devices, or train less: a "
        "smaller --lora_r, --no_train_mask_decoder"
    )


def test_a_gpu_has_what_is_free_and_what_this_process_has_taken(monkeypatch):
    """There is no GPU here: its answers stand for it."""
    free, taken = 10 * 2**20, 5 * 2**20
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: taken)
    needs = 4 * 4 * 1_001_000  # bytes: 15.3 MiB
    assert free + taken < needs < free + 2 * taken
    with pytest.raises(InputError, match=r"takes 15\.3 MiB of memory on cuda:0 before .* there is 15\.0 MiB"):
        check_memory(nn.Linear(1000, 1000), {}, torch.device("cuda", 0))
    taken *= 2
    assert check_memory(nn.Linear(1000, 1000), {}, torch.device("cuda", 0)) == free + taken - needs


def test_what_is_offloaded_is_held_to_the_machine_and_not_to_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(memory, "_host_memory", lambda num_local: 2**20)
    settings = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    with pytest.raises(InputError, match="on this machine before activations"):
        check_memory(nn.Linear(1000, 1000), settings, torch.device("cuda", 0))


def test_a_limit_of_the_job_counts_where_it_is_below_what_is_free(monkeypatch):
    monkeypatch.setattr(memory, "_cgroup_limit", lambda: None)
    free = memory._host_memory(1)
    assert free > 2**20
    monkeypatch.setattr(memory, "_cgroup_limit", lambda: 2**20)
    assert memory._host_memory(1) == 2**20
    monkeypatch.setattr(memory, "_cgroup_limit", lambda: 2**60)
    assert memory._host_memory(1) < 2**60
