"""What a committed table says about where it was measured, and what Linux says about memory."""

from __future__ import annotations

import datetime
import platform
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def describe_machine(packages: Sequence[str]) -> str:
    """Date, machine and versions of packages, in one paragraph."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = [f"{name} {metadata.version(name)}" for name in packages]
    threads = f"{torch.get_num_threads()} CPU thread(s)"
    facts = [datetime.date.today().isoformat(), platform.machine(), threads, gpu, f"Python {platform.python_version()}"]
    return ", ".join([*facts, *versions]) + "."


def kilobytes(file: Path, name: str) -> int:
    """A number that the kernel keeps of this process, as in ``STATUS``; proc(5)."""
    match = re.search(rf"^{name}:\s+(\d+) kB", file.read_text(), re.MULTILINE)
    assert match, f"{file} has no {name}"
    return int(match[1])
