"""Where the parts of a model lie: on one device or on several, and the vision tower aside while no image is read."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from .errors import InputError

logger = logging.getLogger(__name__)

BY_MEMORY = ("auto", "balanced", "balanced_low_0", "sequential")  # transformers looks at what is free
DeviceMap = str | int | torch.device | dict[str, Any]


def default_device() -> torch.device:
    """The first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main_device(device_map: DeviceMap) -> torch.device:
    """Where a model that is placed so computes, or the first of several such devices.

    Raises:
        InputError: if the map names no device.
    """
    if isinstance(device_map, dict):
        # Parts on the CPU or the disk are fetched to the GPU that is named beside them, and compute there.
        devices = [device for device in device_map.values() if str(device) not in ("cpu", "disk")]
        return main_device(devices[0] if devices else "cpu")
    if device_map in BY_MEMORY:
        return default_device()
    try:
        device = torch.device(device_map)
    except RuntimeError as err:
        raise InputError(
            f"device_map names {device_map!r}; expected a device such as cpu, cuda or cuda:1, or one of "
            f"{', '.join(BY_MEMORY)}"
        ) from err
    found = torch.cuda.device_count()
    if device.type == "cuda" and not 0 <= (device.index or 0) < found:
        raise InputError(f"device_map names {device_map}, but torch finds {found} CUDA GPUs here; name another device")
    return device


def keep_tower_aside(tower: nn.Module, device_map: DeviceMap) -> None:
    """Keep the tower of a model that was placed so on the CPU while no image is read.

    Raises:
        InputError: if the map divides the model; then it places the tower, too.
    """
    if device_map in BY_MEMORY or (isinstance(device_map, dict) and len(device_map) > 1):
        raise InputError(
            "offload_vision is for a model on one device; with a device_map of several, let the map place "
            'model.vision_tower, such as {"model.vision_tower": "cpu", ...}'
        )
    device = main_device(device_map)
    if device.type == "cpu":
        logger.warning("offload_vision has no effect: the whole model is on the CPU")
    else:
        keep_on_cpu(tower, device)


def keep_on_cpu(module: nn.Module, device: torch.device) -> None:
    """Keep a module on the CPU, and on its device only while it computes.

    Weights are copied there for each call and dropped behind it. Nothing is copied back, so they must not change.

    Args:
        device: where its inputs are.
    """
    module.to("cpu").requires_grad_(False)
    at_home = [
        (owner, name, tensor)
        for owner in module.modules()
        for name, tensor in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False))
    ]

    def fetch(*_: Any) -> None:
        for owner, name, tensor in at_home:
            copied = tensor.to(device, non_blocking=True)
            setattr(owner, name, nn.Parameter(copied, False) if isinstance(tensor, nn.Parameter) else copied)

    def drop(*_: Any) -> None:
        for owner, name, tensor in at_home:
            setattr(owner, name, tensor)

    module.register_forward_pre_hook(fetch)
    module.register_forward_hook(drop, always_call=True)
