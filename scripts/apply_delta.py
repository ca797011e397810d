"""Make a LLaVA base from the original LLaMA and a published delta.

    python scripts/apply_delta.py --base LLAMA --delta liuhaotian/LLaVA-Lightning-7B-delta-v1-1 --out llava-7b

It needs room on the disk for one more copy of the model, and a few GB of memory whatever the model's size.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from model.errors import InputError
from utils.cli.args import Parsed, flag, settings
from utils.cli.command import run_command


@settings
class DeltaConfig:
    """Flags of this script."""

    base: str = flag("", "the original LLaMA, in Hugging Face's layout: folder or hub id")
    delta: str = flag("", "the delta that was made from it: folder or hub id")
    out: str = flag("", "folder to make")

    def __post_init__(self) -> None:
        for name in ("base", "delta", "out"):
            if not getattr(self, name):
                raise InputError(f"--{name} is missing; --base, --delta and --out are all needed")


def make_base(parsed: Parsed[DeltaConfig]) -> None:
    """Find both folders, and write their sum."""
    from model.hub import resolve_folder
    from model.weights.delta import apply_delta

    config = parsed.config
    base, delta = resolve_folder(config.base, flag="--base"), resolve_folder(config.delta, flag="--delta")
    apply_delta(base, delta, Path(config.out).expanduser())
    print(f"{config.out} holds the sum; give it as --version")


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(DeltaConfig, make_base, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
