"""A page with all answers: pictures, questions, and words in the colors of their masks. No torch.

Answers, questions and file names are text of strangers: the template escapes whatever it is given.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from model.drawing import PALETTE, Color, ink_on
from model.files import write_text

from .formats import by_photo
from .predictions import Prediction
from .questions import Question
from .words import pieces


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
    return {"fill": _hex(color), "ink": _hex(ink_on(color))}


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
