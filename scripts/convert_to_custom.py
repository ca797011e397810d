"""Write custom data (docs/custom_data.md) from what other tools make.

    python scripts/convert_to_custom.py masks --images DIR --masks DIR --classes "1=cat,2=dog" --out data.jsonl
    python scripts/convert_to_custom.py coco --annotations instances.json --images DIR --out data.jsonl
    python scripts/convert_to_custom.py labelme --annotations DIR --out data.jsonl

``<command> --help`` lists the flags. Questions and answers are worded from the class names; ``--templates FILE`` has
them in words of your own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from utils.cli.args import Parsed
from utils.cli.command import run_commands
from utils.data.flags import CocoConfig, LabelmeConfig, MasksConfig


def convert_masks(parsed: Parsed[MasksConfig]) -> None:
    """Label maps, or a mask per object."""
    from utils.data.annotation_formats import read_classes, read_mask_folder
    from utils.data.convert import convert

    config = parsed.config
    photos = read_mask_folder(Path(config.images), Path(config.masks), read_classes(config.classes))
    convert(photos, config, inputs=[config.images, config.masks, config.classes])


def convert_coco(parsed: Parsed[CocoConfig]) -> None:
    from utils.data.annotation_formats import read_coco
    from utils.data.convert import convert

    config = parsed.config
    photos = read_coco(Path(config.annotations), Path(config.images))
    convert(photos, config, inputs=[config.annotations, config.images])


def convert_labelme(parsed: Parsed[LabelmeConfig]) -> None:
    from utils.data.annotation_formats import read_labelme
    from utils.data.convert import convert

    config = parsed.config
    convert(read_labelme(Path(config.annotations)), config, inputs=[config.annotations])


COMMANDS = {
    "masks": (MasksConfig, convert_masks),
    "coco": (CocoConfig, convert_coco),
    "labelme": (LabelmeConfig, convert_labelme),
}


def main(argv: Sequence[str] | None = None) -> int:
    return run_commands(COMMANDS, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
