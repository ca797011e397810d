"""Write custom data (docs/custom_data.md) from what other tools make.

    python scripts/convert_to_custom.py masks --images DIR --masks DIR --classes "1=cat,2=dog" --out data.jsonl
    python scripts/convert_to_custom.py coco --annotations instances.json --images DIR --out data.jsonl
    python scripts/convert_to_custom.py labelme --annotations DIR --out data.jsonl

``<command> --help`` lists the flags. Questions and answers are worded from the class names.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.errors import InputError
from utils.cli.args import flag, parse_command
from utils.cli.log import exit_code, setup_logging
from utils.data.convert import Wording, clean_name, read_coco, read_labelme, read_mask_folder, write_records


@dataclass(frozen=True)
class OutputConfig:
    """Flags of every command; a command's ``required`` ones have no default."""

    required = ()
    out: str = flag("", "JSON-lines file to write")
    targets_per_question: int = flag(3, "classes asked for in one question, at most")
    val_share: float = flag(0.0, "part of the photos that goes to a second file, <out>_val.jsonl")
    seed: int = flag(0, "wording and split follow from it")

    def __post_init__(self) -> None:
        for name in ("out", *self.required):
            if not getattr(self, name):
                raise InputError(f"--{name} is missing; `python scripts/convert_to_custom.py` shows the commands")
        if self.targets_per_question < 1:
            raise InputError(f"--targets_per_question is {self.targets_per_question}; expected 1 or more")
        if not 0 <= self.val_share < 1:
            raise InputError(f"--val_share is {self.val_share}; expected 0 or more, below 1")
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}; expected 0 or more")


@dataclass(frozen=True)
class MasksConfig(OutputConfig):
    """Photos in one folder, PNG masks in another."""

    required = ("images", "masks")
    images: str = flag("", "folder of photos")
    masks: str = flag("", "folder of <photo>.png (label values) or of folders <photo>/<object>.png")
    classes: str = flag("", 'names of the label values, \'1=cat,2=dog\', or a JSON file {"1": "cat"}')


@dataclass(frozen=True)
class CocoConfig(OutputConfig):
    """A COCO instances file."""

    required = ("annotations", "images")
    annotations: str = flag("", "instances JSON")
    images: str = flag("", "folder of its photos")


@dataclass(frozen=True)
class LabelmeConfig(OutputConfig):
    """A folder of labelme files."""

    required = ("annotations",)
    annotations: str = flag("", "folder of labelme JSON files")


COMMANDS = {"masks": MasksConfig, "coco": CocoConfig, "labelme": LabelmeConfig}


def read_classes(text: str) -> dict[int, str]:
    """The value of ``--classes`` -> value of a label and its name."""
    try:
        if text.endswith(".json"):
            pairs = json.loads(Path(text).read_text(encoding="utf-8")).items()
        else:
            pairs = [pair.split("=", 1) for pair in text.split(",") if pair]
        return {int(value): clean_name(name) for value, name in pairs}
    except (AttributeError, OSError, ValueError) as err:
        raise InputError(f"--classes {text} cannot be read ({err}); expected '1=cat,2=dog' or a JSON file") from err


def convert(argv: Sequence[str]) -> None:
    command, config = parse_command(COMMANDS, argv, __doc__)
    if command == "masks":
        photos = read_mask_folder(Path(config.images), Path(config.masks), read_classes(config.classes))
    elif command == "coco":
        photos = read_coco(Path(config.annotations), Path(config.images))
    else:
        photos = read_labelme(Path(config.annotations))
    write_records(photos, Path(config.out), Wording(config.targets_per_question, config.val_share, config.seed))


def main(argv: Sequence[str]) -> int:
    setup_logging()
    return exit_code(lambda: convert(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
