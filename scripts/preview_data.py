"""A picture sheet of training samples exactly as the network gets them: padding, masks, questions and answers.

    python scripts/preview_data.py --config configs/pixellm_7b.json --dataset_dir ./dataset --num 12 --out preview.png

It takes every flag of train_ds.py and shows the samples that such a run begins with.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.errors import InputError
from utils.cli.args import flag, parse
from utils.cli.config import RunConfig
from utils.cli.log import exit_code, setup_logging
from utils.data.mixture import Mixture
from utils.data.registry import DataOptions, build_train_sources
from utils.pictures import contact_sheet, write_image
from utils.training.preview import build_encoder, sample_panel


@dataclass(frozen=True)
class PreviewConfig(RunConfig):
    """Flags of training, and of this script."""

    num: int = flag(12, "samples")
    start: int = flag(0, "samples of the run to skip")
    columns: int = flag(4, "samples per row")
    out: str = flag("preview.png", "picture to write")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("num", 1), ("start", 0), ("columns", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} is {getattr(self, name)}; expected {least} or more")


def preview(config: PreviewConfig) -> None:
    sources, rates = build_train_sources(DataOptions.of(config))
    encoder = build_encoder(config)
    mixture = Mixture(sources, rates, encoder, seed=config.seed)
    panels, captions = [], []
    for index in range(config.start, config.start + config.num):
        sample = mixture[index]
        panel, caption = sample_panel(sample, encoder)
        panels.append(panel)
        captions.append(caption)
        for skip in sample.skipped:
            print(f"left out, {skip.reason}: {skip.message}")
    write_image(config.out, contact_sheet(panels, columns=min(config.columns, config.num), captions=captions))
    print(f"{config.out}: {config.num} samples of {', '.join(source.name for source in sources)}")


def main(argv: Sequence[str]) -> int:
    setup_logging()
    return exit_code(lambda: preview(parse(PreviewConfig, argv, __doc__).config))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
