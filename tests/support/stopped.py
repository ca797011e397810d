"""A run that ends between two batches, as if it were killed there."""

from __future__ import annotations

from types import ModuleType

import pytest


class Killed(BaseException):
    """What ends a run at once."""


def stop_after(batches: int, monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """Let the run end when it would write the lines of the next batch.

    Args:
        module: that calls ``append`` for each batch.
    """
    append, count = module.append, 0

    def write(*arguments, **named):
        nonlocal count
        if count == batches:
            raise Killed
        count += 1
        append(*arguments, **named)

    monkeypatch.setattr(module, "append", write)
