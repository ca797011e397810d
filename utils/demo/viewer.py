"""The component that draws picture, masks and words together in the browser. Plain scripts; nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.drawing import PALETTE, ink_on

if TYPE_CHECKING:
    import gradio as gr

ASSETS = Path(__file__).with_name("assets")
SCRIPTS = ("masks.js", "picture.js", "words.js", "inputs.js", "python.js", "viewer.js")  # the last one runs the others
NOTHING = {"photo": None, "turns": [], "notice": None}


def make_viewer(
    *, examples: Sequence[Mapping[str, Any]], limits: Mapping[str, Any], model: str = "FOLDER", **options: Any
) -> gr.HTML:
    """The viewer, with elem_id "viewer", inside the ``gr.Blocks`` that is open.

    Its template holds no value, so gradio never renders it again, and what a user has hidden, pinned, renamed or typed
    outlives every update. The value reaches the scripts by ``watch``.

    Args:
        examples: each {"url": picture as a data URI or an address of this server, "question": text}.
        limits: {"question": characters, "upload_mb": megabytes, "side": pixels of the longer side}, None or absent
            for no limit; and {"opacity": share of the color in a tinted pixel, "threshold": probability} to begin with.
        model: what "Copy as Python" loads.
        options: of ``gr.HTML``, such as ``value``.
    """
    import gradio as gr

    def text(name: str) -> str:
        return (ASSETS / name).read_text(encoding="utf-8")

    return gr.HTML(
        value=options.pop("value", NOTHING),
        elem_id="viewer",
        html_template=text("viewer.html"),
        head=f"<style>{text('viewer.css')}</style>",
        js_on_load="\n".join(map(text, SCRIPTS)),
        apply_default_css=False,
        palette=[(color, f"rgb{ink_on(color)}") for color in PALETTE],
        examples=[dict(example) for example in examples],
        limits=dict(limits),
        model=model,
        file=None,
        **options,
    )
