"""Generative evaluation: the model answers freely, and its masks are matched with the true ones.

Protocol. Of every image the model is asked each question once, greedily, without seeing any part of the answer.
The masks of a reply are paired one to one with the true masks of the question (``matching``); all pairs count the same
in gIoU (``metrics``). This is the paper's MUSE evaluation without its last step, in which GPT-3.5 reads the answer and
may set the intersection of a pair to 0. Published ReasonSeg and RefCOCO numbers are teacher-forced: the answer with its
token groups is given to the model. They must not be compared with numbers of this protocol.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from tqdm import tqdm

from model.errors import InputError
from model.replies import Reply
from model.rle import encode_rle
from utils import dist
from utils.data.encode import read_photo
from utils.data.records import RawSample, Turn
from utils.data.sources import Source

from .matching import match_masks
from .results import EvaluationResult, QuestionRecord

MAX_NEW_TOKENS = 512  # of an answer, where nobody says otherwise
BATCH_SIZE = 16  # questions that are answered together, where nobody says otherwise


class Predictor(Protocol):
    """What is evaluated: model.predictor.PixelLMPredictor, or anything that answers like it."""

    def ask_batch(
        self,
        requests: Sequence[tuple[np.ndarray, str]],
        *,
        batch_size: int,
        max_new_tokens: int,
        temperature: float,
    ) -> list[Reply]:
        """Answer questions, without image mark, about (H, W, 3) uint8 RGB photos."""
        ...


def evaluate_generative(
    predictor: Predictor,
    source: Source,
    *,
    limit: int | None = None,
    progress: bool = True,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
    shard: tuple[int, int] = (0, 1),
) -> EvaluationResult:
    """Ask every question of a validation set and score the masks of the replies.

    Args:
        limit: images to use, from the start; default all.
        progress: show a bar on stderr.
        batch_size: questions that are answered together.
        shard: (rank, number of processes); ``gather`` puts the parts together.
    Raises:
        InputError: from any sample, which it names: evaluation never skips one.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit is {limit}; give at least 1, or leave it out to evaluate everything")
    rank, num_shards = shard
    indices = range(rank, min(len(source), limit or len(source)), num_shards)
    of_images = evaluate_images(predictor, source, indices, max_new_tokens=max_new_tokens, batch_size=batch_size)
    shown = tqdm(of_images, total=len(indices), desc=source.name, disable=not progress)
    return EvaluationResult(source.name, tuple(itertools.chain.from_iterable(shown)), max_new_tokens)


def gather(part: EvaluationResult) -> EvaluationResult:
    """The whole result on every process, each of which evaluated its shard."""
    return EvaluationResult.join(dist.gather_objects(part))


def evaluate_images(
    predictor: Predictor, source: Source, indices: Iterable[int], *, max_new_tokens: int, batch_size: int = BATCH_SIZE
) -> Iterator[list[QuestionRecord]]:
    """Ask every question about some images; yields the records of one image after another.

    Questions of several images are answered together: few are about the same one.

    Raises:
        InputError: if a sample cannot be used; the message names it.
    """
    waiting: list[_Opened] = []
    for index in indices:
        opened = _open(source, index)
        if waiting and sum(len(one.turns) for one in [*waiting, opened]) > batch_size:
            yield from _answer(predictor, waiting, max_new_tokens=max_new_tokens, batch_size=batch_size)
            waiting = []
        waiting.append(opened)
    yield from _answer(predictor, waiting, max_new_tokens=max_new_tokens, batch_size=batch_size)


@dataclass(frozen=True)
class _Opened:
    """A sample to be asked about."""

    index: int
    sample: RawSample
    photo: np.ndarray
    turns: list[Turn]


def _open(source: Source, index: int) -> _Opened:
    name = f"sample {index} of {source.name}"
    try:
        sample = get_sample(source, index)
        name = sample.sample_id
        turns = [turn for (turn,) in sample.conversations]  # a question stands alone; else the source has a bug
        return _Opened(index, sample, read_photo(sample), turns)
    except InputError as err:
        raise InputError(f"{name}: {err}") from err


def _answer(
    predictor: Predictor, opened: Sequence[_Opened], *, max_new_tokens: int, batch_size: int
) -> Iterator[list[QuestionRecord]]:
    requests = [(one.photo, turn.question) for one in opened for turn in one.turns]
    try:
        # Scores are to be the same in every run, even if the model is set to draw its words.
        replies = iter(
            predictor.ask_batch(requests, batch_size=batch_size, max_new_tokens=max_new_tokens, temperature=0.0)
        )
    except InputError as err:
        if len(opened) == 1:
            raise InputError(f"{opened[0].sample.sample_id}: {err}") from err
        for one in opened:  # which of them is it?
            yield from _answer(predictor, [one], max_new_tokens=max_new_tokens, batch_size=batch_size)
        return
    for one in opened:
        yield [
            _record(one.sample, turn, next(replies), index=one.index, conversation=conversation)
            for conversation, turn in enumerate(one.turns)
        ]


def get_sample(source: Source, index: int) -> RawSample:
    """The same sample in every run, in any process, and again for the pictures."""
    return source.get(index, np.random.default_rng(index))


def _record(sample: RawSample, turn: Turn, reply: Reply, *, index: int, conversation: int) -> QuestionRecord:
    true = sample.masks[list(turn.targets)]
    predicted = np.zeros((len(reply.targets), *sample.masks.shape[1:]), dtype=bool)
    for row, target in zip(predicted, reply.targets, strict=True):
        row[:] = target.mask.cpu().numpy()
    counts = True if sample.ignore is None else ~sample.ignore
    return QuestionRecord(
        index=index,
        conversation=conversation,
        sample_id=sample.sample_id,
        question=turn.question,
        answer=reply.text,
        numbered=reply.numbered(),
        reason=reply.reason,
        pairs=match_masks(predicted & counts, true & counts),
        predictions=tuple(encode_rle(mask) for mask in predicted),
    )
