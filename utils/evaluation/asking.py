"""The questions of a benchmark, put to a model in one of three protocols.

``generate``: each question is asked once, greedily, without any part of the answer. It is the paper's way on MUSE.
``teacher_forced``: question and true answer, with its token groups, are read in one pass, and predicted mask j belongs
to true mask j. It is the release's way on referring sets and ReasonSeg.
``named``: the same with an answer that gives the names of the true objects, so that only the masks are the model's.

Numbers of different protocols must not be compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from model.errors import InputError
from model.replies import Reply
from model.rle import encode_rle
from utils.data.encode import read_photo
from utils.data.records import RawSample, Turn
from utils.data.sources import Source
from utils.masks.rle import RunLengths

from .questions import get_sample, look_through, question_of
from .records import Protocol as Way
from .records import QuestionRecord

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

    def masks_batch(self, requests: Sequence[tuple[np.ndarray, str, str]], *, batch_size: int) -> list[Reply]:
        """The masks of answers that are given, one for each ``{seg}``."""
        ...

    def segment_batch(self, requests: Sequence[tuple[np.ndarray, Sequence[str]]], *, batch_size: int) -> list[Reply]:
        """The masks of named things."""
        ...


@dataclass(frozen=True)
class Asked:
    """A question about a photo that is open.

    Attributes:
        index, conversation: as of ``QuestionRecord``.
        photo: (H, W, 3) uint8 RGB; the same object for all questions about it.
    """

    index: int
    conversation: int
    sample: RawSample
    photo: np.ndarray
    turn: Turn


def ask(
    predictor: Predictor,
    source: Source,
    indices: Iterable[int],
    *,
    protocol: Way = "generate",
    name: str = "",
    done: Collection[tuple[str, str, int, int]] = (),
    batch_size: int = BATCH_SIZE,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[QuestionRecord]:
    """Ask all questions about some photos of a set together.

    Args:
        name: of the set, for the records; the source's own by default.
        done: keys of questions that are not asked again.
        batch_size: questions that the model answers at once.
        max_new_tokens: longest answer; of ``generate`` alone.
    Raises:
        InputError: from any sample, which it names: evaluation never skips one.
    """
    name = name or source.name
    asked = [
        one
        for index in indices
        for one in _open(source, index)
        if (name, protocol, one.index, one.conversation) not in done
    ]
    replies = _answer(predictor, asked, protocol, batch_size=batch_size, max_new_tokens=max_new_tokens)
    return [_record(one, reply, name, protocol) for one, reply in zip(asked, replies, strict=True)]


def ask_all(
    predictor: Predictor,
    source: Source,
    *,
    limit: int = 0,
    batch_size: int = BATCH_SIZE,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[QuestionRecord]:
    """Let the model answer every question of a set, in one process.

    Args:
        limit: photos, from the start of the set; 0 takes all.
    Raises:
        InputError: as ``ask``.
    """
    return [
        record
        for batch in look_through(source, source.name, limit=limit).batches(batch_size)
        for record in ask(predictor, source, batch, batch_size=batch_size, max_new_tokens=max_new_tokens)
    ]


def _open(source: Source, index: int) -> list[Asked]:
    name = f"sample {index} of {source.name}"
    try:
        sample = get_sample(source, index)
        name = sample.sample_id
        photo = read_photo(sample)
    except InputError as err:
        raise InputError(f"{name}: {err}", reason=err.reason) from err
    turns = map(question_of, sample.conversations)
    return [Asked(index, conversation, sample, photo, turn) for conversation, turn in enumerate(turns)]


def _answer(
    predictor: Predictor, asked: Sequence[Asked], protocol: Way, *, batch_size: int, max_new_tokens: int
) -> list[Reply]:
    options: dict[str, Any] = {"batch_size": batch_size}
    try:
        if protocol == "teacher_forced":
            return predictor.masks_batch([(one.photo, one.turn.question, one.turn.answer) for one in asked], **options)
        if protocol == "named":
            named = [one for one in asked if one.turn.targets]
            replies = iter(predictor.segment_batch([(one.photo, _names(one)) for one in named], **options))
            return [next(replies) if one.turn.targets else _nothing_named() for one in asked]
        # Scores are to be the same in every run, even if the model is set to draw its words.
        options |= {"max_new_tokens": max_new_tokens, "temperature": 0.0}
        return predictor.ask_batch([(one.photo, one.turn.question) for one in asked], **options)
    except InputError as err:
        if len(asked) == 1:
            raise InputError(f"{asked[0].sample.sample_id}: {err}", reason=err.reason) from err
        for one in asked:  # which of them is it?
            _answer(predictor, [one], protocol, batch_size=1, max_new_tokens=max_new_tokens)
        raise


def _names(one: Asked) -> tuple[str, ...]:
    if not all(name.strip() for name in one.turn.names or ("",)):
        raise InputError(
            f"{one.sample.sample_id}: question {one.conversation} has a target without a name, which --protocol named "
            "gives; take generate or teacher_forced"
        )
    return one.turn.names


def _nothing_named() -> Reply:
    return Reply("", [], [], "[SEG]", "the question has no target to name")


def _record(one: Asked, reply: Reply, name: str, protocol: Way) -> QuestionRecord:
    sample, turn = one.sample, one.turn
    predicted = reply.masks(sample.masks.shape[1:])
    return QuestionRecord(
        benchmark=name,
        protocol=protocol,
        index=one.index,
        conversation=one.conversation,
        sample_id=sample.sample_id,
        image=str(sample.image_path),
        upright=sample.upright,
        size=sample.masks.shape[1:],
        question=turn.question,
        kind=turn.kind,
        has_target=turn.has_target,
        names=turn.names or ("",) * len(turn.targets),
        true_masks=tuple(_run_lengths(sample.masks[target]) for target in turn.targets),
        ignored=None if sample.ignore is None else _run_lengths(sample.ignore),
        answer=reply.text,
        numbered=reply.numbered(),
        reason=reply.reason,
        phrases=tuple(target.phrase for target in reply.targets),
        confidences=tuple(min(target.score, 1.0) for target in reply.targets),
        predictions=tuple(map(_run_lengths, predicted)),
    )


def _run_lengths(mask: np.ndarray) -> RunLengths:
    return cast(RunLengths, encode_rle(mask))
