"""Several people at once get the answers that each would get alone, and none of them can disturb another."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from model.predictor import PixelLMPredictor
from model.replies import Reply, Target
from model.serving import AnswerStream, SharedPredictor, Waiting
from tests.support.talker import make_talker, same

RNG = np.random.default_rng(7)
PHOTOS = [RNG.integers(0, 256, (*hw, 3), dtype=np.uint8) for hw in ((40, 60), (60, 30), (56, 56), (30, 64))]
QUESTIONS = ["What?", "Where is the thing that is in the image?", "Why is it?", "Is it the image or is it the mask?"]
OPTIONS = {"max_new_tokens": 16, "keep_logits": True}
SOON = 60  # seconds, in which anything comes that comes at all


@pytest.fixture(scope="module")
def talker(tiny_tokenizer_dir) -> PixelLMPredictor:
    return make_talker(tiny_tokenizer_dir)


class Passes:
    """Counts the passes of the language model, and lets something happen in the midst of one."""

    def __init__(self) -> None:
        self.count = 0
        self._actions: dict[int, Callable[[], object]] = {}

    def at(self, number: int, action: Callable[[], object]) -> None:
        """In the pass of this number, counted from now."""
        self._actions[self.count + number] = action

    def stop_at(self, number: int) -> tuple[threading.Event, threading.Event]:
        """Let a pass wait; returns what is set once it does, and what lets it go on."""
        reached, goes_on = threading.Event(), threading.Event()

        def stop() -> None:
            reached.set()
            assert goes_on.wait(SOON)

        self.at(number, stop)
        return reached, goes_on

    def passed(self, *_: object) -> None:
        self.count += 1
        self._actions.pop(self.count, lambda: None)()


@pytest.fixture
def passes(talker) -> Iterator[Passes]:
    passes = Passes()
    hook = talker.model.model.register_forward_pre_hook(passes.passed)
    yield passes
    hook.remove()


@pytest.fixture
def serve(talker):
    """Start a shared predictor, which is closed in the end."""
    served: list[SharedPredictor] = []

    def start(**options) -> SharedPredictor:
        served.append(SharedPredictor(talker, **(OPTIONS | options)))
        return served[-1]

    yield start
    for one in served:
        one.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def alone(talker: PixelLMPredictor, photo: np.ndarray, questions: list[str]) -> list[list[object]]:
    """What one user is told in answer to each question."""
    talker.set_image(photo)
    return [list(talker.stream(question, follows=number > 0, **OPTIONS)) for number, question in enumerate(questions)]


def same_pieces(found: list[object], expected: list[object]) -> None:
    pieces = [piece for piece in found if not isinstance(piece, Waiting)]
    assert [type(piece) for piece in pieces] == [type(piece) for piece in expected]
    for mine, theirs in zip(pieces, expected, strict=True):
        if isinstance(theirs, Reply):
            same(mine, theirs)
        elif isinstance(theirs, Target):
            assert torch.allclose(mine.logits, theirs.logits, atol=1e-4)
            assert torch.equal(mine.mask, mine.logits > 0)
        else:
            assert mine == theirs


def when_waiting(shared: SharedPredictor, count: int) -> None:
    """Until so many wait."""
    with shared._changed:
        assert shared._changed.wait_for(lambda: len(shared._waiting) >= count, SOON)


@pytest.mark.parametrize("number", range(len(PHOTOS)))
def test_one_user_is_told_what_the_predictor_tells(talker, serve, number):
    shared = serve()
    told = list(shared.stream(shared.look_at(PHOTOS[number]), QUESTIONS[number]))
    assert not any(isinstance(piece, Waiting) for piece in told)
    same_pieces(told, *alone(talker, PHOTOS[number], [QUESTIONS[number]]))


def test_a_further_question_goes_on_with_what_was_said(talker, serve):
    shared = serve()
    for photo in PHOTOS[:2]:
        conversation = shared.look_at(photo)
        assert conversation.photo_hw == photo.shape[:2]
        for expected, question in zip(alone(talker, photo, QUESTIONS), QUESTIONS, strict=True):
            same_pieces(list(shared.stream(conversation, question)), expected)
        conversation.reset()
        same_pieces(list(shared.stream(conversation, QUESTIONS[0])), *alone(talker, photo, QUESTIONS[:1]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_answers_that_join_at_any_pass_are_those_of_each_user_alone(talker, serve, passes, pool, seed, attention):
    """Six users, each of whom asks one to three questions; each first question comes in a pass that chance chose."""
    chance = random.Random(seed)
    users = [(chance.choice(PHOTOS), chance.choices(QUESTIONS, k=chance.randint(1, 3))) for _ in range(6)]
    expected = [alone(talker, photo, questions) for photo, questions in users]
    shared = serve(batch_size=chance.choice([2, 3, 8]))
    conversations = [shared.look_at(photo) for photo, _ in users]
    rows: list[int] = []
    counts = talker.model.lm_head.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    told = []

    def come(user: int) -> None:
        begun = threading.Event()
        told.append((user, pool.submit(ask, user, begun)))
        assert begun.wait(SOON)

    def ask(user: int, begun: threading.Event) -> list[list[object]]:
        answers = []
        for question in users[user][1]:
            stream = shared.stream(conversations[user], question)
            submit(stream)
            begun.set()
            answers.append(list(stream))
        return answers

    come_at = sorted(chance.sample(range(1, 12), k=len(users) - 1))
    for user, number in enumerate(come_at, 1):
        passes.at(number, lambda user=user: come(user))
    try:
        talker.model.set_attn_implementation(attention)
        come(0)
        while len(told) < len(users):
            told[-1][1].result(SOON)
            if len(told) < len(users) and passes.count < come_at[-1]:
                list(shared.stream(shared.look_at(PHOTOS[0]), QUESTIONS[0]))  # some more passes
        found = {user: answers.result(SOON) for user, answers in told}
    finally:
        talker.model.set_attn_implementation("sdpa")
        counts.remove()
    assert max(rows) > 1, "none were written together"
    for user, answers in found.items():
        for mine, theirs in zip(answers, expected[user], strict=True):
            same_pieces(mine, theirs)


def submit(stream: AnswerStream) -> None:
    """Ask, without waiting for the first piece."""
    stream._question = stream._ask()
