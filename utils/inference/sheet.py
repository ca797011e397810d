"""A page with all answers: pictures, questions, and words in the colors of their masks. No torch.

Answers, questions and file names are text of strangers: the template escapes whatever it is given.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from model.drawing import PALETTE, Color
from model.files import write_text

from .formats import by_photo
from .predictions import Prediction
from .questions import Question

_DARK = 140  # luma below which white letters are read on a color


class Piece(NamedTuple):
    """A part of an answer.

    Attributes:
        text: words, or the number of a target.
        target: whose words they are; None of words between.
        is_number: it stands where the tokens of the target stand.
    """

    text: str
    target: int | None = None
    is_number: bool = False


def write_sheet(path: Path, predictions: Sequence[Prediction], questions: Sequence[Question], *, model: str) -> None:
    """Write the page of an output folder, beside the pictures that it shows.

    Raises:
        InputError: if it cannot be written.
    """
    templates = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    photos = [
        {"name": question.image, "answers": [_shown(one) for one in answers]}
        for question, answers in by_photo(predictions, questions)
    ]
    counts = {
        "images": len(photos),
        "questions": len(predictions),
        "targets": sum(len(one.get("targets", [])) for one in predictions),
        "failed": sum("error" in one for one in predictions),
    }
    page = environment.get_template("sheet.html").render(
        photos=photos, counts=counts, model=model, colors=[_css(color) for color in PALETTE]
    )
    write_text(path, page)


def pieces(numbered: str, phrases: Sequence[str]) -> Iterator[Piece]:
    """Cut an answer where its targets are named.

    Args:
        numbered: the answer, with ``[0]`` in place of the first target.
        phrases: of the targets; each is looked for in the words before its number.
    """
    for number, phrase in enumerate(phrases):
        words, mark, rest = numbered.partition(f"[{number}]")
        if not mark:
            break
        numbered = rest
        before, found, after = words.rpartition(phrase) if phrase else (words, "", "")
        yield from (piece for piece in (Piece(before), Piece(found, number), Piece(after)) if piece.text)
        yield Piece(str(number), number, is_number=True)
    if numbered:
        yield Piece(numbered)


def _shown(one: Prediction) -> dict[str, Any]:
    """What the template shows of an answer."""
    prompt, targets = one["prompt"], one.get("targets", [])
    height, width = one.get("size", [0, 0])
    return {
        "prompt": prompt if isinstance(prompt, str) else ", ".join(prompt),
        "error": one.get("error"),
        "reason": one.get("reason"),
        "overlay": _address(one.get("overlay", "")),
        "thumbnail": _address(one.get("thumbnail", "")),
        "pieces": list(pieces(one.get("numbered", ""), [target["phrase"] for target in targets])),
        "targets": [
            {
                "phrase": target["phrase"] or "(no words)",
                "share": target["area"] / max(1, height * width),
                "score": target["score"],
            }
            for target in targets
        ],
    }


def _address(name: str) -> str:
    """A file of the output folder as a link; its name may be in any bytes."""
    return quote(os.fsencode(name))


def _css(color: Color) -> dict[str, str]:
    """A color, and that of letters on it."""
    luma = sum(part * share for part, share in zip(color, (0.299, 0.587, 0.114), strict=True))
    return {"fill": "#{:02x}{:02x}{:02x}".format(*color), "ink": "#fff" if luma < _DARK else "#232328"}
