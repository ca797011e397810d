"""Draw the toy world: a small --dataset_dir, and base weights that know what is in it.

    python scripts/make_toy_world.py --out toy_world

The result is a function of the flags. A finished world is left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from model.errors import InputError
from model.values import Count, InputSide, NonNegativeInt
from utils.cli.args import Parsed, flag, settings
from utils.cli.command import run_command


@settings
class ToyWorldConfig:
    """Flags of this script."""

    out: str = flag("", "folder to make; it gets dataset/, llava-toy/, clip-toy/ and world.json")
    seed: NonNegativeInt = flag(0, "every picture and question follows from it; with --pretrain, the base weights too")
    num_train: Count = flag(3000, "MUSE training pictures; a sixth as many are drawn for RefCOCO")
    num_val: Count = flag(60, "MUSE validation pictures")
    num_test: Count = flag(40, "pictures of each of the two MUSE test sets")
    image_size: InputSide = flag(168, "input side of the CLIP tower in pixels, a multiple of 14")
    skip_base_weights: bool = flag(False, "write the dataset only")
    pretrain: bool = flag(False, "train base weights anew, in 40 minutes, instead of unpacking the kept ones")

    def __post_init__(self) -> None:
        if not self.out:
            raise InputError("--out is missing; give the folder to make, such as --out toy_world")
        if self.image_size < 14 or self.image_size % 14:
            raise InputError(f"--image_size is {self.image_size}; expected a multiple of 14, such as 168")
        if self.skip_base_weights and self.pretrain:
            raise InputError("--skip_base_weights and --pretrain contradict each other; give one of them")


def draw(parsed: Parsed[ToyWorldConfig]) -> None:
    """Draw the world into its folder."""
    from utils.toy_world.world import WorldSettings, make_world

    values = asdict(parsed.config)
    make_world(Path(values.pop("out")), WorldSettings(**values))


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(ToyWorldConfig, draw, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
