"""Datasets as sources of samples: one file per dataset family, no torch, no tokenizer."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from utils.data.records import RawSample


class Source(Protocol):
    """A dataset. All randomness comes from ``rng``, so a sample is a function of (index, rng).

    One whose records may have no masks on purpose says which share of them has some: ``mask_share``, 1.0 by default.
    """

    name: str

    def __len__(self) -> int: ...

    def get(self, index: int, rng: np.random.Generator) -> RawSample: ...
