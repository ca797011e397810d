"""Measure on this machine.

    python scripts/benchmark.py data --dataset_dir ./dataset

``data`` says how many samples per second one process makes, of every source and of their mixture, and what the time
goes into; ``data --help`` lists its flags. Other load on the machine is in all numbers: compare those of one run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from model.files import write_json
from model.outputs import check_output_file
from model.values import Count, InputSide, Scales, TokensPerScale
from utils.benchmark.data import table, time_samples
from utils.cli.args import flag, settings
from utils.cli.command import run_commands
from utils.cli.config import TRAINING_ONLY, RunConfig
from utils.data.downloads import require_data
from utils.data.names import split_names
from utils.data.paths import check_data_kept
from utils.data.registry import DataOptions, build_train_sources
from utils.data.workers import init_worker
from utils.training.preview import build_encoder


@settings
class DataConfig(RunConfig):
    """Flags of training, by default those of the released command, and of this script."""

    dataset: str = flag("sem_seg||refer_seg||vqa||multi_reason_seg", "datasets, joined with ||")
    sample_rates: str = flag("2,9,2,4", "relative weight of each dataset")
    seg_token_num: TokensPerScale = flag(3, "tokens per scale")
    image_feature_scale_num: Scales = flag(2, "scales")
    num_classes_per_question: Count = flag(3, "targets per question")
    pad_train_clip_images: bool = flag(True, "pad images to a square instead of center-cropping")
    resize_vision_tower: bool = flag(True, "run the tower at another input size")
    resize_vision_tower_size: InputSide = flag(448, "that input size, in pixels")
    use_expand_question_list: bool = flag(True, "more question wordings")
    ignored: ClassVar = (TRAINING_ONLY, "nothing is trained")
    num: Count = flag(100, "samples per round and source")
    rounds: Count = flag(5, "rounds; the median counts")
    output_json: str = flag("", "file for the numbers")


def benchmark_data(config: DataConfig) -> None:
    """Every source for itself, then their mixture."""
    if config.output_json:
        check_output_file(config.output_json, flag="--output_json", inputs=split_names(config.custom_data))
        check_data_kept(config.output_json, [config.dataset_dir], flag="--output_json")
    init_worker()
    options = DataOptions.of(config)
    require_data(options, [])
    sources, rates = build_train_sources(options)
    encoder = build_encoder(config)
    how = {"num": config.num, "rounds": config.rounds, "seed": config.seed}
    timings = [time_samples(source.name, [source], [1.0], encoder, **how) for source in sources]
    timings.append(time_samples("mixture", sources, rates, encoder, **how))
    size = encoder.config.image_size
    print(f"one process, one thread, {size} px, --dataset {config.dataset} --sample_rates {config.sample_rates}")
    print(table(timings))
    if config.output_json:
        write_json(Path(config.output_json), {"image_size": size, "timings": [asdict(timing) for timing in timings]})


COMMANDS = {"data": (DataConfig, lambda parsed: benchmark_data(parsed.config))}


def main(argv: Sequence[str] | None = None) -> int:
    return run_commands(COMMANDS, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
