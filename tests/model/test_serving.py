"""Several people at once get the answers that each would get alone, and none of them can disturb another."""

from __future__ import annotations

import gc
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
import torch

from model.context import Context
from model.errors import InputError
from model.predictor import PixelLMPredictor
from model.replies import Reply, Target
from model.serving import AnswerStream, Busy, SharedPredictor, Waiting
from tests.support.parrot import teach
from tests.support.talker import make_talker, same
from tests.support.tiny_network import make_network

RNG = np.random.default_rng(7)
PHOTOS = [RNG.integers(0, 256, (*hw, 3), dtype=np.uint8) for hw in ((40, 60), (60, 30), (56, 56), (30, 64))]
QUESTIONS = ["What?", "Where is the thing that is in the image?", "Why is it?", "Is it the image or is it the mask?"]
OPTIONS = {"max_new_tokens": 16, "keep_logits": True}
SOON = 20  # seconds, in which anything comes that comes at all


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


def submit(stream: AnswerStream) -> None:
    """Ask, without waiting for the first piece."""
    stream._question = stream._ask()


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


@pytest.mark.parametrize(("seed", "attention"), [(0, "sdpa"), (1, "sdpa"), (2, "sdpa"), (3, "eager")])
def test_answers_that_join_at_any_pass_are_those_of_each_user_alone(talker, serve, passes, pool, seed, attention):
    """Six users with one to three questions each, five of whom come in a pass that chance chose."""
    chance = random.Random(seed)
    users = [(chance.choice(PHOTOS), chance.choices(QUESTIONS, k=count)) for count in (3, 3, 2, 2, 1, 1)]
    expected = [alone(talker, *users[0])]
    come_at = chance.sample(range(1, passes.count), k=len(users) - 1)
    expected += [alone(talker, photo, questions) for photo, questions in users[1:]]
    shared = serve(batch_size=chance.choice([2, 3, 8]))
    conversations = [shared.look_at(photo) for photo, _ in users]
    answers: dict[int, Future[list[list[object]]]] = {}

    def come(user: int) -> None:
        begun = threading.Event()
        answers[user] = pool.submit(ask, user, begun)
        assert begun.wait(SOON)

    def ask(user: int, begun: threading.Event) -> list[list[object]]:
        told = []
        for question in users[user][1]:
            stream = shared.stream(conversations[user], question)
            submit(stream)
            begun.set()
            told.append(list(stream))
        return told

    for user, number in enumerate(come_at, 1):
        passes.at(number, lambda user=user: come(user))
    rows: list[int] = []
    counts = talker.model.lm_head.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        talker.model.set_attn_implementation(attention)
        come(0)
        answers[0].result(SOON)
        found = [answers[user].result(SOON) for user in range(len(users))]
    finally:
        talker.model.set_attn_implementation("sdpa")
        counts.remove()
    assert max(rows) > 1, "some were written together"
    for mine, theirs in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        same_pieces(mine, theirs)


def test_users_in_threads_of_their_own_get_their_own_answers(talker, serve, pool):
    users = [(photo, questions) for photo in PHOTOS for questions in (QUESTIONS[:2], QUESTIONS[2:])]
    expected = [alone(talker, *user) for user in users]
    shared = serve(batch_size=4)

    def ask(photo: np.ndarray, questions: list[str]) -> list[list[object]]:
        conversation = shared.look_at(photo)
        return [list(shared.stream(conversation, question)) for question in questions]

    found = list(pool.map(ask, *zip(*users, strict=True)))
    for mine, theirs in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        same_pieces(mine, theirs)


def test_named_things_are_no_part_of_the_dialogue(talker, serve):
    shared = serve()
    names = ["the cat", "a red cup"]
    first, further = alone(talker, PHOTOS[0], QUESTIONS[:2])
    conversation = shared.look_at(PHOTOS[0])
    same_pieces(list(shared.stream(conversation, QUESTIONS[0])), first)
    reply = shared.segment(conversation, names)
    same(reply, talker.segment(PHOTOS[0], names, keep_logits=True))
    assert [target.phrase for target in reply.targets] == names
    same_pieces(list(shared.stream(conversation, QUESTIONS[1])), further)
    with pytest.raises(InputError, match="expected one or more"):
        shared.segment(conversation, [])


def ends(stream: AnswerStream) -> None:
    """What becomes of a stream that nobody has a name for any more."""
    stream.__del__()


@pytest.mark.parametrize("leave", [AnswerStream.close, ends])
def test_a_stream_that_is_left_makes_room_by_the_next_pass(talker, serve, passes, leave):
    (alone_b,), (alone_c,) = alone(talker, PHOTOS[1], QUESTIONS[1:2]), alone(talker, PHOTOS[2], QUESTIONS[2:3])
    shared = serve(batch_size=2)
    a, b, c = (
        shared.stream(shared.look_at(photo), question) for photo, question in zip(PHOTOS, QUESTIONS[:3], strict=False)
    )
    reached, goes_on = passes.stop_at(4)
    rows: list[int] = []
    hook = talker.model.lm_head.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    submit(a)
    submit(b)
    assert reached.wait(SOON)
    submit(c)
    assert c._question.told.get() == Waiting(1)
    leave(a)
    before = len(rows)
    goes_on.set()
    same_pieces(list(b), alone_b)
    same_pieces(list(c), alone_c)
    hook.remove()
    assert rows[before] == 2, "the third was read in place of the first"
    assert list(a) == []


def test_a_stream_that_nobody_holds_is_closed(serve):
    shared = serve()
    stream = shared.stream(shared.look_at(PHOTOS[0]), "What?")
    submit(stream)
    question = stream._question
    del stream
    assert question.is_left


def test_who_waits_is_told_the_position_whenever_it_changes(talker, serve, passes):
    (expected,) = alone(talker, PHOTOS[0], QUESTIONS[:1])
    shared = serve(batch_size=1, max_waiting=3)
    conversations = [shared.look_at(PHOTOS[0]) for _ in range(6)]
    reached, goes_on = passes.stop_at(2)
    streams = [shared.stream(one, QUESTIONS[0]) for one in conversations]
    submit(streams[0])
    assert reached.wait(SOON)
    assert [next(stream) for stream in streams[1:4]] == [Waiting(1), Waiting(2), Waiting(3)]
    with pytest.raises(Busy, match="3 others are waiting for an answer already; please try again in a moment"):
        next(streams[4])
    with pytest.raises(Busy):
        shared.look_at(PHOTOS[0])
    streams[1].close()
    assert next(streams[2]) == Waiting(1), "before anything else happens"
    assert next(streams[5]) == Waiting(3)
    before = passes.count
    goes_on.set()
    told = [list(stream) for stream in streams]
    assert [[piece.position for piece in pieces if isinstance(piece, Waiting)] for pieces in told] == [
        [], [], [], [2, 1], [], [2, 1]
    ]  # fmt: skip
    for number in (0, 2, 3, 5):
        same_pieces(told[number], expected)
    assert told[1] == told[4] == []
    assert passes.count - before <= 4 * (OPTIONS["max_new_tokens"] + 1), "who left was not read"


def test_what_was_written_when_an_answer_is_stopped_counts_as_said(talker, serve, passes):
    for number in (2, 3, 6, 9):
        shared = serve()
        conversation = shared.look_at(PHOTOS[0])
        words = len(talker.writer.words(QUESTIONS[0]))
        reached, goes_on = passes.stop_at(number)
        stream = shared.stream(conversation, QUESTIONS[0])
        submit(stream)
        assert reached.wait(SOON)
        stream.close()
        goes_on.set()
        shared.segment(conversation, ["the cat"])  # behind it
        length = len(conversation.said) - words - 1  # without its end mark
        *_, found = shared.stream(conversation, QUESTIONS[1])
        talker.set_image(PHOTOS[0])
        assert len(talker.ask(QUESTIONS[0], max_new_tokens=length).output_ids) == length > 0
        same(found, talker.ask(QUESTIONS[1], follows=True, **OPTIONS))


def test_a_token_group_of_a_stopped_answer_is_whole_or_absent(tiny_tokenizer_dir):
    network, tokenizer = make_network(tiny_tokenizer_dir, scales=1, tokens=2)
    teach(network, tokenizer, tokenizer("the [SEG0] [SEG1] thing is mask </s>", add_special_tokens=False).input_ids)
    groups, passes = [], Passes()
    network.model.register_forward_pre_hook(passes.passed)
    for number in (3, 4, 5):
        with SharedPredictor(PixelLMPredictor(network, tokenizer), codebook_fast_path=False) as shared:
            conversation = shared.look_at(PHOTOS[0])
            reached, goes_on = passes.stop_at(number)
            stream = shared.stream(conversation, "What?")
            submit(stream)
            assert reached.wait(SOON)
            stream.close()
            goes_on.set()
            shared.look_at(PHOTOS[0])  # behind it
            said = torch.tensor([conversation.said])
            assert network.codebook.count_stray(said) == 0
            groups.append(len(network.codebook.find_groups(said)[0]))
    assert groups == [0, 1, 1]


def test_a_dialogue_that_is_reset_while_it_is_answered_stays_empty(serve, passes):
    shared = serve()
    conversation = shared.look_at(PHOTOS[0])
    passes.at(3, conversation.reset)
    list(shared.stream(conversation, "What?"))
    assert conversation.said == []


def test_a_conversation_has_one_answer_at_a_time(talker, serve, passes):
    shared = serve()
    conversation = shared.look_at(PHOTOS[0])
    first, second = (shared.stream(conversation, question) for question in QUESTIONS[:2])
    reached, goes_on = passes.stop_at(3)
    submit(first)
    assert reached.wait(SOON)
    submit(second)
    goes_on.set()
    with pytest.raises(InputError, match="the question before it is still being answered"):
        next(second)
    expected = alone(talker, PHOTOS[0], QUESTIONS[:2])
    same_pieces(list(first), expected[0])
    same_pieces(list(shared.stream(conversation, QUESTIONS[1])), expected[1])


def fail_with(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_a_question_that_cannot_be_read_fails_alone(talker, serve, passes):
    """While another is answered: in what it asks, in its pass, and in what its masks are put on."""
    (expected,) = alone(talker, PHOTOS[0], QUESTIONS[:1])
    shared = serve()
    conversations = [shared.look_at(PHOTOS[number]) for number in (0, 1, 1, 2)]
    conversations[3].seen.sizes = [("none", "none")]
    first, *bad = (shared.stream(one, QUESTIONS[0]) for one in conversations)
    reached, goes_on = passes.stop_at(2)
    submit(first)
    assert reached.wait(SOON)
    for question, message in (("thing " * 5000, "shorten it"), ("a" * 10**7, "shorten it"), ("\ud800", "UTF-8")):
        with pytest.raises(InputError, match=message):
            next(shared.stream(conversations[1], question))
    passes.at(1, fail_with(RuntimeError("broken")))
    passes.at(3, fail_with(torch.OutOfMemoryError("out of memory")))
    for stream in bad:
        submit(stream)
    goes_on.set()
    with pytest.raises(RuntimeError, match="broken"):
        list(bad[0])
    with pytest.raises(InputError, match="the memory of the GPU does not suffice for this question beside the others"):
        list(bad[1])
    with pytest.raises(TypeError):
        list(bad[2])
    same_pieces(list(first), expected)
    assert conversations[1].said == conversations[2].said == []


def test_a_pass_that_fails_ends_those_in_it_and_no_others(talker, serve, passes):
    expected = alone(talker, PHOTOS[0], QUESTIONS[:1])
    shared = serve()
    conversations = [shared.look_at(photo) for photo in PHOTOS[:2]]
    passes.at(4, fail_with(RuntimeError("broken")))
    streams = [shared.stream(one, QUESTIONS[0]) for one in conversations]
    reached, goes_on = passes.stop_at(1)
    submit(streams[0])
    assert reached.wait(SOON)
    submit(streams[1])
    goes_on.set()
    for stream in streams:
        with pytest.raises(RuntimeError, match="broken"):
            list(stream)
    same_pieces(list(shared.stream(conversations[0], QUESTIONS[0])), *expected)


def test_what_waits_or_runs_when_the_predictor_is_closed_ends(talker, serve, passes, pool):
    shared = serve(batch_size=1)
    conversation, other = shared.look_at(PHOTOS[0]), shared.look_at(PHOTOS[1])
    streams = [shared.stream(one, "What?") for one in (conversation, other)]
    reached, goes_on = passes.stop_at(3)
    submit(streams[0])
    assert reached.wait(SOON)
    submit(streams[1])
    named = pool.submit(shared.segment, conversation, ["the cat"])
    with shared._changed:
        assert shared._changed.wait_for(lambda: len(shared._waiting) == 2, SOON)
    closed = pool.submit(shared.close)
    with shared._changed:
        assert shared._changed.wait_for(lambda: shared._is_closed, SOON)
    goes_on.set()
    closed.result(SOON)
    for call in (
        lambda: list(streams[0]), lambda: list(streams[1]), lambda: named.result(SOON),
        lambda: next(shared.stream(conversation, "What?")), lambda: shared.look_at(PHOTOS[0]),
    ):  # fmt: skip
        with pytest.raises(InputError, match="no longer served"):
            call()
    assert not shared._thread.is_alive()
    shared.close()


def test_a_photo_that_cannot_be_read(serve, tmp_path):
    shared = serve()
    with pytest.raises(InputError, match=r"none\.png"):
        shared.look_at(tmp_path / "none.png")


def test_no_keys_and_values_are_kept_between_questions(talker, serve):
    shared = serve()
    talker._seen = talker._dialogue = None
    conversation = shared.look_at(PHOTOS[0])
    for question in QUESTIONS[:2]:
        list(shared.stream(conversation, question))
    shared.segment(conversation, ["the cat"])

    def contexts() -> list[object]:
        gc.collect()
        return [one for one in gc.get_objects() if type(one) is Context]

    assert not shared._do(contexts)


@torch.inference_mode()
def test_rows_that_come_and_go_make_no_context_longer(talker):
    def read(length: int) -> Context:
        context = Context(talker.model.model, num_layers=len(talker.model.model.layers))
        context.read(torch.randn(1, length, talker.model.config.text_config.hidden_size))
        return context

    context = read(9)
    for length in (20, 5, 12, 7) * 3:
        context.join(read(length))
        context.select([1])
        assert context.length <= 20
    context.join(read(3))
    assert context.length == 7


def test_what_cannot_be_shared_is_refused(talker, monkeypatch):
    with pytest.raises(InputError, match="batch_size is 0; expected 1 or more"):
        SharedPredictor(talker, batch_size=0)
    with pytest.raises(InputError, match="temperature is -1; expected 0 or more"):
        SharedPredictor(talker, temperature=-1)
    monkeypatch.setattr(talker, "compiled", object())
    with pytest.raises(InputError, match="compile writes one answer at a time, not several together"):
        SharedPredictor(talker)
