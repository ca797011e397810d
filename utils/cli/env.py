"""What to paste into a bug report: ``python -m utils.cli.env`` prints code, machine and library versions.

Nothing that names a person or a place is printed: no host, user, path or token.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from utils import dist

from .args import Parsed, settings
from .command import run_command

_ROOT = Path(__file__).resolve().parents[2]
_LIBRARIES = (
    "transformers",
    "deepspeed",
    "peft",
    "accelerate",
    "safetensors",
    "sentencepiece",
    "numpy",
    "opencv-python-headless",
    "opencv-python",  # must not stand beside the headless one
    "pycocotools",
    "pillow",
    "gradio",
    "openai",
    "flash-attn",
    "bitsandbytes",
)
_GIB = 1024**3


@settings
class NoFlags:
    """There are none."""


def print_facts(parsed: Parsed[NoFlags]) -> None:
    """One ``name: value`` line per fact."""
    del parsed
    rows = [*_code(), *_machine(), *_gpus(), *_libraries()]
    width = max(len(name) for name, _ in rows) + 1
    for name, value in rows:
        print(f"{name + ':':<{width}} {value}")


def _code() -> list[tuple[str, str]]:
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain")
    if commit is None or changes is None:
        state = "no checkout"
    else:
        state = f"{commit[:12]}, {'with local changes' if changes else 'no local changes'}"
    return [("pixellm", _version("pixellm")), ("commit", state)]


def _git(*arguments: str) -> str | None:
    """What git says about this code; None without git, or where the code is no checkout of its own."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _machine() -> list[tuple[str, str]]:
    return [
        ("python", platform.python_version()),
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}, {'-'.join(platform.libc_ver())}"),
        ("cpus", f"{_usable_cpus()} usable of {os.cpu_count()}"),
        ("memory", _memory()),
        ("free disk", f"{shutil.disk_usage('.').free / _GIB:.1f} GiB in the working directory"),
        ("processes", f"{dist.world_size()} of the launcher, {dist.local_world_size()} on this machine"),
    ]


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (page * os.sysconf(name) / _GIB for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return "unknown"
    return f"{total:.1f} GiB, {free:.1f} GiB free"


def _gpus() -> list[tuple[str, str]]:
    """Torch's version with the CUDA it was built for, the driver, and a line per GPU."""
    import torch

    rows = [("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}")]
    if not torch.cuda.is_available():
        return [*rows, ("gpus", "none")]
    rows += [("gpus", str(torch.cuda.device_count())), ("driver", _driver())]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        rows.append((f"gpu {index}", f"{gpu.name}, {gpu.total_memory / _GIB:.1f} GiB"))
    return rows


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return ", ".join(sorted(set(done.stdout.split()))) or "unknown"


def _libraries() -> list[tuple[str, str]]:
    return [(name, _version(name)) for name in _LIBRARIES]


def _version(distribution: str) -> str:
    """From the metadata of the installed package: heavy libraries are not imported."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(NoFlags, print_facts, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
