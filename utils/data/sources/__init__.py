"""Datasets as sources of samples: one file per dataset family, no torch, no tokenizer."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from utils.data.records import RawSample


class Source(Protocol):
    """A dataset. All randomness comes from ``rng``, so a sample is a function of (index, rng)."""

    name: str

    def __len__(self) -> int: ...

    def get(self, index: int, rng: np.random.Generator) -> RawSample: ...
