"""Sources -> an endless stream of samples that depends only on the seed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from model.errors import InputError
from model.structures import Batch

from .encode import Encoder, Sample
from .records import NOTHING_TO_ASK, Skip
from .sources import Source
from .workers import WatchedLoader, note

logger = logging.getLogger(__name__)

Collate = Callable[[Sequence[Sample]], Batch]
# Draws for one place in the stream. This many consecutive failures mean the dataset is broken.
_MAX_DRAWS = 10
# The bad share is computed over at least this many samples, so that one early bad sample does not stop a run.
_MIN_DRAWN = 1000


class Mixture(Dataset):
    """Sample ``index`` is a function of (seed, index): the same for any number of workers, processes or restarts.

    Released meaning (``once_per_epoch=False``): draw a source by its rate, then any of its items. Otherwise each
    stretch of ``num_items`` samples has every item of every source once, in an order of its own, and rates are not
    used. An item that cannot be used is replaced by another one, drawn by rate from the same random numbers.

    Args:
        rates: relative weight of each source.

    Raises:
        ValueError: if there is no source, or not one rate for each.
        InputError: on access, if many samples in a row cannot be used.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        rates: Sequence[float],
        encoder: Encoder,
        seed: int,
        *,
        once_per_epoch: bool = False,
    ) -> None:
        if len(sources) != len(rates) or not sources:
            raise ValueError(f"{len(sources)} sources with {len(rates)} rates; expected one rate for each source")
        self.sources = list(sources)
        self.shares = np.asarray(rates, dtype=float) / sum(rates)
        self.encoder = encoder
        self.seed = seed
        self._ends = np.cumsum([len(source) for source in sources])
        self._once_per_epoch = once_per_epoch
        self._order: tuple[int, np.ndarray] | None = None  # an epoch and its order of items

    @property
    def num_items(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, index])
        number, item = self._item_of_epoch(index) if self._once_per_epoch else self._draw(rng)
        skipped: list[Skip] = []
        while len(skipped) < _MAX_DRAWS:
            source = self.sources[number]
            note(number, item)
            try:
                sample = self.encoder(source.get(item, rng))
            except InputError as err:
                skipped.append(Skip(source.name, err.reason, str(err)))
                number, item = self._draw(rng)
            else:
                sample.skipped, sample.source = tuple(skipped), source.name
                return sample
        raise InputError(f"{_MAX_DRAWS} samples in a row cannot be used. The last of them: {skipped[-1].message}")

    def _draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """The number of a source, and an item of it."""
        number = int(rng.choice(len(self.sources), p=self.shares))
        return number, int(rng.integers(len(self.sources[number])))

    def _item_of_epoch(self, index: int) -> tuple[int, int]:
        epoch, place = divmod(index, self.num_items)
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch], spawn_key=(1,)))
            self._order = epoch, rng.permutation(self.num_items)
        item = int(self._order[1][place])
        number = int(np.searchsorted(self._ends, item, side="right"))
        return number, item - (int(self._ends[number - 1]) if number else 0)


class SkipTally:
    """Counts what could not be used, by (source, reason), and stops when that is too much.

    Turns dropped because a conversation exceeds the token budget are counted, too, but not as bad.

    Args:
        max_bad_share: of the samples drawn, which are counted as 1000 at least.
    """

    def __init__(self, max_bad_share: float) -> None:
        self.max_bad_share = max_bad_share
        self.num_used = 0
        self.num_dropped_turns = 0
        self.counts: Counter[tuple[str, str]] = Counter()

    def add(self, num_used: int, skipped: Sequence[Skip], *, num_dropped_turns: int = 0) -> None:
        """Count the samples of a batch and the bad samples that were drawn before them.

        Raises:
            InputError: if more than the allowed share is bad.
        """
        self.num_used += num_used
        self.num_dropped_turns += num_dropped_turns
        for skip in skipped:
            if (skip.source, skip.reason) not in self.counts:
                logger.warning("skipped a sample of %s (%s), more of the kind are only counted: %s",
                               skip.source, skip.reason, skip.message)  # fmt: skip
            self.counts[skip.source, skip.reason] += 1
        num_drawn = self.num_used + sum(self.counts.values())
        bad = Counter({key: count for key, count in self.counts.items() if key[1] != NOTHING_TO_ASK})
        num_bad = sum(bad.values())
        if skipped and num_bad > self.max_bad_share * max(num_drawn, _MIN_DRAWN):
            raise InputError(
                f"{num_bad} of {num_drawn} samples cannot be used, more than --max_bad_share {self.max_bad_share} "
                f"allows: {describe_skips(bad)}. The last of them: {skipped[-1].message}"
            )


def describe_skips(counts: Mapping[tuple[str, str], int]) -> str:
    """``refcoco: image missing 3; ade20k: label map unreadable 1``."""
    return "; ".join(f"{source}: {reason} {count}" for (source, reason), count in sorted(counts.items()))


class ValDataset(Dataset):
    """Every sample of a validation source once, never truncated.

    Raises:
        InputError: on access to a bad sample; the message names it.
    """

    def __init__(self, source: Source, encoder: Encoder) -> None:
        self.source = source
        self.encoder = encoder

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        try:
            return self.encoder(self.source.get(index, np.random.default_rng(index)), truncate=False)
        except InputError as err:
            raise InputError(f"{self.source.name}, sample {index}: {err}") from err


class RankSampler(Sampler[int]):
    """The part of one process in a stream of global indices.

    Step t of all processes together covers ``world_size * batch_size`` indices after those of step t - 1; each
    process takes ``batch_size`` of them in a row.

    Args:
        start: first global index, where an earlier run stopped.
        count: global indices to cover, by all processes together.
    Raises:
        ValueError: if ``count`` is not a whole number of steps.
    """

    def __init__(self, start: int, count: int, rank: int, world_size: int, batch_size: int) -> None:
        if count % (world_size * batch_size):
            raise ValueError(f"count is {count}; expected a multiple of {world_size} processes x {batch_size} images")
        self.start, self.count = start, count
        self.rank, self.world_size, self.batch_size = rank, world_size, batch_size

    def __iter__(self) -> Iterator[int]:
        step = self.world_size * self.batch_size
        for first in range(self.start + self.rank * self.batch_size, self.start + self.count, step):
            yield from range(first, first + self.batch_size)

    def __len__(self) -> int:
        return self.count // self.world_size


def build_loader(
    mixture: Mixture,
    collate: Collate,
    *,
    start: int,
    count: int,
    rank: int,
    world_size: int,
    batch_size: int,
    num_workers: int,
    pin_memory: bool,
) -> WatchedLoader:
    """Batches of one process; read them through ``read_batches``.

    Args:
        start, count, rank, world_size, batch_size: as in ``RankSampler``.
    """
    return WatchedLoader(
        ReturnInputErrors(mixture),
        mixture.sources,
        batch_size=batch_size,
        sampler=RankSampler(start, count, rank, world_size, batch_size),
        num_workers=num_workers,
        collate_fn=CollateUnlessError(collate),
        pin_memory=pin_memory,
        generator=torch.Generator(),  # the loader draws seeds for its workers: not from the random state of training
    )


def read_batches(loader: Iterable[Loaded | InputError], tally: SkipTally) -> Generator[Batch]:
    """Batches of a loader of ``build_loader``; an InputError of a worker is raised here, in the main process.

    Raised inside a worker, torch would wrap it into a message with a traceback.

    Raises:
        InputError: if a sample has no usable replacement, or too large a share of the samples is bad.
        DeadWorker: if a worker has died.
    """
    for loaded in loader:
        if isinstance(loaded, InputError):
            raise loaded
        tally.add(len(loaded.batch.orig_hw), loaded.skipped, num_dropped_turns=loaded.num_dropped_turns)
        yield loaded.batch


@dataclass
class Loaded:
    """A batch and what was left out of it, on the way from a worker."""

    batch: Batch
    skipped: list[Skip]
    num_dropped_turns: int

    def pin_memory(self) -> Loaded:
        """Called by the data loader when it pins."""
        return replace(self, batch=self.batch.pin_memory())


@dataclass(frozen=True)
class ReturnInputErrors(Dataset):
    """Returns an InputError in place of the sample that raised it."""

    dataset: Dataset

    def __getitem__(self, index: int) -> Sample | InputError:
        try:
            return self.dataset[index]
        except InputError as err:
            return err


@dataclass(frozen=True)
class CollateUnlessError:
    """Collates samples; returns the first error among them instead, if there is one."""

    collate: Collate

    def __call__(self, samples: Sequence[Sample | InputError]) -> Loaded | InputError:
        sound: list[Sample] = []
        for sample in samples:
            if isinstance(sample, InputError):
                return sample
            sound.append(sample)
        return Loaded(
            self.collate(sound),
            skipped=[skip for sample in sound for skip in sample.skipped],
            num_dropped_turns=sum(sample.num_dropped_turns for sample in sound),
        )
