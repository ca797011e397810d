"""The page's viewer without a server: its own template, styles and scripts, and a stand-in for what gradio hands them.

In the page, ``window.told`` holds what the viewer has triggered, and ``window.set(name, value)`` is Python's answer.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model.drawing import PALETTE
from utils.demo.viewer import make_viewer

GRAY, HEIGHT, WIDTH, OPACITY = 128, 240, 320, 0.3
LEFT, RIGHT, NOWHERE = (60, 120), (250, 60), (160, 220)  # points in mask 0, in mask 1, and in none
EDGE = (20, 120)  # of mask 0
LIMITS = {"question": 80, "upload_mb": 1, "side": 4000}
_PAGE = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>viewer</title>%(head)s<style>body { margin: 0; padding: 16px; color-scheme: light dark }</style>
<main id="viewer">%(html)s</main><script>
const props = %(props)s, watched = [];
window.told = [];
window.set = (name, value) => {
  props[name] = value;
  for (const [names, does] of watched) if ([names].flat().includes(name)) does();
};
const upload = async (file) => ({ path: "/uploads/" + file.name, url: "" });
Function("element", "trigger", "props", "server", "upload", "watch", %(script)s)(
  document.querySelector("main"), (name, data) => told.push([name, data]), props, {}, upload,
  (names, does) => watched.push([names, does]));
</script>"""

PIXEL = """([x, y]) => { const canvas = document.querySelector("canvas");
  window.probe ??= new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const at = [x * canvas.width / 320, y * canvas.height / 240].map(Math.floor);
  probe.drawImage(canvas, ...at, 1, 1, 0, 0, 1, 1);
  return [...probe.getImageData(0, 0, 1, 1).data].slice(0, 3); }"""


def data_uri(image: np.ndarray) -> str:
    """(H, W) gray or (H, W, 3) RGB of uint8, as a PNG."""
    pixels = image if image.ndim == 2 else image[..., ::-1]
    data = cv2.imencode(".png", pixels)[1].tobytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def target(phrase: str, probability: np.ndarray, *, score: float = 0.84) -> dict[str, Any]:
    """A target of a value, from its (H, W) probabilities."""
    gray = np.round(255 * probability).astype(np.uint8)
    return {"phrase": phrase, "score": score, "area": float((gray > 127.5).mean()), "map": data_uri(gray)}


def turn(question: str, pieces: Sequence[Sequence[Any]], targets: Sequence[Any], **told: Any) -> dict[str, Any]:
    """A turn of a value, that is done unless told otherwise."""
    state = {"kind": "ask", "status": "done", "position": None, "note": None}
    return {"question": question, "pieces": list(pieces), "targets": list(targets), **state, **told}


def rectangle(left: int, top: int, right: int, bottom: int, probability: float = 1.0) -> np.ndarray:
    map_ = np.zeros((HEIGHT, WIDTH))
    map_[top:bottom, left:right] = probability
    return map_


def shown_value() -> dict[str, Any]:
    """Two turns; in the second, a certain mask, one of 0.7, a speck, and one that is empty at 0.5."""
    star, cup = target("red star", rectangle(20, 40, 120, 200)), target("cup", rectangle(200, 20, 300, 120, 0.7))
    speck, none = target("fly", rectangle(200, 200, 204, 204)), target("", rectangle(0, 0, 20, 20, 0.3), score=0)
    pieces = [
        ["There is a ", None, False], ["red star", 0, False], [" ", None, False], ["0", 0, True],
        [", a ", None, False], ["cup", 1, False], [" ", None, False], ["1", 1, True],
        [", a ", None, False], ["fly", 2, False], [" ", None, False], ["2", 2, True],
        [" and ", None, False], ["3", 3, True],
    ]  # fmt: skip
    first = turn("What is on the right?", [["A ", None, False], ["cup", 0, False]], [cup])
    photo = np.full((HEIGHT, WIDTH, 3), GRAY, dtype=np.uint8)
    return {
        "photo": {"name": "desk.jpg", "width": 3 * WIDTH, "height": 3 * HEIGHT, "url": data_uri(photo)},
        "turns": [first, turn("What is there?", pieces, [star, cup, speck, none])],
        "notice": None,
    }


def write_viewer_page(
    file: Path, value: Mapping[str, Any], *, examples: Sequence[Any] = (), limits: Mapping[str, Any] = LIMITS
) -> None:
    """Write the page; ``value`` as of ``utils/demo/viewer.py``."""
    viewer = make_viewer(examples=examples, limits=limits, model="runs/a/hf_model")
    parts = {
        "head": viewer.head,
        "html": viewer.html_template,
        "props": _script_text({**viewer.props, "value": value}),
        "script": _script_text(viewer.js_on_load),
    }
    file.write_text(_PAGE % parts, encoding="utf-8")


def _script_text(value: Any) -> str:
    """JSON that may stand in a script."""
    return json.dumps(value).replace("<", "\\u003c")


def wait_for_color(page: Any, place: tuple[int, int], color: Any) -> None:
    """Wait until the picture has the color at a place of the photo; the browser's limit of 30 s ends the wait."""
    page.wait_for_function(
        f"([at, color]) => ({PIXEL})(at).every((part, index) => Math.abs(part - color[index]) <= 3)",
        arg=[list(place), [float(part) for part in color]],
    )


def tinted(number: int, opacity: float = OPACITY) -> np.ndarray:
    return GRAY * (1 - opacity) + np.array(PALETTE[number]) * opacity


def dimmed() -> np.ndarray:
    """The photo where nothing is lit."""
    return 0.45 * GRAY + 0.55 * np.array((10, 11, 14))
