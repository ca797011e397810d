"""Questions that are asked in several ways, each timed beside its floor, on a network of random weights."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from model.configuration import PRECISIONS
from model.context import Context
from model.values import Attention

from .chat_floor import Asked, Floor
from .chat_forced import ForcedPredictor
from .clock import Clock, peak, reset_peak
from .random_model import random_network

PARTS = ("tower", "prefill", "words", "groups", "lm_head", "decoder", "rest")
KINDS = 4  # of answers to several questions: three quarters to five quarters of the words, no target up to three
QUESTION = "Which of the things in this picture would you take along for a day at the sea, and why?"


@dataclass
class Case:
    """Questions that are asked in one way.

    Attributes:
        name: of its row.
        requests: with their answers.
        run: asks them.
        at_once: of the requests, in a pass of the floor; 0 if this way has none.
        seconds: of each repetition.
        parts, floor_parts: the same by part, see ``PARTS``.
        passes: of the language model.
        peak: bytes that were taken beyond what was held.
        fits: memory suffices.
    """

    name: str
    requests: list[Asked]
    run: Callable[[], object]
    at_once: int = 0
    seconds: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    floor_parts: list[dict[str, float]] = field(default_factory=list)
    passes: int = 0
    peak: int = 0
    fits: bool = True

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def floor(self) -> float:
        return statistics.median(sum(parts.values()) for parts in self.floor_parts)


class Bench:
    """A predictor of random weights, and what it is asked.

    Args:
        size: a key of ``SIZES``.
        words: of an answer.
        photo: (height, width).
        folder: for the tokenizer.
    """

    def __init__(
        self, size: str, *, words: int, photo: tuple[int, int], precision: str, device: torch.device, folder: Path,
        attention: Attention = "sdpa",
    ) -> None:  # fmt: skip
        self.device, self.dtype, self.words, self._photo = device, PRECISIONS[precision], words, photo
        self.network, tokenizer = random_network(size, folder, dtype=self.dtype, device=device, attention=attention)
        self.predictor = ForcedPredictor(self.network.eval(), tokenizer)
        self.clock = Clock(device, wall=False)
        self.floor = Floor(self.predictor, self.clock)
        self._numbers = 0

    def photo(self) -> np.ndarray:
        """One more photo of noise, (H, W, 3) uint8."""
        self._numbers += 1
        return noise(self._numbers, self._photo)

    def request(self, photo: np.ndarray, *, words: int, targets: int) -> Asked:
        """A question whose answer has so many words and targets; shorter answers have shorter questions."""
        question = " ".join(QUESTION[: 4 + 4 * words // self.words]) + f" {targets}"
        return Asked(
            photo, question, self.predictor.parts(self.predictor.teach(question, words=words, targets=targets))
        )

    def mixed(self, photos: Sequence[np.ndarray], count: int) -> list[Asked]:
        """Questions whose answers have four lengths, in turn; each photo has as many of them as any other."""
        each, kinds = count // len(photos), [number % KINDS for number in range(count)]
        return [
            self.request(
                photos[number // each], words=max(1, self.words * (9 + 2 * kind) // 12), targets=kind
            )
            for number, kind in enumerate(kinds)
        ]  # fmt: skip

    def ask(self, request: Asked, **options: Any) -> object:
        self.predictor.set_image(request.photo)
        return self.predictor.ask(request.question, **options)

    def batch(self, requests: Sequence[Asked], size: int) -> object:
        return self.predictor.ask_batch([(one.photo, one.question) for one in requests], batch_size=size)

    def first_piece(self, request: Asked) -> tuple[float, float]:
        """Seconds to the first piece of text, of a photo's first question and of a further one."""
        started = self.clock.now()
        self.predictor.set_image(request.photo)
        seconds = [started, *(self._until_first(request) for _ in range(2))]
        return seconds[1] - seconds[0], seconds[2] - seconds[1]

    def _until_first(self, request: Asked) -> float:
        for piece in self.predictor.stream(request.question):
            if piece:
                break
        return self.clock.now()

    def stream(self, request: Asked) -> object:
        self.predictor.set_image(request.photo)
        return list(self.predictor.stream(request.question))

    def generate(self, request: Asked) -> object:
        """By transformers' own loop, which takes a pass for each token; asking for logits leads there."""
        inputs = self.predictor.processor(images=request.photo, text=request.question).to(self.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        length, ids = inputs["input_ids"].shape[1], [token for part in request.parts for token in part]

        def force(written: Tensor, logits: Tensor) -> Tensor:
            place = written.shape[1] - length
            token = ids[place] if place < len(ids) else self.predictor.processor.tokenizer.eos_token_id
            return torch.full_like(logits, -torch.inf).index_fill(1, torch.tensor([token], device=logits.device), 0)

        output = self.network.generate(
            **inputs, max_new_tokens=len(ids) + 1, output_logits=True, logits_processor=LogitsProcessorList([force])
        )
        return self.predictor.processor.replies(output, [self._photo], prompt_length=length)

    @contextlib.contextmanager
    def watched(self, case: Case) -> Iterator[None]:
        """Count the passes of a way, and add what happens inside to parts of the clock."""
        network, processor, clock, read = self.network, self.predictor.processor, self.clock, Context.read

        def timed(context: Context, embeds: Tensor, *arguments: Any, **options: Any) -> Tensor:
            case.passes += 1
            writes = "words" if embeds.shape[1] == 1 else "groups"
            with clock.part(writes if self.predictor.writer.is_writing else "prefill"):
                return read(context, embeds, *arguments, **options)

        places = (
            (network, "encode_images", "tower"), (network.lm_head, "forward", "lm_head"), (network, "fuse", "decoder"),
            (network, "decode_masks", "decoder"), (processor, "on_photo", "decoder"),
        )  # fmt: skip
        endings = [clock.watch(owner, method, part) for owner, method, part in places]
        setattr(Context, "read", timed)  # noqa: B010  contexts are made and copied inside
        try:
            yield
        finally:
            setattr(Context, "read", read)  # noqa: B010
            for end in endings:
                end()

    def time(self, case: Case) -> None:
        """Once, and its floor; a way that memory does not suffice for is left out."""
        if not case.fits:
            return
        try:
            with self.watched(case):
                case.passes, held = 0, reset_peak(self.device)
                self.clock.parts, started = {}, self.clock.now()
                case.run()
                seconds = self.clock.now() - started
            case.peak = peak(self.device) - held
            case.parts.append({**self.clock.parts, "rest": seconds - sum(self.clock.parts.values())})
            case.seconds.append(seconds)
            if case.at_once:
                self._time_floor(case)
        except torch.OutOfMemoryError:
            case.fits = False

    def _time_floor(self, case: Case) -> None:
        reset_peak(self.device)  # as before: memory that went back to the system has to be fetched again
        self.clock.parts = {}
        for start in range(0, len(case.requests), case.at_once):
            self.floor.answer(case.requests[start : start + case.at_once])
        case.floor_parts.append(self.clock.parts)


def noise(number: int, photo_hw: tuple[int, int]) -> np.ndarray:
    """The photo of noise that has this number, (H, W, 3) uint8."""
    return np.random.default_rng(number).integers(0, 256, (*photo_hw, 3), dtype=np.uint8)


def measure(bench: Bench, cases: Sequence[Case], *, repeats: int) -> None:
    """Each way so often, in turn."""
    for _ in range(repeats):
        for case in cases:
            bench.time(case)
