"""The page of scripts/demo.py with a model that says one sentence, served from this process, and photos for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from model.predictor import PixelLMPredictor
from model.serving import SharedPredictor
from utils.demo.flags import DemoConfig
from utils.demo.serve import Prepared, running

from .viewer_page import HEIGHT, WIDTH

SOON = 60  # seconds, in which anything comes that comes at all
FIELD = 80  # pixels of the side of a field of a photo: whole blocks of JPEG, which keeps their colors
QUESTION_LIMIT = 60


class Gate:
    """Holds the language model before its next pass while it is closed."""

    def __init__(self, predictor: PixelLMPredictor) -> None:
        self._open = threading.Event()
        self._open.set()
        predictor.model.model.register_forward_pre_hook(self._pass)

    def _pass(self, *_: object) -> None:
        assert self._open.wait(SOON)

    @contextmanager
    def closed(self) -> Iterator[None]:
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()


@contextmanager
def serve_demo(folder: Path, *, uploads: Path, batch_size: int = 1, **limits: Any) -> Iterator[tuple[str, Gate]]:
    """Serve the page of a merged model; gives its address.

    Args:
        uploads: where uploaded files go.
        batch_size: questions that are answered at a time.
        limits: flags.
    """
    predictor = PixelLMPredictor.from_pretrained(folder)
    gate = Gate(predictor)
    config = DemoConfig(version=str(folder), precision="fp32", port=0, max_question=QUESTION_LIMIT, **limits)
    shared = SharedPredictor(predictor, batch_size=batch_size, keep_logits=True)
    with pytest.MonkeyPatch.context() as environment:
        for name in ("GRADIO_TEMP_DIR", "NO_PROXY", "no_proxy"):  # which the server sets
            environment.setenv(name, str(uploads) if name == "GRADIO_TEMP_DIR" else "127.0.0.1")
        with running(Prepared(shared, config, [], None)) as url:
            yield url, gate


def make_photo(seed: int) -> np.ndarray:
    """(240, 320, 3) uint8 RGB: fields of one color each."""
    fields = np.random.default_rng(seed).integers(0, 256, (HEIGHT // FIELD, WIDTH // FIELD, 3), dtype=np.uint8)
    return fields.repeat(FIELD, axis=0).repeat(FIELD, axis=1)


def save_photo(photo: np.ndarray, file: Path) -> Path:
    cv2.imwrite(str(file), photo[..., ::-1])
    return file


def places(mask: np.ndarray, *, count: int = 6) -> list[tuple[int, int]]:
    """(x, y) of pixels that are surrounded by pixels of the mask and of one field; some, always the same."""
    margin = np.zeros(mask.shape, dtype=bool)
    for edge in range(0, max(mask.shape) + 1, FIELD):
        margin[max(0, edge - 6) : edge + 6] = margin[:, max(0, edge - 6) : edge + 6] = True
    inside = cv2.erode(mask.astype(np.uint8), np.ones((13, 13), np.uint8), borderValue=0).astype(bool) & ~margin
    rows, columns = np.nonzero(inside)
    chosen = np.random.default_rng(0).permutation(len(rows))[:count]
    assert len(chosen) == count, "the mask has an inside"
    return [(int(columns[one]), int(rows[one])) for one in chosen]
