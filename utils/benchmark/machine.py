"""What a committed table says about where it was measured."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from importlib import metadata

import torch


def describe_machine(packages: Sequence[str]) -> str:
    """Date, machine and versions of packages, in one paragraph."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = [f"{name} {metadata.version(name)}" for name in packages]
    threads = f"{torch.get_num_threads()} CPU thread(s)"
    facts = [datetime.date.today().isoformat(), platform.machine(), threads, gpu, f"Python {platform.python_version()}"]
    return ", ".join([*facts, *versions]) + "."
