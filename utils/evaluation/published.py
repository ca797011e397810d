"""Figures that others printed, in percent as they stand there. No torch.

The tables of the PixelLM paper were not at hand: its figures come from copies and notes, and none counts as verified.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from .records import Protocol


@dataclass(frozen=True)
class Published:
    """A figure of a table that others printed.

    Attributes:
        model: such as ``PixelLM-7B``.
        metric: a key of ``Scores``, such as ``giou``.
        value: a share, 0 to 1.
        source: where it stands, and who printed it.
        protocol: how the model was asked, by the code that belongs to the source; empty where nothing says it.
        is_verified: read in the source itself, not in a copy or a note.
        group: the questions that it counts: ``all`` of them, or another group of the row, such as ``kind short``.
    """

    model: str
    metric: str
    value: float
    source: str
    protocol: Protocol | Literal[""] = ""
    is_verified: bool = False
    group: str = "all"


@dataclass(frozen=True)
class _Table:
    """The figures of one model in one source. A key is a benchmark, and a kind of its questions if not all count."""

    model: str
    source: str
    protocol: Protocol | Literal[""]
    is_verified: bool
    giou: Mapping[str, float] = field(default_factory=dict)
    ciou: Mapping[str, float] = field(default_factory=dict)


_TABLES = (
    _Table(
        "PixelLM-7B",
        "PixelLM paper, answers judged by a language model; from notes, the table itself was not seen",
        "generate",
        is_verified=False,
        giou={
            "MultiReasonSeg|val": 42.6,
            "MultiReasonSeg|test_less": 44.6,
            "MultiReasonSeg|test_many": 37.7,
            "MultiReasonSeg|test": 39.2,
        },
        ciou={
            "MultiReasonSeg|val": 50.7,
            "MultiReasonSeg|test_less": 59.2,
            "MultiReasonSeg|test_many": 42.8,
            "MultiReasonSeg|test": 46.3,
        },
    ),
    _Table(
        "PixelLM-7B",
        "PixelLM paper, as tables of MLLMSeg, Sa2VA, UGround, Pixel-SAIL and HiMTok copy it alike",
        "teacher_forced",
        is_verified=False,
        ciou={
            "refcoco|unc|val": 73.0,
            "refcoco|unc|testA": 76.5,
            "refcoco|unc|testB": 68.2,
            "refcoco+|unc|val": 66.3,
            "refcoco+|unc|testA": 71.7,
            "refcoco+|unc|testB": 58.3,
            "refcocog|umd|val": 69.3,
            "refcocog|umd|test": 70.5,
        },
    ),
    _Table(
        "PixelLM-7B",
        "UGround paper, measured there with the published weights; from notes",
        "",
        is_verified=False,
        giou={
            "ReasonSeg|val": 49.7,
            "ReasonSeg|test": 47.1,
            "ReasonSeg|test short": 39.5,
            "ReasonSeg|test long": 49.5,
        },
        ciou={
            "ReasonSeg|val": 49.6,
            "ReasonSeg|test": 44.3,
            "ReasonSeg|test short": 38.8,
            "ReasonSeg|test long": 45.6,
        },
    ),
    _Table(
        "LISA-7B",
        "LISA paper (arXiv 2308.00692), tables 1 and 2",
        "teacher_forced",
        is_verified=True,
        giou={
            "ReasonSeg|val": 44.4,
            "ReasonSeg|test": 36.8,
            "ReasonSeg|test short": 37.6,
            "ReasonSeg|test long": 36.6,
        },
        ciou={
            "refcoco|unc|val": 74.1,
            "refcoco|unc|testA": 76.5,
            "refcoco|unc|testB": 71.1,
            "refcoco+|unc|val": 62.4,
            "refcoco+|unc|testA": 67.4,
            "refcoco+|unc|testB": 56.5,
            "refcocog|umd|val": 66.4,
            "refcocog|umd|test": 68.5,
            "ReasonSeg|val": 46.0,
            "ReasonSeg|test": 34.1,
            "ReasonSeg|test short": 34.4,
            "ReasonSeg|test long": 34.7,
        },
    ),
    _Table(
        "LISA-7B (fine-tuned on ReasonSeg)",
        "LISA paper (arXiv 2308.00692), table 1",
        "teacher_forced",
        is_verified=True,
        giou={
            "ReasonSeg|val": 52.9,
            "ReasonSeg|test": 47.3,
            "ReasonSeg|test short": 40.6,
            "ReasonSeg|test long": 49.4,
        },
        ciou={
            "ReasonSeg|val": 54.0,
            "ReasonSeg|test": 48.4,
            "ReasonSeg|test short": 40.6,
            "ReasonSeg|test long": 51.0,
        },
    ),
)


def published(benchmark: str) -> tuple[Published, ...]:
    """What is known of a benchmark, such as ``MultiReasonSeg|val``; empty if nothing is."""
    found = []
    for table in _TABLES:
        for metric, figures in (("giou", table.giou), ("ciou", table.ciou)):
            for key, percent in figures.items():
                name, _, kind = key.partition(" ")
                if name == benchmark:
                    value = round(percent / 100, 4)
                    figure = Published(table.model, metric, value, table.source, table.protocol, table.is_verified)
                    found.append(replace(figure, group=f"kind {kind}") if kind else figure)
    return tuple(found)
