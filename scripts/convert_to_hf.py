"""Write a published model, or an older one of ours, as a folder that transformers' Auto classes read.

    python scripts/convert_to_hf.py --version maverickrzw/PixelLM-7B --vision-tower CLIP --out pixellm-7b

Weights keep their precision, and are read again and compared before the folder takes its place.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from model.errors import InputError
from utils.cli.args import Parsed, flag, settings
from utils.cli.command import run_command


@settings
class ConvertConfig:
    """Flags of this script."""

    version: str = flag("", "the model to convert: folder or hub id")
    out: str = flag("", "folder to make")
    vision_tower: str = flag(
        "", "its CLIP tower, folder or hub id; default is what the model says", aliases=("--vision-tower",)
    )
    conv_type: str = flag("", "its conversation template, which published models do not record; default llava_v1")
    save_vision_tower: bool = flag(False, "store the tower inside, so that the folder stands alone")

    def __post_init__(self) -> None:
        for name in ("version", "out"):
            if not getattr(self, name):
                raise InputError(f"--{name} is missing; --version and --out are both needed")


def convert_model(parsed: Parsed[ConvertConfig]) -> None:
    """Convert, and say how the result is read."""
    from model.convert import convert

    config = parsed.config
    convert(
        config.version,
        Path(config.out).expanduser(),
        vision_tower=config.vision_tower or None,
        conv_type=config.conv_type or None,
        save_vision_tower=config.save_vision_tower,
    )
    print(f"{config.out} can be read by AutoModelForImageTextToText.from_pretrained, after `import model.hf`")


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(ConvertConfig, convert_model, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
