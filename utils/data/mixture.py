"""Sources -> an endless stream of samples that depends on nothing but the seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from model.errors import InputError
from model.structures import Batch

from .encode import Encoder, Sample
from .sources import Source

Collate = Callable[[Sequence[Sample]], Batch]


class Mixture(Dataset):
    """Sample ``index`` is a function of (seed, index): the same for any number of workers, processes or restarts.

    Args:
        rates: relative weight of each source.
    """

    def __init__(self, sources: Sequence[Source], rates: Sequence[float], encoder: Encoder, seed: int) -> None:
        if len(sources) != len(rates) or not sources:
            raise ValueError(f"{len(sources)} sources with {len(rates)} rates; expected one rate for each source")
        if seed < 0:
            raise InputError(f"--seed is {seed}; expected 0 or more")
        self.sources = list(sources)
        self.shares = np.asarray(rates, dtype=float) / sum(rates)
        self.encoder = encoder
        self.seed = seed

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, index])
        source = self.sources[rng.choice(len(self.sources), p=self.shares)]
        return self.encoder(source.get(int(rng.integers(len(source))), rng))


class ValDataset(Dataset):
    """Every sample of a validation source once, unshortened."""

    def __init__(self, source: Source, encoder: Encoder) -> None:
        self.source = source
        self.encoder = encoder

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        return self.encoder(self.source.get(index, np.random.default_rng(index)), truncate=False)


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
) -> DataLoader:
    """Batches of one process; read them through ``raise_input_errors``.

    Args:
        start, count, rank, world_size, batch_size: as in ``RankSampler``.
    """
    return DataLoader(
        _Caught(mixture),
        batch_size=batch_size,
        sampler=RankSampler(start, count, rank, world_size, batch_size),
        num_workers=num_workers,
        collate_fn=_CaughtCollate(collate),
        pin_memory=pin_memory,
        worker_init_fn=_init_worker,
    )


def raise_input_errors(loader: Iterable[Batch | InputError]) -> Iterator[Batch]:
    """Batches of a loader of ours; an InputError of a worker is raised here, in the main process.

    Raised inside a worker, torch would wrap it into a message with a traceback.
    """
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        yield batch


@dataclass(frozen=True)
class _Caught(Dataset):
    """Gives an InputError back in place of the sample that it speaks of."""

    dataset: Dataset

    def __getitem__(self, index: int) -> Sample | InputError:
        try:
            return self.dataset[index]
        except InputError as err:
            return err


@dataclass(frozen=True)
class _CaughtCollate:
    """Collates samples; if one of them is an error, that is the batch."""

    collate: Collate

    def __call__(self, samples: Sequence[Sample | InputError]) -> Batch | InputError:
        for sample in samples:
            if isinstance(sample, InputError):
                return sample
        return self.collate(samples)


def _init_worker(worker: int) -> None:
    """One core per worker: the processes together already use all of them."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
