"""Several people at once: their answers are written together, and new ones join between two passes.

No keys and values are kept between questions: a further question reads the image and the whole dialogue again. So
memory is bounded by the answers that are written at once, whoever has a conversation open.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Self

import torch

from .decoding import Answer, Begun
from .errors import InputError
from .image import Photo, photo_pixels
from .predictor import PixelLMPredictor
from .replies import Reply, Target
from .seen import Seen
from .writing import Telling

logger = logging.getLogger(__name__)


class Busy(InputError):
    """Too many people wait already."""


@dataclass(frozen=True)
class Waiting:
    """Others are answered first.

    Attributes:
        position: 1 is next.
    """

    position: int


Piece = Waiting | str | Target | Reply


class Conversation:
    """A photo that was read, and what was said about it; of one user, who asks one question after the other.

    It holds what the vision tower made of the photo, and tokens: no keys and values of the language model.

    Attributes:
        photo_hw: (H, W).
    """

    def __init__(self, seen: Seen) -> None:
        self.photo_hw = seen.sizes[0]
        self.seen = seen
        self.said: list[int] = []  # behind the image; another list with each turn

    def reset(self) -> None:
        """Forget what was said; the photo stays."""
        self.said = []


@dataclass(eq=False)
class _Task:
    """What is done between two passes, at once."""

    run: Callable[[], Any]
    result: Future[Any] = field(default_factory=Future)
    is_left: bool = False

    def fail(self, error: Exception) -> None:
        self.result.set_exception(error)


@dataclass(eq=False)
class _Question:
    """A question, with its answer.

    Attributes:
        is_left: nobody wants to know any more.
        position: that was told last.
        before: what had been said. This and the next three are there from when its turn has come.
        words: behind the image, those of the question last.
        told: what the user gets next; an exception is the last, as a reply is.
    """

    conversation: Conversation
    text: str
    is_left: bool = False
    position: int = 0
    before: list[int] = field(init=False)
    words: list[int] = field(init=False)
    telling: Telling = field(init=False)
    answer: Answer = field(init=False)
    told: SimpleQueue[Piece | Exception | None] = field(default_factory=SimpleQueue)

    def fail(self, error: Exception) -> None:
        self.told.put(error)


class AnswerStream(Iterator[Piece]):
    """An answer, piece by piece. It is asked for when the first piece is.

    Any thread may close it, also while another waits for a piece.
    """

    def __init__(self, ask: Callable[[], _Question], leave: Callable[[], None]) -> None:
        self._ask, self._leave = ask, leave
        self._question: _Question | None = None
        self._has_ended = False

    def __next__(self) -> Piece:
        if self._has_ended:
            raise StopIteration
        if self._question is None:
            try:
                self._question = self._ask()
            except Exception:
                self._has_ended = True
                raise
        piece = self._question.told.get()
        self._has_ended |= piece is None or isinstance(piece, Reply | Exception)
        if isinstance(piece, Exception):
            raise piece
        if piece is None:
            raise StopIteration
        return piece

    def close(self) -> None:
        """Stop the answer. What was written counts as said."""
        self.__del__()
        self._leave()

    def __del__(self) -> None:  # a collector may call it anywhere, so it takes no lock
        self._has_ended = True
        if self._question is not None:
            self._question.is_left = True
            self._question.told.put(None)


class SharedPredictor:
    """Answers several people at once, each as ``PixelLMPredictor`` answers one.

    One thread of its own owns the model. What is asked of it waits in the order of arrival. Between two passes of the
    language model it does one thing of those that wait: reads a photo, names things in one, or reads a question, whose
    answer is then written along with the others. An answer that ends, or that nobody reads any more, makes room for
    the next. What goes wrong with one question is the matter of that one alone.

    All methods may be called from any thread.

    Args:
        predictor: nobody else may use it meanwhile.
        batch_size: answers that are written at once.
        max_waiting: things that may wait beside them.
        options: of ``AnswerOptions``, for all answers.
    Raises:
        InputError: if an option cannot be met, or the predictor was compiled, which writes one answer at a time.
    """

    def __init__(
        self, predictor: PixelLMPredictor, *, batch_size: int = 8, max_waiting: int = 32, **options: Any
    ) -> None:
        if predictor.compiled is not None:
            raise InputError("compile writes one answer at a time, not several together; load the model without it")
        for name, value, least in (("batch_size", batch_size, 1), ("max_waiting", max_waiting, 0)):
            if value < least:
                raise InputError(f"{name} is {value}; expected {least} or more")
        self._writer = predictor.writer
        self._asked = self._writer.options(options)
        self._batch_size, self._max_waiting = batch_size, max_waiting
        self._waiting: deque[_Task | _Question] = deque()
        self._running: dict[int, _Question] = {}  # by the number of the answer
        self._num_answers = 0
        self._is_closed = False
        self._changed = threading.Condition()  # guards the five above
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    def look_at(self, photo: Photo) -> Conversation:
        """Read a photo, and wait for that.

        Args:
            photo: a file name, a PIL image or an (H, W, 3) uint8 RGB array.
        Raises:
            InputError: if it cannot be read, or the predictor was closed; ``Busy`` if too many wait.
        """
        pixels = photo_pixels(photo)
        return Conversation(self._do(lambda: self._writer.look_at([pixels], keeps_prefix=False)))

    def segment(self, conversation: Conversation, names: Sequence[str]) -> Reply:
        """The masks of named things, such as ``["the cat", "a red cup"]``, in one pass; no part of the dialogue.

        Raises:
            InputError: if there is no name, they are too long or not UTF-8, or as ``look_at``.
        """
        return self._do(lambda: self._writer.read_names(names, conversation.seen, self._asked))

    def stream(self, conversation: Conversation, question: str) -> AnswerStream:
        """Answer a question, which goes on with what was said.

        Yields:
            ``Waiting`` while others are answered, whenever the position changes; then what
            ``PixelLMPredictor.stream`` does: pieces of the text, in which ``[0]`` stands for the first target, each
            target behind its number, at last the whole reply. Closing it stops the answer: what was written counts as
            said.
        Raises:
            InputError: from the first ``next``: if the question is too long or not UTF-8, or as ``look_at``; later: if
                the predictor is closed, or the GPU's memory does not suffice.
        """
        return AnswerStream(lambda: self._submit(_Question(conversation, question)), self._settle)

    def close(self) -> None:
        """End the thread. Whatever waits or is written ends with an InputError."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, run: Callable[[], Any]) -> Any:
        task = _Task(run)
        self._add(task)
        return task.result.result()

    def _submit(self, question: _Question) -> _Question:
        self._words(question)  # what cannot be asked need not wait
        self._add(question)
        return question

    def _add(self, job: _Task | _Question) -> None:
        with self._changed:
            if self._is_closed:
                raise _closed()
            self._settle()
            if len(self._waiting) >= self._max_waiting + self._num_free:
                raise Busy(
                    f"{len(self._waiting)} others are waiting for an answer already; please try again in a moment"
                )
            self._waiting.append(job)
            self._settle()
            self._changed.notify()

    @property
    def _num_free(self) -> int:
        return self._batch_size - len(self._running)

    def _settle(self) -> None:
        """Forget who has left, and tell the others where they stand: those are not told whose turn has come."""
        with self._changed:
            if any(job.is_left for job in self._waiting):
                self._waiting = deque(job for job in self._waiting if not job.is_left)
            for position, job in enumerate(self._waiting, 1 - self._num_free):
                if isinstance(job, _Question) and position > 0 and job.position != position:
                    job.position = position
                    job.told.put(Waiting(position))

    def _words(self, question: _Question) -> list[int]:
        """All that the question goes on from, and its own words; raises InputError."""
        said = question.conversation.said
        if not said:
            return self._writer.words(question.text)
        words = said + self._writer.further_words(question.text)
        self._writer.check_length(len(self._writer.prefix_ids) + len(words))
        return words

    @torch.inference_mode()  # of this thread alone
    def _work(self) -> None:
        """What the thread does, until it is closed."""
        try:
            while not self._is_closed:
                self._write(self._arrive(waits=True))
        finally:
            with self._changed:
                self._is_closed = True
                left = [*self._running.values(), *self._waiting]
                self._running.clear()
                self._waiting.clear()
            for job in left:
                job.fail(_closed())

    def _write(self, begun: Begun | None) -> None:
        """Write this answer, and those that come meanwhile, until none is left."""
        if begun is None:
            return
        try:
            for answer in self._writer.write(begun, self._asked, arrivals=self._arrive):
                question = self._running[answer.row]
                try:
                    for piece in question.telling.news(answer):
                        question.told.put(piece)
                    if answer.is_done:
                        reply = question.telling.reply(answer)
                        self._remember(question)
                        self._end(answer.row, reply)
                except Exception as err:
                    answer.is_done = True
                    self._end(answer.row, _explained(err))
        except Exception as err:
            error = _explained(err)
            for row in list(self._running):
                self._end(row, error)

    def _stop_left(self) -> None:
        """End answers that nobody reads any more; what was written of them counts as said."""
        for row, question in list(self._running.items()):
            if question.is_left or self._is_closed:
                question.answer.is_done = True
                if question.answer.ids:
                    self._remember(question)
                self._end(row, _closed())

    def _remember(self, question: _Question) -> None:
        """Let the dialogue go on from an answer, whose last token group may have been stopped half way."""
        conversation, ids = question.conversation, question.answer.ids
        group = list(self._writer.model.codebook.ids)
        for begun in range(len(group) - 1, 0, -1):
            if ids[-begun:] == group[:begun]:
                ids = ids[:-begun]
                break
        if conversation.said is question.before:  # else it was reset meanwhile
            conversation.said = question.words + self._writer.with_end(ids)

    def _end(self, row: int, last: Reply | Exception) -> None:
        """Make room, and let the user know the last."""
        with self._changed:
            question = self._running.pop(row)
            self._settle()
        question.told.put(last)

    def _arrive(self, *, waits: bool = False) -> Begun | None:
        """Do one thing of those that wait; returns a question that was read."""
        self._stop_left()
        job = self._take(waits=waits)
        if isinstance(job, _Question):
            row = self._num_answers
            try:
                return self._begin(job, row)
            except Exception as err:
                self._end(row, _explained(err))
        elif job is not None:
            try:
                job.result.set_result(job.run())
            except Exception as err:
                job.fail(_explained(err))
        return None

    def _take(self, *, waits: bool) -> _Task | _Question | None:
        """The first of those that wait, unless it is a question and there is no room."""
        with self._changed:
            self._settle()
            while waits and not self._waiting and not self._is_closed:
                self._changed.wait()
                self._settle()
            if self._is_closed or not self._waiting:
                return None
            if isinstance(self._waiting[0], _Question):
                if not self._num_free:
                    return None
                self._num_answers += 1
                self._running[self._num_answers] = self._waiting[0]
            job = self._waiting.popleft()
            self._settle()
            return job

    def _begin(self, question: _Question, row: int) -> Begun:
        """Read the image, the dialogue and the question, in one pass."""
        conversation = question.conversation
        if any(other.conversation is conversation for number, other in self._running.items() if number != row):
            raise InputError("the question before it is still being answered; wait for its end, or stop it")
        question.before, question.words = conversation.said, self._words(question)
        question.telling = Telling(self._writer, conversation.seen, self._asked)
        question.answer = self._writer.blank(question.words, self._asked, row=row)
        context, states = conversation.seen.read([question.words], [0])
        return Begun(context, states[:, -1], [question.answer])


def _closed() -> InputError:
    return InputError("the model is no longer served: its program is ending")


def _explained(error: Exception) -> Exception:
    """What a user is told; the traceback of anything that is not the user's matter is logged."""
    if isinstance(error, InputError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return InputError(
            "the memory of the GPU does not suffice for this question beside the others; ask again in a moment. If it "
            "happens often, let fewer be answered at once (batch_size)"
        )
    logger.error("a question could not be answered", exc_info=error)
    return error
