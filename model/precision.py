"""What ``--precision auto`` means on the devices at hand."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from .values import Precision

logger = logging.getLogger(__name__)

Picked = tuple[Precision, str]  # and why
# A device computes in its own precision and in those before it, as far as GPUs go.
_WEAKEST_FIRST: tuple[Precision, ...] = ("fp32", "fp16", "bf16")


def settle_precision(
    wanted: str,
    device: str | torch.device,
    *,
    bits: int = 16,
    agree: Callable[[Picked], list[Picked]] = lambda picked: [picked],
) -> Precision:
    """The precision to compute in: what is wanted, or with ``auto`` what the device is made for, said in one line.

    Args:
        wanted: fp32, bf16, fp16 or auto.
        device: of this process.
        bits: of the language model's weights; fewer than 16 leave the rest in 16 bits, on a CPU too.
        agree: gives what all processes that compute together have picked; the weakest of them decides.
    """
    if wanted != "auto":
        return _known(wanted)
    picked = agree(pick_precision(torch.device(device), bits=bits))
    precision, why = min(picked, key=lambda one: _WEAKEST_FIRST.index(one[0]))
    logger.info("--precision auto: %s, because %s", precision, why)
    return precision


def pick_precision(device: torch.device, *, bits: int = 16) -> Picked:
    """bf16 on a GPU that computes in it, fp16 on an older one, fp32 elsewhere; and the reason."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            name = torch.cuda.get_device_name()
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return "bf16", f"{name} computes in bf16"
        return "fp16", f"{name} does not compute in bf16"
    if bits < 16:
        return "bf16", f"a {bits}-bit language model keeps the rest in 16 bits"
    return "fp32", "a CPU is slower in 16 bits"


def _known(name: str) -> Precision:
    for precision in _WEAKEST_FIRST:
        if name == precision:
            return precision
    raise ValueError(f"precision is {name!r}; expected one of {', '.join(_WEAKEST_FIRST)} or auto")
