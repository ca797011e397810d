"""A picture sheet of training samples exactly as the network gets them: padding, masks, questions and answers.

    python scripts/preview_data.py --config configs/pixellm_7b.json --dataset_dir ./dataset --num 12 --out preview.png

It takes every flag of train_ds.py and shows the samples that such a run begins with.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import ClassVar

from model.values import Count, NonNegativeInt
from utils.cli.args import Parsed, flag, settings
from utils.cli.command import run_command
from utils.cli.config import TRAINING_ONLY, RunConfig


@settings
class PreviewConfig(RunConfig):
    """Flags of training, and of this script."""

    ignored: ClassVar = (TRAINING_ONLY, "nothing is trained")
    num: Count = flag(12, "samples")
    start: NonNegativeInt = flag(0, "samples of the run to skip")
    columns: Count = flag(4, "samples per row")
    out: str = flag("preview.png", "picture to write")


def preview(parsed: Parsed[PreviewConfig]) -> None:
    """Draw the samples, and write their sheet."""
    from model.drawing import check_picture, write_image
    from utils.data.mixture import Mixture
    from utils.data.names import split_names
    from utils.data.paths import check_data_kept
    from utils.data.registry import DataOptions, build_train_sources
    from utils.pictures import contact_sheet
    from utils.training.preview import build_encoder, sample_panel

    config = parsed.config
    check_picture(config.out, flag="--out", inputs=split_names(config.custom_data))
    check_data_kept(config.out, [config.dataset_dir], flag="--out")
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


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(PreviewConfig, preview, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
