"""How fast one process makes samples, and what the time goes into.

Shares are of four stages: ``masks`` (the source: annotation, rasterizing, wording), ``decode`` (photo file to pixels),
``resize`` (to the network's input, normalized) and ``text`` (the rest of the encoder: words to ids, masks to tensors).
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from model.files import write_json
from model.outputs import check_output_file
from utils.cli.config import RunConfig
from utils.data.downloads import require_data
from utils.data.encode import Encoder, Sample, read_photo
from utils.data.mixture import Mixture
from utils.data.names import split_names
from utils.data.paths import check_data_kept
from utils.data.records import RawSample
from utils.data.registry import DataOptions, build_train_sources
from utils.data.sources import Source
from utils.data.workers import init_worker
from utils.training.preview import build_encoder

STAGES = ("decode", "resize", "masks", "text")


@dataclass(frozen=True)
class Timing:
    """What one process reaches.

    Attributes:
        rate: samples per second, the median of several rounds.
        cpu_ms: milliseconds of the processor per sample, likewise; other load on the machine changes it less.
        shares: of the time, by stage; they sum up to 1.
    """

    name: str
    rate: float
    cpu_ms: float
    shares: dict[str, float]


def benchmark(run: RunConfig, *, num: int, rounds: int, output_json: str = "") -> None:
    """Print how fast every source of a run is for itself, then their mixture.

    Args:
        num: samples per round and source.
        rounds: the median counts.
        output_json: a file for the numbers.
    Raises:
        InputError: if data are missing, or the file cannot be written.
    """
    if output_json:
        check_output_file(output_json, flag="--output_json", inputs=split_names(run.custom_data))
        check_data_kept(output_json, [run.dataset_dir], flag="--output_json")
    init_worker()
    options = DataOptions.of(run)
    require_data(options, [])
    sources, rates = build_train_sources(options)
    encoder = build_encoder(run)
    how = {"num": num, "rounds": rounds, "seed": run.seed}
    timings = [time_samples(source.name, [source], [1.0], encoder, **how) for source in sources]
    timings.append(time_samples("mixture", sources, rates, encoder, **how))
    size = encoder.config.image_size
    print(f"one process, one thread, {size} px, --dataset {run.dataset} --sample_rates {run.sample_rates}")
    print(table(timings))
    if output_json:
        write_json(Path(output_json), {"image_size": size, "timings": [asdict(timing) for timing in timings]})


def time_samples(
    name: str, sources: Sequence[Source], rates: Sequence[float], encoder: Encoder, *, num: int, rounds: int, seed: int
) -> Timing:
    """Draw the same ``num`` samples ``rounds`` times, after once for the files to be in memory."""
    seconds: defaultdict[str, float] = defaultdict(float)
    timed = Mixture([_TimedSource(source, seconds) for source in sources], rates, _TimedEncoder(encoder, seconds), seed)
    _draw(timed, num)
    plain = Mixture(sources, rates, encoder, seed)
    walls, cpus = zip(*(_draw(plain, num) for _ in range(rounds)), strict=True)
    shares = {stage: seconds[stage] / sum(seconds.values()) for stage in STAGES}
    return Timing(name, num / statistics.median(walls), 1000 * statistics.median(cpus) / num, shares)


def _draw(mixture: Mixture, num: int) -> tuple[float, float]:
    """Seconds that the first ``num`` samples take, on the clock and of the processor."""
    clock, cpu = time.perf_counter(), time.process_time()
    for index in range(num):
        mixture[index]
    return time.perf_counter() - clock, time.process_time() - cpu


class _TimedSource:
    """A source that notes what it takes."""

    def __init__(self, source: Source, seconds: defaultdict[str, float]) -> None:
        self.name = source.name
        self.source = source
        self.seconds = seconds

    def __len__(self) -> int:
        return len(self.source)

    def get(self, index: int, rng: np.random.Generator) -> RawSample:
        started = time.perf_counter()
        raw = self.source.get(index, rng)
        self.seconds["masks"] += time.perf_counter() - started
        return raw


class _TimedEncoder(Encoder):
    """An encoder that notes what its stages take; to do so it decodes and resizes every photo once more."""

    def __init__(self, encoder: Encoder, seconds: defaultdict[str, float]) -> None:
        super().__init__(encoder.tokenizer, encoder.codebook, encoder.config)
        self.seconds = seconds

    def __call__(self, raw: RawSample, *, truncate: bool = True) -> Sample:
        photo_seconds = 0.0
        if raw.image_path is not None:
            read_photo(raw)  # from the disk, once
            started = time.perf_counter()
            photo = read_photo(raw)
            decoded = time.perf_counter()
            self.config.preprocessor(photo)
            resized = time.perf_counter()
            self.seconds["decode"] += decoded - started
            self.seconds["resize"] += resized - decoded
            photo_seconds = resized - started
        started = time.perf_counter()
        sample = super().__call__(raw, truncate=truncate)
        self.seconds["text"] += max(0.0, time.perf_counter() - started - photo_seconds)
        return sample


def table(timings: Sequence[Timing]) -> str:
    """One line per timing, shares in percent."""
    width = max(len(timing.name) for timing in timings)
    lines = [f"{'':{width}}{'samples/s':>11}{'cpu ms':>8}" + "".join(f"{stage:>9}" for stage in STAGES)]
    for timing in timings:
        shares = "".join(f"{timing.shares[stage]:9.0%}" for stage in STAGES)
        lines.append(f"{timing.name:{width}}{timing.rate:11.1f}{timing.cpu_ms:8.1f}{shares}")
    return "\n".join(lines)
