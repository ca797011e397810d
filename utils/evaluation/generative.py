"""Generative evaluation: the model answers freely, and its masks are matched with the true ones.

Protocol. Of every image the model is asked each question once, greedily, without seeing any part of the answer.
The masks of a reply are paired one to one with the true masks of the question (``matching``); all pairs count the same
in gIoU (``metrics``). This is the paper's MUSE evaluation without its last step, in which GPT-3.5 reads the answer and
may set the intersection of a pair to 0. Published ReasonSeg and RefCOCO numbers are teacher-forced: the answer with its
token groups is given to the model. They must not be compared with numbers of this protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
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
_BATCH_SIZE = 16  # questions about a photo that are answered together


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
    shard: tuple[int, int] = (0, 1),
) -> EvaluationResult:
    """Ask every question of a validation set and score the masks of the replies.

    Args:
        limit: images to use, from the start; default all.
        progress: show a bar on stderr.
        shard: (rank, number of processes); ``gather`` puts the parts together.
    Raises:
        InputError: from any sample, which it names: evaluation never skips one.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit is {limit}; give at least 1, or leave it out to evaluate everything")
    rank, num_shards = shard
    indices = range(rank, min(len(source), limit or len(source)), num_shards)
    records: list[QuestionRecord] = []
    for index in tqdm(indices, desc=source.name, disable=not progress):
        records.extend(evaluate_image(predictor, source, index=index, max_new_tokens=max_new_tokens))
    return EvaluationResult(source.name, tuple(records), max_new_tokens)


def gather(part: EvaluationResult) -> EvaluationResult:
    """The whole result on every process, each of which evaluated its shard."""
    return EvaluationResult.join(dist.gather_objects(part))


def evaluate_image(predictor: Predictor, source: Source, *, index: int, max_new_tokens: int) -> list[QuestionRecord]:
    """Ask every question about one image.

    Raises:
        InputError: if the sample cannot be used; the message names it.
    """
    name = f"sample {index} of {source.name}"
    try:
        sample = get_sample(source, index)
        name = sample.sample_id
        photo = read_photo(sample)
        turns = [turn for (turn,) in sample.conversations]  # a question stands alone; else the source has a bug
        requests = [(photo, turn.question) for turn in turns]
        # Scores are to be the same in every run, even if the model is set to draw its words.
        replies = predictor.ask_batch(requests, batch_size=_BATCH_SIZE, max_new_tokens=max_new_tokens, temperature=0.0)
    except InputError as err:
        raise InputError(f"{name}: {err}") from err
    return [
        _record(sample, turn, reply, index=index, conversation=conversation)
        for conversation, (turn, reply) in enumerate(zip(turns, replies, strict=True))
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
