"""Seconds by part, the highest use of memory, and how fast this machine multiplies matrices."""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .machine import STATUS, kilobytes


class Clock:
    """Seconds of the processor, where other load does not count, or of the wall.

    Args:
        wall: always so beside a GPU; where processes wait for one another it has to be.
    """

    def __init__(self, device: torch.device, *, wall: bool) -> None:
        self._device = device
        self.wall = wall or device.type == "cuda"
        self.parts: dict[str, float] = {}

    def now(self) -> float:
        """Once everything that was started on the device has ended."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() if self.wall else time.process_time()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add what happens inside to a part; the innermost counts."""
        started, before = self.now(), sum(self.parts.values())
        yield
        inside = sum(self.parts.values()) - before
        self.parts[name] = self.parts.get(name, 0.0) + self.now() - started - inside

    def watch(self, owner: Any, method: str, part: str) -> Callable[[], None]:
        """Add every call of a method to a part; returns what ends it."""
        own = vars(owner).get(method)
        call: Callable[..., Any] = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.part(part):
                return call(*arguments, **options)

        setattr(owner, method, timed)
        return partial(delattr, owner, method) if own is None else partial(setattr, owner, method, own)

    def matmul_flops(self, dtype: torch.dtype, *, repeats: int = 5) -> float:
        """FLOPs per second of a product of two square matrices, the median of some after one to warm up."""
        side = 8192 if self._device.type == "cuda" else 1024
        left, right = (torch.randn(side, side, device=self._device, dtype=dtype) for _ in range(2))
        seconds = []
        for _ in range(1 + repeats):
            started = self.now()
            torch.matmul(left, right)
            seconds.append(self.now() - started)
        return 2 * side**3 / statistics.median(seconds[1:])


def reset_peak(device: torch.device) -> int:
    """Forget the highest use of memory so far; returns the present one, in bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system, else it counts as held
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): the peak becomes the present use
    return _bytes("VmRSS")


def peak(device: torch.device) -> int:
    """The highest use of memory since ``reset_peak``, in bytes."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _bytes("VmHWM")


def _bytes(name: str) -> int:
    """Of ``STATUS``; 0 where there is no such file."""
    with contextlib.suppress(OSError):
        return 1024 * kilobytes(STATUS, name)
    return 0
