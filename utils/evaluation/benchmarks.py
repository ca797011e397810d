"""The benchmarks by name: what validation sets they join, how they are asked and scored, what was published. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .records import Protocol

Rule = Literal["matched", "referring", "generalized"]


@dataclass(frozen=True)
class Published:
    """A figure of a table that others printed.

    Attributes:
        model: such as ``PixelLM-7B``.
        metric: a key of ``Scores``, such as ``giou``.
        value: a share, 0 to 1.
        source: where it stands, and who printed it.
        protocol: how the model was asked; empty where the source does not say it.
        is_verified: read in the source itself, not in a copy or a note.
    """

    model: str
    metric: str
    value: float
    source: str
    protocol: Protocol | Literal[""] = ""
    is_verified: bool = False


@dataclass(frozen=True)
class Benchmark:
    """A row of a result, once for each protocol.

    Attributes:
        name: such as ``MultiReasonSeg|test``.
        sets: the validation sets whose questions it joins.
        rule: how its questions are scored. ``matched``: masks are paired one to one (MUSE, own data). ``referring``:
            each expression has one mask (RefCOCO and its kin, ReasonSeg). ``generalized``: as gRefCOCO's evaluator.
        protocols: in which it can be asked; the first one unless another is wanted.
        published: figures of others.
    """

    name: str
    sets: tuple[str, ...]
    rule: Rule
    protocols: tuple[Protocol, ...]
    published: tuple[Published, ...] = ()
