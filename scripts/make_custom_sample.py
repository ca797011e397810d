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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli.args import parse
from utils.cli.log import exit_code, setup_logging
from utils.toy_world.custom_sample import CustomSampleConfig, make_sample


def main(argv: Sequence[str]) -> int:
    setup_logging()
    return exit_code(lambda: make_sample(parse(CustomSampleConfig, argv, __doc__ or "").config))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
