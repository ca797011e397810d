"""A served parrot, which answers everything with one target, and photos to ask about."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from model.predictor import PixelLMPredictor
from model.serving import SharedPredictor
from utils.demo.flags import DemoConfig

SOON = 60  # seconds, in which anything comes that comes at all


@pytest.fixture(scope="session")
def config(parrot: Path) -> DemoConfig:
    return DemoConfig(version=str(parrot), precision="fp32", port=0, max_side=3000, max_pixels=4_000_000)


@pytest.fixture(scope="session")
def served(parrot: Path) -> Iterator[SharedPredictor]:
    with SharedPredictor(PixelLMPredictor.from_pretrained(parrot), keep_logits=True) as shared:
        yield shared


class Slow:
    """Answers one question at a time, and pauses in the midst of an answer until it may go on.

    Attributes:
        may_go_on: when it is clear, the language model waits in the third pass of an answer: words are there, the end
            is not.
    """

    def __init__(self, folder: Path) -> None:
        predictor = PixelLMPredictor.from_pretrained(folder)
        self.may_go_on = threading.Event()
        self._passes = 0
        predictor.model.model.register_forward_pre_hook(self._pass)
        self.shared = SharedPredictor(predictor, batch_size=1, keep_logits=True)

    def _pass(self, *_: object) -> None:
        self._passes += 1
        if self._passes == 3:
            assert self.may_go_on.wait(SOON)

    def pauses(self) -> SharedPredictor:
        self._passes = 0
        self.may_go_on.clear()
        return self.shared


@pytest.fixture(scope="session")
def slow_model(parrot: Path) -> Iterator[Slow]:
    slow = Slow(parrot)
    yield slow
    slow.may_go_on.set()
    slow.shared.close()


@pytest.fixture
def slow(slow_model: Slow) -> Iterator[Slow]:
    yield slow_model
    slow_model.may_go_on.set()


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """(90, 120, 3): a photo with a smooth gradient."""
    columns, rows = np.meshgrid(np.arange(120), np.arange(90))
    return np.stack([columns * 2, rows * 2, columns + rows], axis=-1).astype(np.uint8)


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """The folder of uploads, with nothing in it."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def jpeg(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
