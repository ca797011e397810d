"""What one update reports: losses, counts and rates of all processes, as numbers for log.jsonl and for boards."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from model.configuration import PixelLMConfig
from model.structures import Batch
from utils import dist
from utils.evaluation.blanks import Blanks

from .costs import peak_flops, update_flops

_DIGITS = 6


@dataclass(frozen=True)
class DataReport:
    """What the passes of an update have read, on all processes.

    Attributes:
        tokens: of the rows, padding included.
        real_tokens: those of them that the language model looks at.
        drawn: samples by the name of their dataset.
        replaced: samples that could not be used, in whose place others were drawn; by dataset.
    """

    tokens: int = 0
    real_tokens: int = 0
    drawn: Mapping[str, int] = field(default_factory=dict)
    replaced: Mapping[str, int] = field(default_factory=dict)


class DataCounts:
    """Turns passes into numbers that processes add up, and their sums into a ``DataReport``.

    Args:
        names: of the datasets of the run, the same on all processes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = sorted(set(names))

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return 2 + 2 * len(self._names)

    def of(self, passes: Sequence[Batch]) -> list[int]:
        """Counts of this process.

        Args:
            passes: on the CPU, laid out in rows.
        """
        rows = [batch.rows for batch in passes if batch.rows is not None]
        drawn = Counter(name for batch in passes for name in batch.sources)
        replaced = Counter(name for batch in passes for name in batch.replaced)
        tokens = [sum(row.input_ids.numel() for row in rows), sum(int(row.visible.sum()) for row in rows)]
        by_name = [counts[name] for counts in (drawn, replaced) for name in self._names]
        return [*tokens, *by_name]

    def read(self, sums: Sequence[int]) -> DataReport:
        """The sums of ``of`` over all processes; a dataset without any is left out."""
        tokens, real_tokens, *by_name = sums
        parts = by_name[: len(self._names)], by_name[len(self._names) :]
        drawn, replaced = ({name: n for name, n in zip(self._names, part, strict=True) if n} for part in parts)
        return DataReport(tokens, real_tokens, drawn, replaced)


@dataclass(frozen=True)
class UpdateReport:
    """One update of all processes.

    Attributes:
        update: its number; the first one is 1.
        rate: the learning rate that it was made with.
        seconds: how long it took.
        num_masks: targets in it.
        terms: the parts of the loss by name, ``total`` among them; of the whole update.
        num_samples: photos in it, or dialogues without one.
        num_tokens: supervised ones.
        blanks: predictions that show nothing.
        data: what its passes have read.
        gradient_norm: of all gradients before they are clipped; None where DeepSpeed does not know it.
        peak_memory: bytes that the main process has held at most so far.
    """

    update: int
    rate: float
    seconds: float
    num_masks: int
    terms: dict[str, float]
    num_samples: int
    num_tokens: int
    blanks: Blanks
    data: DataReport = field(default_factory=DataReport)
    gradient_norm: float | None = None
    peak_memory: int = 0


class UpdateRecords:
    """Turns reports into the records of log.jsonl, and into what boards draw.

    Args:
        config: of the network.
        peak_flops: operations per second that the devices of all processes can do together; None if unknown.
    """

    def __init__(self, config: PixelLMConfig, *, peak_flops: float | None) -> None:
        self._config, self._peak_flops = config, peak_flops

    @classmethod
    def of(cls, config: PixelLMConfig, device: torch.device) -> UpdateRecords:
        """For processes with a device like this one each."""
        peak = peak_flops(device)
        return cls(config, peak_flops=peak and peak * dist.world_size())

    def flops(self, reports: Sequence[UpdateReport]) -> int:
        """Of some updates together, of all processes."""
        return update_flops(self._config, num_tokens=sum(report.data.tokens for report in reports))

    def mfu(self, reports: Sequence[UpdateReport]) -> float | None:
        """The share of the peak that some updates have reached together; None if the peak is unknown."""
        seconds = sum(report.seconds for report in reports)
        return rate(self.flops(reports), seconds * self._peak_flops) if self._peak_flops else None

    def record(self, report: UpdateReport) -> dict[str, Any]:
        """A line of log.jsonl; the keys are listed in docs/training.md. JSON has no number that is not finite."""
        data = report.data
        numbers: dict[str, float | None] = {
            "samples_per_second": rate(report.num_samples, report.seconds),
            "tokens_per_second": rate(data.tokens, report.seconds),
            "real_token_share": rate(data.real_tokens, data.tokens),
            "mfu": self.mfu([report]),
            "gradient_norm": report.gradient_norm,
            **report.terms,
        }
        return {
            "update": report.update,
            "lr": report.rate,
            "seconds": round(report.seconds, 4),
            "masks": report.num_masks,
            "blank_masks": report.blanks.empty + report.blanks.full,
            "tokens": report.num_tokens,
            "flops": self.flops([report]),
            "peak_memory": report.peak_memory,
            "drawn": dict(data.drawn),
            "replaced": dict(data.replaced),
            **{name: finite(value) for name, value in numbers.items()},
        }

    def scalars(self, report: UpdateReport) -> dict[str, float]:
        """What boards draw over the updates, by tag; what is unknown is left out."""
        record = self.record(report)
        values = {f"train/{name}": value for name, value in report.terms.items()}
        values |= {"train/lr": report.rate, "metrics/seconds_per_update": report.seconds}
        values |= {"train/gradient_norm": record["gradient_norm"], "metrics/peak_memory": record["peak_memory"]}
        for name in ("samples_per_second", "tokens_per_second", "real_token_share", "mfu"):
            values[f"metrics/{name}"] = record[name]
        return {tag: value for tag, value in values.items() if value is not None}

    def line(self, reports: Sequence[UpdateReport], *, total_updates: int, remaining: str) -> str:
        """A line of the console about the updates since the last one: means of losses and counts, and rates."""
        last, seconds = reports[-1], sum(report.seconds for report in reports)
        means = {name: mean([report.terms[name] for report in reports]) for name in last.terms}
        parts = " ".join(f"{name} {value:.4f}" for name, value in means.items() if name != "total")
        samples, tokens = (sum(report.num_samples for report in reports), sum(r.data.tokens for r in reports))
        mfu = self.mfu(reports)
        return (
            f"update {last.update}/{total_updates} loss {means['total']:.4f} ({parts}"
            + (f"; means of {len(reports)} updates" if reports[1:] else "")
            + f") masks {mean([report.num_masks for report in reports]):.4g} lr {last.rate:.2e} "
            f"{seconds / len(reports):.2f} s/update {rate(samples, seconds):.3g} samples/s "
            f"{rate(tokens, seconds):,.0f} tokens/s" + (f" MFU {mfu:.0%}" if mfu else "") + f" ETA {remaining}"
        )


def rate(count: float, per: float) -> float:
    """0 where there is nothing to divide by."""
    return count / per if per else 0.0


def finite(value: float | None) -> float | None:
    """Rounded for JSON; None for a number that it cannot hold."""
    return None if value is None or not math.isfinite(value) else round(value, _DIGITS)


def mean(values: Sequence[float]) -> float:
    """Of those that are finite: an update that was passed over has a loss that is not. nan without any."""
    kept = [value for value in values if math.isfinite(value)]
    return sum(kept) / len(kept) if kept else math.nan
