"""Draw a small set of photos with the same masks in every format that scripts/convert_to_custom.py reads.

python scripts/make_custom_sample.py --out custom_sample

images/<n>.jpg           photos
masks/<n>.png            label values, 1 circle, 2 square, ...: classes.json has the names
objects/<n>/<name>.png   a PNG per object, such as red_circle_2.png
instances.json           COCO instances
labelme/<n>.json         labelme
templates.json           questions and answers of one's own, for --templates of the converters
handwritten.jsonl        custom data itself: one record for each kind of target
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from model.errors import InputError
from model.values import Count, NonNegativeInt
from utils.cli.args import Parsed, flag, settings
from utils.cli.command import run_command


@settings
class CustomSampleConfig:
    """Flags of this script."""

    out: str = flag("", "folder to make")
    num: Count = flag(40, "photos")
    seed: NonNegativeInt = flag(0, "every photo follows from it")

    def __post_init__(self) -> None:
        if not self.out:
            raise InputError("--out is missing; give the folder to make, such as --out custom_sample")


def draw(parsed: Parsed[CustomSampleConfig]) -> None:
    """Draw the photos, and write their masks in every format."""
    from utils.toy_world.custom_sample import make_sample

    config = parsed.config
    make_sample(config.out, num=config.num, seed=config.seed)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(CustomSampleConfig, draw, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
