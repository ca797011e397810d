"""Several users of one model at once, against the same users one after the other; answers are known beforehand."""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from model.configuration import PRECISIONS
from model.errors import InputError
from model.files import write_text
from model.outputs import check_output_file
from model.replies import Target
from model.serving import SharedPredictor, Waiting

from .chat import numbers_of, table_head, table_row
from .chat_bench import QUESTION, noise
from .chat_forced import ForcedPredictor
from .machine import describe_machine
from .random_model import random_network

_TITLES = (
    "users", "one after the other, s", "at once, s", "of one after the other", "first piece, s", "at once, s",
    "first mask, s", "at once, s",
)  # fmt: skip
_LEGEND = """\
Medians over {repeats} repetition(s), in which both ways take turns. Seconds are {clock}. Each user
has a photo of noise, gives it, and asks one question; all ask the same, and each answer has {words} words and
{targets} target(s). The first columns say how long it takes until all have their answers, with the masks. The others
say how long one user waits, from giving the photo: the median of all, each of whom finds nobody else there, and then of
all who come at once. Both ways go through `SharedPredictor`, which reads photo and dialogue with each question."""


# What one user waited for, in seconds from giving the photo: the first "piece" of text, and the first "mask" if any.
Visit = dict[str, float]


class Users:
    """A shared predictor, and those who come to it.

    Args:
        photo_hw: (H, W) of their photos.
        count: of them, at most.
    """

    def __init__(
        self, predictor: ForcedPredictor, *, words: int, targets: int, photo_hw: tuple[int, int], count: int
    ) -> None:
        predictor.teach(QUESTION, words=words, targets=targets)
        self._shared = SharedPredictor(predictor, batch_size=count, max_new_tokens=predictor.writer.longest)
        self._photos = [noise(number, photo_hw) for number in range(count)]
        # Of the processor where one thread computes, so that other load does not count; whoever waits, waits for it.
        self._now: Callable[[], float] = time.process_time
        if predictor.model.device.type == "cuda":
            self._now = time.perf_counter

    def close(self) -> None:
        self._shared.close()

    def one_after_the_other(self, count: int) -> tuple[float, list[Visit]]:
        """Seconds of them all, and what each waited for."""
        started = self._now()
        visits = [self._visit(photo, self._now()) for photo in self._photos[:count]]
        return self._now() - started, visits

    def at_once(self, count: int) -> tuple[float, list[Visit]]:
        """The same, all of whom come at the same time."""
        with ThreadPoolExecutor(count) as pool:
            started = self._now()
            visits = list(pool.map(functools.partial(self._visit, started=started), self._photos[:count]))
            return self._now() - started, visits

    def _visit(self, photo: np.ndarray, started: float) -> Visit:
        conversation = self._shared.look_at(photo)
        waited: Visit = {}
        for piece in self._shared.stream(conversation, QUESTION):
            if piece and not isinstance(piece, Waiting):
                waited.setdefault("mask" if isinstance(piece, Target) else "piece", self._now() - started)
        return waited


def users_table(users: Users, counts: Sequence[int], *, repeats: int) -> list[str]:
    """A row for each number of users."""
    found = {count: [(users.one_after_the_other(count), users.at_once(count)) for _ in range(repeats)]
             for count in counts}  # fmt: skip
    lines = table_head(_TITLES)
    for count, repetitions in found.items():
        alone, together = ([one[way] for one in repetitions] for way in (0, 1))
        seconds = [statistics.median(total for total, _ in way) for way in (alone, together)]
        cells = [str(count), *(f"{one:.3f}" for one in seconds), f"{seconds[1] / seconds[0]:.2f}"]
        for first in ("piece", "mask"):
            waited = [[one[first] for _, visits in way for one in visits if first in one] for way in (alone, together)]
            cells += [f"{statistics.median(seconds):.3f}" if seconds else "-" for seconds in waited]
        lines.append(table_row(cells, _TITLES))
    return lines


def benchmark(
    *, size: str, version: str, precision: str, photo: str, words: int, targets: int, users: str, repeats: int,
    output_md: str,
) -> None:  # fmt: skip
    """Measure, and print a table.

    Args:
        size: of random weights; not looked at with a ``version``, which names a merged model.
        photo: WIDTHxHEIGHT.
        words, targets: of each answer.
        users: numbers with commas between them.
        output_md: a file for the table.
    Raises:
        InputError: if the file cannot be written, the model cannot be read, or the answers are too long for it.
    """
    if output_md:
        check_output_file(output_md, flag="--output_md")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    width, height = map(int, photo.split("x"))
    counts, threads = numbers_of(users), torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        predictor = _predictor(size, version, precision=precision, device=device)
        check_room(predictor, words=words, targets=targets)
        several = Users(predictor, words=words, targets=targets, photo_hw=(height, width), count=max(counts))
        try:
            several.at_once(max(counts))  # what is done once
            table = users_table(several, counts, repeats=repeats)
        finally:
            several.close()
        machine = describe_machine(("torch", "transformers"))
    finally:
        torch.set_num_threads(threads)
    clock = "of the wall" if device.type == "cuda" else "of the processor, with one thread"
    work = f"{version or size}, {precision}: answers of {words} words, photos of {photo}"
    legend = _LEGEND.format(repeats=repeats, clock=clock, words=words, targets=targets)
    report = "\n".join([work, "", *table, "", legend])
    print(report)
    if output_md:
        write_text(Path(output_md), f"# Several users at once\n\n{machine}\n\n{report}\n")


def _predictor(size: str, version: str, *, precision: str, device: torch.device) -> ForcedPredictor:
    if version:
        return ForcedPredictor.from_pretrained(version, precision=precision, device=device)
    with tempfile.TemporaryDirectory() as folder:
        network, tokenizer = random_network(size, Path(folder), dtype=PRECISIONS[precision], device=device)
        return ForcedPredictor(network.eval(), tokenizer)


def check_room(predictor: ForcedPredictor, *, words: int, targets: int) -> None:
    """Hold answers to what the model reads.

    Raises:
        InputError: if they are too long.
    """
    length = len(predictor.processor.prompt_ids(QUESTION)) + words + targets * predictor.model.codebook.size + 1
    longest = predictor.writer.longest
    if length > longest:
        raise InputError(
            f"question and answer have {length} tokens with the image, but the model reads at most {longest}; take "
            "fewer --words or --targets"
        )
