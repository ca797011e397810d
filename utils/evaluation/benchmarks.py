"""The benchmarks by name: what validation sets they join, how they are asked and scored, what was published. No torch.

A validation set of ``--val_dataset`` is a benchmark. Two benchmarks are more than that: both test files of MUSE as one
set, and ReasonSeg's test split with every text of a photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from model.errors import InputError
from utils.data.paths import REFER_SPLIT_BY
from utils.data.registry import val_names

from .published import Published, published
from .records import Protocol

Rule = Literal["matched", "referring", "generalized"]


@dataclass(frozen=True)
class Benchmark:
    """A row of a result, once for each protocol.

    Attributes:
        name: such as ``MultiReasonSeg|test``.
        sets: the validation sets whose questions it joins. Rows may share sets, whose questions are asked once.
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


CUSTOM = "custom|"
_MUSE = "MultiReasonSeg"
_SHORT_NAMES = {"MUSE": _MUSE, "gref": "grefcoco"}
_SPLITS = {
    _MUSE: ("val", "test_less", "test_many", "test"),
    "refclef": ("val", "testA", "testB", "testC"),
    "refcoco": ("val", "testA", "testB"),
    "refcoco+": ("val", "testA", "testB"),
    "refcocog": ("val", "test"),
    "multirefcoco": ("val", "testA", "testB"),
    "multirefcoco+": ("val", "testA", "testB"),
    "multirefcocog": ("val", "test"),
    "grefcoco": ("val", "testA", "testB"),
    "ReasonSeg": ("val", "test"),
}
_REFERRING = tuple(name for name in _SPLITS if name.startswith(("ref", "multiref")))
# The tables of the PixelLM paper, and ReasonSeg, on which others measured its published weights.
_PAPER = (_MUSE, *(name for name in _REFERRING if name != "refclef"), "ReasonSeg")
_JOINED = {
    f"{_MUSE}|test": (f"{_MUSE}|test_less", f"{_MUSE}|test_many"),
    "ReasonSeg|test": ("ReasonSeg|test|every_text",),
}


def expand(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks that names stand for, each once, in the order in which they are first named.

    A name is a benchmark, as in ``refcoco|unc|val`` or ``custom|FILE``; one without the source of the split, as in
    ``refcoco|val``; a family, as in ``MUSE`` or ``refcoco``, for all its splits; or ``paper``.

    Raises:
        InputError: if a name is unknown; the message lists what there is.
    """
    return [_benchmark(name) for name in dict.fromkeys(full for given in names for full in _full_names(given.strip()))]


def _full_names(given: str) -> list[str]:
    if given.startswith(CUSTOM):
        return [given]
    if given == "paper":
        return [name for family in _PAPER for name in _all_splits(family)]
    family, *rest = (part.strip() for part in given.split("|"))
    family = _SHORT_NAMES.get(family, family)
    if not rest and family in _SPLITS:
        return _all_splits(family)
    name = _full_name(family, rest[0]) if len(rest) == 1 else "|".join([family, *rest])
    if name == f"{_MUSE}|test":
        return [*_JOINED[name], name]
    if name not in _JOINED and name not in val_names():
        raise InputError(f"--benchmark: {given!r} is unknown; available are {_shown()} (several are joined with ||)")
    return [name]


def _all_splits(family: str) -> list[str]:
    return [_full_name(family, split) for split in _SPLITS[family]]


def _full_name(family: str, split: str) -> str:
    split_by = REFER_SPLIT_BY.get(family.removeprefix("multi"))
    return "|".join([family, split_by, split] if split_by else [family, split])


def _benchmark(name: str) -> Benchmark:
    """How a benchmark is asked and scored follows from its family."""
    family = name.partition("|")[0]
    rule: Rule = "matched"
    protocols: tuple[Protocol, ...] = ("generate", "teacher_forced", "named")
    if family == "grefcoco":
        # A true answer has a token group for what is not there, too. So has one that names it: "no target" is then an
        # empty mask, which is not the official rule but comparable with those who read it at a given place.
        rule, protocols = "generalized", ("generate", "named")
    elif family in _REFERRING or family == "ReasonSeg":
        rule, protocols = "referring", ("teacher_forced", "generate", "named")  # the release feeds the answer in
    return Benchmark(name, _JOINED.get(name, (name,)), rule, protocols, published(name))


def _shown() -> str:
    short = {full: name for name, full in _SHORT_NAMES.items() if full == _MUSE}
    families = [f"{short.get(family, family)} ({', '.join(splits)})" for family, splits in _SPLITS.items()]
    return f"paper, {CUSTOM}FILE, and, as FAMILY or FAMILY|SPLIT, {', '.join(families)}"
