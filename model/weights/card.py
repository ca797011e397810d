"""The model card: README.md of a saved folder."""

from __future__ import annotations

from pathlib import Path

from model.configuration import PixelLMConfig
from model.files import is_file, write_text


def write_card(folder: Path, config: PixelLMConfig) -> None:
    """Write README.md, unless the folder has one.

    Args:
        config: tells base, data and recipe as far as they are known.
    """
    if not is_file(folder / "README.md"):
        write_text(folder / "README.md", f"{config.model_type}\n")
