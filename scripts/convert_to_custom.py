"""Write custom data (docs/custom_data.md) from what other tools make.

    python scripts/convert_to_custom.py masks --images DIR --masks DIR --classes "1=cat,2=dog" --out data.jsonl
    python scripts/convert_to_custom.py coco --annotations instances.json --images DIR --out data.jsonl
    python scripts/convert_to_custom.py labelme --annotations DIR --out data.jsonl

``<command> --help`` lists the flags. Questions and answers are worded from the class names.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from model.errors import InputError
from model.files import read_json
from model.values import Count, NonNegativeInt, ShareBelowOne
from utils.cli.args import Parsed, flag, settings
from utils.cli.command import run_commands
from utils.data.annotation_formats import NamedShapes, clean_name, read_coco, read_labelme, read_mask_folder
from utils.data.convert import Wording, check_target, write_records


@settings
class OutputConfig:
    """Flags of every command; a command's ``required`` ones have no default."""

    required: ClassVar[tuple[str, ...]] = ()
    out: str = flag("", "JSON-lines file to write")
    targets_per_question: Count = flag(3, "classes asked for in one question, at most")
    val_share: ShareBelowOne = flag(0.0, "part of the photos that goes to a second file, <out>_val.jsonl")
    seed: NonNegativeInt = flag(0, "wording and split follow from it")

    def __post_init__(self) -> None:
        for name in ("out", *self.required):
            if not getattr(self, name):
                raise InputError(f"--{name} is missing; `python scripts/convert_to_custom.py` shows the commands")


@settings
class MasksConfig(OutputConfig):
    """Photos in one folder, PNG masks in another."""

    required: ClassVar = ("images", "masks")
    images: str = flag("", "folder of photos")
    masks: str = flag("", "folder of <photo>.png (label values) or of folders <photo>/<object>.png")
    classes: str = flag("", 'names of the label values, \'1=cat,2=dog\', or a JSON file {"1": "cat"}')


@settings
class CocoConfig(OutputConfig):
    """A COCO instances file."""

    required: ClassVar = ("annotations", "images")
    annotations: str = flag("", "instances JSON")
    images: str = flag("", "folder of its photos")


@settings
class LabelmeConfig(OutputConfig):
    """A folder of labelme files."""

    required: ClassVar = ("annotations",)
    annotations: str = flag("", "folder of labelme JSON files")


def read_classes(text: str) -> dict[int, str]:
    """The value of ``--classes`` -> value of a label and its name."""
    try:
        if text.endswith(".json"):
            pairs = read_json(Path(text), remedy="check the path").items()
        else:
            pairs = [pair.split("=", 1) for pair in text.split(",") if pair]
        return {int(value): clean_name(name, where=f"value {value}") for value, name in pairs}
    except (AttributeError, ValueError) as err:
        raise InputError(f"--classes {text} cannot be read ({err}); expected '1=cat,2=dog' or a JSON file") from err


def write(photos: Iterable[NamedShapes], config: OutputConfig, *inputs: str) -> None:
    """Write what a reader gives; it has read nothing yet, because readers are generators."""
    check_target(Path(config.out), flag="--out", inputs=[Path(name) for name in inputs], val_share=config.val_share)
    write_records(photos, Path(config.out), Wording(config.targets_per_question, config.val_share, config.seed))


def convert_masks(parsed: Parsed[MasksConfig]) -> None:
    config = parsed.config
    photos = read_mask_folder(Path(config.images), Path(config.masks), read_classes(config.classes))
    write(photos, config, config.images, config.masks, config.classes)


def convert_coco(parsed: Parsed[CocoConfig]) -> None:
    config = parsed.config
    write(read_coco(Path(config.annotations), Path(config.images)), config, config.annotations, config.images)


def convert_labelme(parsed: Parsed[LabelmeConfig]) -> None:
    config = parsed.config
    write(read_labelme(Path(config.annotations)), config, config.annotations)


COMMANDS = {
    "masks": (MasksConfig, convert_masks),
    "coco": (CocoConfig, convert_coco),
    "labelme": (LabelmeConfig, convert_labelme),
}


def main(argv: Sequence[str] | None = None) -> int:
    return run_commands(COMMANDS, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
