"""Before the first update: does what training keeps fit into memory, activations apart?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from model.errors import InputError
from model.weights.quantization import bytes_of_scales
from utils import dist

from .deepspeed_config import offloads

logger = logging.getLogger(__name__)

_MOMENTS = 8  # AdamW's two, of each trained parameter, in float32; Muon's matrices have one
_MASTER = 4  # the weight itself in float32
_BUCKET = 500_000_000  # DeepSpeed's own reduce_bucket_size
_REMEDY = (
    "take --precision bf16, --load_in_4bit, ZeRO-3 or offload_optimizer in --deepspeed_config, or more devices, or "
    "train less: a smaller --lora_r, --no_train_mask_decoder"
)


@dataclass(frozen=True)
class MemoryNeed:
    """What one process keeps, in bytes.

    Attributes:
        device: by what it is for, on the device that computes.
        host: by what it is for, offloaded to the memory of the machine.
    """

    device: dict[str, int]
    host: dict[str, int]

    @classmethod
    def of(cls, network: nn.Module, settings: Mapping[str, Any], *, world_size: int, on_gpu: bool) -> MemoryNeed:
        """Estimate it, activations and what libraries take (about 0.5 GiB) apart.

        Args:
            network: in training precision, with ``requires_grad`` set on what is trained.
            settings: of DeepSpeed; ZeRO 1 divides master weights and moments by the number of processes, 2 gradients
                as well, 3 all weights, frozen ones too.
        """
        zero = settings.get("zero_optimization", {})
        stage = zero.get("stage", 0)
        parameters = list(network.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        num_trained = sum(parameter.numel() for parameter in trained)
        size = trained[0].element_size() if trained else 4

        def share(num_bytes: int, first_stage: int) -> int:
            return num_bytes // world_size if stage >= first_stage else num_bytes

        scales = sum(map(bytes_of_scales, network.modules()))
        weights = share(sum(parameter.numel() * parameter.element_size() for parameter in parameters) + scales, 3)
        gradients = share(num_trained * size, 2)
        # Without ZeRO, AdamW updates float32 weights themselves.
        master = share(num_trained * _MASTER, 1) if stage or size < 4 else 0
        moments = share(num_trained * _MOMENTS, 1)
        device = {"weights": weights, "gradients": gradients, "master weights": master, "moments": moments}
        host = {}
        if offloads(zero, "optimizer"):
            host = {name: device.pop(name) for name in ("master weights", "moments")}
            host["gradients"] = share(num_trained * _MASTER, 1)
        if offloads(zero, "param"):
            host["weights"] = device.pop("weights")
        if stage:
            bucket = zero.get("reduce_bucket_size", _BUCKET)
            # A GPU reserves it whole; of the CPU's, only what is written to takes memory.
            bucket = bucket if on_gpu and isinstance(bucket, int) else min(num_trained, _BUCKET)
            device["buffers"] = bucket * size * (2 if zero.get("overlap_comm") else 1)
        # What lies on NVMe takes no memory.
        kept = {name: place for name, place in host.items() if not _is_nvme(zero, name)}
        return cls(device, kept)


def _is_nvme(zero: Mapping[str, Any], kept: str) -> bool:
    key = "offload_param" if kept == "weights" else "offload_optimizer"
    return (zero.get(key) or {}).get("device") == "nvme"


def check_memory(network: nn.Module, settings: Mapping[str, Any], device: torch.device) -> int:
    """Say how much memory this run takes before activations.

    Returns:
        what is left for the activations of this process, in bytes.
    Raises:
        InputError: if that is more than there is.
    """
    on_gpu = device.type == "cuda"
    need = MemoryNeed.of(network, settings, world_size=dist.world_size(), on_gpu=on_gpu)
    num_local = dist.local_world_size()
    host = sum(need.host.values()) * num_local
    if on_gpu:
        free, _ = torch.cuda.mem_get_info(device)
        has = free + torch.cuda.memory_reserved(device)  # of this process, which holds the weights by now
        left = _hold(f"{device}", need.device, sum(need.device.values()), has)
    else:
        host += sum(need.device.values()) * num_local
        left = 0
    if host:
        parts = need.host if on_gpu else need.device | {f"offloaded {name}": size for name, size in need.host.items()}
        where = f"this machine for {num_local} processes" if num_local > 1 else "this machine"
        left_on_host = _hold(where, parts, host, _host_memory(num_local))
        left = left if on_gpu else left_on_host // num_local
    return left


def _hold(where: str, parts: Mapping[str, int], needed: int, has: int) -> int:
    """Returns what is left."""
    listed = ", ".join(f"{name} {readable(size)}" for name, size in parts.items())
    logger.info(
        "memory before activations, on %s: %s of %s (of a process: %s)",
        where,
        readable(needed),
        readable(has),
        listed,
    )
    if needed > has:
        raise InputError(
            f"training takes {readable(needed)} of memory on {where} before activations, but there is "
            f"{readable(has)} (of a process: {listed}); {_REMEDY}"
        )
    return has - needed


def readable(size: int) -> str:
    """A number of bytes, in MiB or GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def _host_memory(num_local: int) -> int:
    """What the training processes of this machine may hold together: what they hold, and what is free."""
    free = psutil.virtual_memory().available + num_local * psutil.Process().memory_info().rss
    limit = _cgroup_limit()
    return min(free, limit) if limit else free


def _cgroup_limit() -> int | None:
    """Of the container or the job, if it has one; cgroups(7)."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" or "memory" in controllers.split(","):
                folder, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
                # A container sees its own group at the top.
                for file in (Path(f"/sys/fs/cgroup/{folder}{path}", name), Path("/sys/fs/cgroup", folder, name)):
                    with suppress(OSError, ValueError):  # "max" is no number
                        return int(file.read_text(encoding="ascii"))
    return None
