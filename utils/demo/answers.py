"""A question of a visitor, answered piece by piece into the session. One at a time; a stopped one frees its place."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from model.errors import InputError
from model.replies import Reply, Target
from model.serving import SharedPredictor, Waiting
from model.values import is_encodable

from .flags import DemoConfig
from .session import Running, Session, ShownTarget, Turn

logger = logging.getLogger(__name__)

_EVERY = 0.05  # seconds between two updates of the page that can wait
_MOST_NAMES = 50
_MOST_TURNS = 100  # that are kept on the page
_begin = threading.Lock()


def ask(session: Session, shared: SharedPredictor, question: Any, kind: Any, config: DemoConfig) -> Iterator[bool]:
    """Answer a question, or give the masks of names, into a new turn of the session.

    What cannot be asked becomes the session's notice.

    Args:
        question: what the browser sent, which is not trusted.
        kind: ``ask`` or ``names``.
    Yields:
        whenever the session has changed: whether it should be seen at once. The last one is.
    """
    running = Running()
    try:
        text = checked_question(question, config)
        turn = Turn(text, "names" if kind == "names" else "ask")
        _take_place(session, running, turn)
    except InputError as err:
        session.notice = ("error", str(err))
        yield True
        return
    try:
        yield True
        yield from _write(session, shared, turn, running, config)
    finally:
        if session.running is running:
            session.running = None
    yield True


def throttled(changes: Iterable[bool]) -> Iterator[None]:
    """Some of the changes: those that should be seen at once, and others about twenty times a second."""
    last = float("-inf")
    for at_once in changes:
        if at_once or time.monotonic() - last >= _EVERY:
            yield
            last = time.monotonic()


def checked_question(question: Any, config: DemoConfig) -> str:
    """The question without the spaces around it.

    Raises:
        InputError: if it is no text, empty or longer than allowed.
    """
    text = question.strip() if isinstance(question, str) else ""
    if not text or not is_encodable(text):
        raise InputError("there is no question; type one")
    if len(text) > config.max_question:
        raise InputError(
            f"the question has {len(text):,} characters, and this page takes {config.max_question:,} at most; "
            "shorten it"
        )
    return text


def names_in(text: str) -> list[str]:
    """Names of things, one per line or with commas between them.

    Raises:
        InputError: if there is none, or more than 50.
    """
    names = [name.strip() for name in re.split(r"[,\n]", text) if name.strip()]
    if not names:
        raise InputError("there is no name; type what to segment, with commas between the names")
    if len(names) > _MOST_NAMES:
        raise InputError(f"there are {len(names)} names, and this page takes {_MOST_NAMES} at most; ask for fewer")
    return names


def _take_place(session: Session, running: Running, turn: Turn) -> None:
    with _begin:  # two questions of one visitor may come at the same moment
        if session.photo is None or session.conversation is None:
            raise InputError("there is no photo yet; choose one first")
        if session.running is not None:
            raise InputError("one answer is still being written; wait for it, or stop it")
        session.running, session.notice = running, None
        session.turns = [*session.turns[1 - _MOST_TURNS :], turn]


def _write(
    session: Session, shared: SharedPredictor, turn: Turn, running: Running, config: DemoConfig
) -> Iterator[bool]:
    said_before = len(session.turns) > 1
    try:
        yield from _pieces(session, shared, turn, running, config)
    except InputError as err:
        hint = "; forget the dialogue to make room" if said_before and "tokens" in str(err) else ""
        turn.status, turn.note = "failed", f"{err}{hint}"
    except Exception as err:
        logger.exception("a question could not be answered")
        turn.status, turn.note = "failed", f"the answer failed ({type(err).__name__}); the server's log says more"
    finally:
        turn.position = None
        if turn.status in ("waiting", "writing"):
            turn.status = "stopped"


def _pieces(
    session: Session, shared: SharedPredictor, turn: Turn, running: Running, config: DemoConfig
) -> Iterator[bool]:
    assert session.conversation is not None
    if turn.kind == "names":
        _finish(turn, shared.segment(session.conversation, names_in(turn.question)), config)
        return
    stream = running.stream = shared.stream(session.conversation, turn.question)
    try:
        for piece in () if running.is_stopped else stream:
            if isinstance(piece, Waiting):
                turn.position = piece.position
                yield True
            elif isinstance(piece, Target):
                turn.targets.append(ShownTarget.of(piece, threshold=config.mask_threshold))
                yield True
            elif isinstance(piece, Reply):
                _finish(turn, piece, config)
            else:
                is_first = not turn.text
                turn.status, turn.position, turn.text = "writing", None, turn.text + piece
                yield is_first
    finally:
        stream.close()


def _finish(turn: Turn, reply: Reply, config: DemoConfig) -> None:
    """Put what the reply says in place of what was seen so far; targets that are there already are the same."""
    fresh = reply.targets[len(turn.targets) :]
    turn.targets += [ShownTarget.of(target, threshold=config.mask_threshold) for target in fresh]
    turn.text, turn.note, turn.status = reply.numbered(), reply.reason, "done"
