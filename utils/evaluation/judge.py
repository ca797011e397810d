"""The text judgment of MUSE, as in the paper: does each mask show what the words of the answer say? No torch.

In every answer, each token group is replaced by "(name [x1, y1, x2, y2])": the name of the true object that the mask
was matched with, and the box around the mask. A language model gives each mask a score from 0 to 1 for whether that
name is right in the answer. ``utils/evaluation/scores.py`` takes the intersection from pairs at or below a threshold.
The paper has this step and the release does not, so the wording is our own.

A question that cannot be judged is listed with the reason, and asked again by the next run. No verdict is applied to
it: it scores as without a judge, and every result counts it (``num_unjudged``).

Shapes: P predicted masks, H, W size of the photo.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
from pydantic import ConfigDict, Field, create_model
from tqdm import tqdm
from typing_extensions import TypedDict

from model.files import is_file, parse_json, read_bytes, write_bytes
from model.values import NonNegativeInt, Schema, Share, Text
from utils.llm.budget import Budget
from utils.llm.client import LanguageModel, Message, Reply, Request
from utils.llm.connection import Endpoint
from utils.llm.replies import ReplyType

from .judge_flags import JUDGE_CACHE, Judge
from .matching import EMPTY, match_masks
from .records import QuestionRecord

logger = logging.getLogger(__name__)

VERDICTS = "verdicts.jsonl"
UNMATCHED = "nothing that was asked for"
_REMEDY = f"remove {VERDICTS}, and judge again"
_REPLY_TOKENS, _TOKENS_PER_MASK = 2048, 16  # room for models that think aloud, and for a score

INSTRUCTION = """\
You check whether the answer to a question about a photo points at the right things. You do not see the photo.

Whoever answered also marked things in the photo. Where the answer marks one, it reads (name [x1, y1, x2, y2]). \
The name says what the mark really covers; it does not come from whoever answered. The numbers are the box around the \
mark in pixels: left, top, right and bottom. A mark that covers none of the things asked for has the name "{unmatched}".

Give every mark a score from 0 to 1. It is 1 if the words of the answer at this place speak of the very thing that \
the name says, and 0 if they speak of another one. Other words for one thing are right. Another kind, number, place or \
role of the thing is wrong. Take the question and the whole answer into account.

The photo is {width} pixels wide and {height} pixels high.

Question: {question}

Answer: {answer}

Marks, in the order of the answer:
{marks}

Reply with a JSON object and nothing else: {{"scores": [...]}} with {count} in the order of the marks."""

Key = tuple[str, str, int, int]


class _Line(TypedDict):
    """Of verdicts.jsonl: a question with a score for each of its masks, or with the reason why there is none.

    ``asked`` is the digest of what the model was asked; empty if it was not.
    """

    key: Annotated[list[Text | NonNegativeInt], Field(min_length=4, max_length=4)]
    model: Text
    asked: Text
    verdicts: NotRequired[list[Share]]
    error: NotRequired[Text]


_LINE = Schema(_Line)


class Unjudgeable(Exception):
    """The question cannot be put to a judge."""


def judge_rows(folder: Path, records: Sequence[QuestionRecord], judge: Judge) -> None:
    """Have answers judged, and write ``verdicts.jsonl`` in the folder; what the same judge has judged there is kept.

    Judged are answers of the protocol ``generate`` with at least one mask. Lines about other records stay.

    Raises:
        InputError: if the endpoint is not there or refuses the key or the model, and for a damaged file.
    """
    endpoint = Endpoint(
        judge.url, judge.model, timeout=judge.timeout, tries=judge.tries, first_pause=judge.first_pause,
        concurrency=judge.concurrency,
    )  # fmt: skip
    budget = Budget(judge.ceiling, prices=judge.prices)
    model = LanguageModel(endpoint, budget=budget, cache=judge.cache or folder / JUDGE_CACHE)
    lines = {_key(line): line for line in _read(folder)}
    waiting: list[tuple[Request, _Line]] = []
    for record in records:
        known = lines.pop(record.key, None)  # a run that is stopped leaves no verdict about another answer
        if not is_judged(record):
            continue
        line: _Line = {"key": list(record.key), "model": judge.model, "asked": ""}
        try:
            request = make_request(record)
        except Unjudgeable as err:
            lines[record.key] = {**line, "error": str(err)}
            continue
        line["asked"] = model.digest(request)
        if known and "verdicts" in known and known["asked"] == line["asked"]:
            lines[record.key] = known
        else:
            waiting.append((request, line))
    _write(folder, lines)  # without a torn end
    num_cached = 0
    replies = model.ask_all([request for request, _ in waiting])
    with (folder / VERDICTS).open("ab") as file:
        for number, reply in tqdm(replies, total=len(waiting), desc="judge", unit="question", disable=None):
            line = _with_reply(waiting[number][1], reply)
            lines[_key(line)] = line
            num_cached += reply.is_cached
            file.write(_text([line]))
            file.flush()
    _write(folder, lines)
    judged = [record.key for record in records if is_judged(record)]
    failed = sum("error" in lines[key] for key in judged)
    logger.log(
        logging.WARNING if failed else logging.INFO,
        "judge %s: %d questions judged, %d failed (see %s), %d from the cache; %s",
        *(judge.model, len(judged) - failed, failed, folder / VERDICTS, num_cached, budget.show_spent()),
    )


def is_judged(record: QuestionRecord) -> bool:
    """Whether there is something to judge: masks of an answer that the model wrote itself."""
    return record.protocol == "generate" and record.num_predicted > 0


def read_verdicts(folder: Path) -> dict[Key, tuple[float, ...]] | None:
    """(P,) scores from 0 to 1 of the questions that were judged; None if nobody judged.

    Raises:
        InputError: for a damaged file.
    """
    lines = _read(folder)
    return {_key(line): tuple(line["verdicts"]) for line in lines if "verdicts" in line} if lines else None


def judged_by(folder: Path, records: Sequence[QuestionRecord]) -> str:
    """The model that judged the answers of a row, for ``ScoredRow.judge``; ``none`` if nobody did.

    Raises:
        InputError: for a damaged file.
    """
    keys = {record.key for record in records}
    return ", ".join(sorted({line["model"] for line in _read(folder) if _key(line) in keys})) or "none"


def make_request(record: QuestionRecord) -> Request:
    """What the model is asked about an answer with P > 0 masks.

    Raises:
        Unjudgeable: if the data do not name what a mask covers.
    """
    marks = _marks(record)
    content = INSTRUCTION.format(
        unmatched=UNMATCHED,
        height=record.size[0],
        width=record.size[1],
        question=record.question,
        answer=rewrite(record.numbered, marks),
        marks="\n".join(f"{number}. {mark}" for number, mark in enumerate(marks, start=1)),
        count="1 number" if len(marks) == 1 else f"{len(marks)} numbers",
    )
    message: Message = {"role": "user", "content": content}
    return Request((message,), _REPLY_TOKENS + _TOKENS_PER_MASK * len(marks), _reply_type(len(marks)))


def rewrite(numbered: str, marks: Sequence[str]) -> str:
    """The answer with a mark in the place of each number: ``[0]``, then ``[1]`` behind it, and so on.

    Raises:
        Unjudgeable: if a number is not there.
    """
    parts, rest = [], numbered
    for number, mark in enumerate(marks):
        before, found, rest = rest.partition(f"[{number}]")
        if not found:
            raise Unjudgeable(f"the answer does not name mask {number}")
        parts += [before, mark]
    return "".join([*parts, rest])


def _marks(record: QuestionRecord) -> list[str]:
    """``(name [x1, y1, x2, y2])`` of every predicted mask; x2 and y2 are the first column and row behind it."""
    predicted, true = record.masks()
    pairs = match_masks(predicted, true)
    names = [UNMATCHED] * len(predicted)
    for pred, true_index, common in zip(pairs.pred_index, pairs.true_index, pairs.intersection, strict=True):
        if EMPTY in (pred, true_index) or not common:
            continue  # a name of what it does not even touch would mislead, and there is nothing to lose
        names[pred] = record.names[true_index].strip()
        if not names[pred]:
            raise Unjudgeable(f"the data have no name for true mask {true_index}, which mask {pred} was matched with")
    return [f"({name} {_box(mask)})" for name, mask in zip(names, predicted, strict=True)]


def _box(mask: np.ndarray) -> list[int]:
    """[x1, y1, x2, y2] of a (H, W) mask; zeros if it is empty."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1] if len(rows) else [0, 0, 0, 0]


def _reply_type(count: int) -> ReplyType:
    scores: Any = (Annotated[list[Share], Field(min_length=count, max_length=count)], ...)
    return ReplyType(create_model("Scores", __config__=ConfigDict(extra="forbid"), scores=scores), name="scores")


def _with_reply(line: _Line, reply: Reply) -> _Line:
    return {**line, "error": reply.error} if reply.error else {**line, "verdicts": reply.value["scores"]}


def _key(line: _Line) -> Key:
    benchmark, protocol, index, conversation = line["key"]
    return str(benchmark), str(protocol), int(index), int(conversation)


def _read(folder: Path) -> list[_Line]:
    """The whole lines; one without its end was torn when its process was killed."""
    file = folder / VERDICTS
    if not is_file(file):
        return []
    texts = read_bytes(file, remedy=_REMEDY).split(b"\n")[:-1]
    places = [f"{file}:{number}" for number in range(1, len(texts) + 1)]
    return [
        _LINE.check(parse_json(text, where=where, remedy=_REMEDY), where=where, remedy=_REMEDY)
        for text, where in zip(texts, places, strict=True)
    ]


def _write(folder: Path, lines: dict[Key, _Line]) -> None:
    write_bytes(folder / VERDICTS, _text([lines[key] for key in sorted(lines)]))


def _text(lines: Sequence[_Line]) -> bytes:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8", "backslashreplace")
