"""Measure on this machine.

    python scripts/benchmark.py data --dataset_dir ./dataset

``data`` says how many samples per second one process makes, of every source and of their mixture, and what the time
goes into; ``data --help`` lists its flags. Other load on the machine is in all numbers: compare those of one run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.errors import InputError
from model.files import write_json
from utils.benchmark.data import table, time_samples
from utils.cli.args import flag, parse_command
from utils.cli.config import RunConfig
from utils.cli.log import exit_code, setup_logging
from utils.data.downloads import require_data
from utils.data.mixture import init_worker
from utils.data.registry import DataOptions, build_train_sources
from utils.training.preview import build_encoder


@dataclass(frozen=True)
class DataConfig(RunConfig):
    """Flags of training, by default those of the released command, and of this script."""

    dataset: str = flag("sem_seg||refer_seg||vqa||multi_reason_seg", "datasets, joined with ||")
    sample_rates: str = flag("2,9,2,4", "relative weight of each dataset")
    seg_token_num: int = flag(3, "tokens per scale")
    image_feature_scale_num: int = flag(2, "scales")
    num_classes_per_question: int = flag(3, "targets per question")
    pad_train_clip_images: bool = flag(True, "pad images to a square instead of center-cropping")
    resize_vision_tower: bool = flag(True, "run the tower at another input size")
    resize_vision_tower_size: int = flag(448, "that input size, in pixels")
    use_expand_question_list: bool = flag(True, "more question wordings")
    num: int = flag(100, "samples per round and source")
    rounds: int = flag(5, "rounds; the median counts")
    output_json: str = flag("", "file for the numbers")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}; expected 1 or more")


def benchmark_data(config: DataConfig) -> None:
    """Every source for itself, then their mixture."""
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


COMMANDS = {"data": (DataConfig, benchmark_data)}


def main(argv: Sequence[str]) -> int:
    setup_logging()

    def run() -> None:
        command, config = parse_command({name: flags for name, (flags, _) in COMMANDS.items()}, argv, __doc__)
        COMMANDS[command][1](config)

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
