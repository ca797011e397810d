"""Draw a small set of photos with the same masks in every format that scripts/convert_to_custom.py reads.

python scripts/make_custom_sample.py --out custom_sample

images/<n>.jpg           photos
masks/<n>.png            label values, 1 circle, 2 square, ...: classes.json has the names
objects/<n>/<name>.png   a PNG per object, such as red_circle_2.png
instances.json           COCO instances
labelme/<n>.json         labelme
handwritten.jsonl        custom data itself: one record for each kind of target
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from utils.cli.command import run_command
from utils.toy_world.custom_sample import CustomSampleConfig, make_sample


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(CustomSampleConfig, lambda parsed: make_sample(parsed.config), __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
