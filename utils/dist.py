"""The process group: who am I, and small collectives that also work in a single process."""

from __future__ import annotations

import os

import torch
import torch.distributed


def rank() -> int:
    """This process's number among all, known before any process group exists."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    return rank() == 0


def set_single_process_environment() -> None:
    """Let one plain ``python`` process stand for a launcher's group of one."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all processes, in place."""
    if torch.distributed.is_initialized() and world_size() > 1:
        torch.distributed.all_reduce(values)
    return values


def barrier() -> None:
    if torch.distributed.is_initialized() and world_size() > 1:
        torch.distributed.barrier()
