"""A visitor's session: what the viewer is shown while an answer is written, and what a visitor can do meanwhile."""

from __future__ import annotations

import base64
import copy
import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch

from model.replies import Target
from tests.utils.demo.conftest import SOON
from utils.demo.answers import ask, names_in, throttled
from utils.demo.session import SHOWN_SIDE, Photo, Session, ShownTarget
from utils.demo.uploads import Upload


def begun(served, pixels) -> Session:
    session = Session()
    session.look_at(Photo.of(Upload("photo.jpg", pixels)), served.look_at(pixels), None)
    return session


def image_of(url: str, flags: int = cv2.IMREAD_UNCHANGED) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(base64.b64decode(url.partition(",")[2]), np.uint8), flags)


@pytest.fixture
def session(served, pixels) -> Session:
    return begun(served, pixels)


def test_an_answer_grows_piece_by_piece_and_ends_as_one_that_was_asked_for_at_once(served, session, config, pixels):
    states = [copy.deepcopy(session.to_json()["turns"][0]) for _ in ask(session, served, " Where? ", "ask", config)]
    assert states[0] == {
        "question": "Where?", "kind": "ask", "pieces": [], "targets": [], "status": "waiting", "position": None,
        "note": None,
    }  # fmt: skip
    assert [status for status, _ in itertools.groupby(state["status"] for state in states)] == [
        "waiting", "writing", "done",
    ]  # fmt: skip
    words = ["".join(text for text, _, _ in state["pieces"]) for state in states]
    assert all(after.startswith(before) for before, after in itertools.pairwise(words))
    assert all(text.count("0") == len(state["targets"]) for text, state in zip(words, states, strict=True))
    last = states[-1]
    assert ["thing", 0, False] in last["pieces"]
    assert ["0", 0, True] in last["pieces"]
    *_, reply = served.stream(served.look_at(pixels), "Where?")
    target = last["targets"][0]
    assert (target["phrase"], target["score"]) == (reply.targets[0].phrase, reply.targets[0].score)
    assert target["area"] == pytest.approx(float(reply.targets[0].mask.float().mean()))
    assert ((image_of(target["map"]) > 127.5) == reply.targets[0].mask.numpy()).all()
    json.dumps(session.to_json())


def test_names_are_segmented_in_one_turn_of_their_own(served, session, config):
    list(ask(session, served, "the cat\na red cup, , ", "names", config))
    turn = session.to_json()["turns"][0]
    assert (turn["kind"], turn["status"]) == ("names", "done")
    assert [target["phrase"] for target in turn["targets"]] == ["the cat", "a red cup"]
    assert [piece for piece in turn["pieces"] if piece[2]] == [["0", 0, True], ["1", 1, True]]


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("", "there is no question"),
        (" \n", "there is no question"),
        (None, "there is no question"),
        (["x"], "there is no question"),
        ("\ud800", "there is no question"),
        ("x" * 501, "the question has 501 characters, and this page takes 500 at most; shorten it"),
    ],
    ids=["empty", "blank", "none", "list", "surrogate", "long"],
)
def test_what_cannot_be_asked_is_a_notice_and_no_turn(served, session, config, question, words):
    list(ask(session, served, question, "ask", config))
    shown = session.to_json()
    assert shown["turns"] == []
    assert shown["notice"]["kind"] == "error"
    assert shown["notice"]["text"].startswith(words)
    list(ask(session, served, "Where?", "ask", config))
    assert session.to_json()["notice"] is None


def test_without_a_photo_there_is_no_answer(served, config):
    session = Session()
    list(ask(session, served, "Where?", "ask", config))
    assert session.to_json()["notice"]["text"] == "there is no photo yet; choose one first"


def test_a_dialogue_that_is_full_says_how_to_make_room(served, session, config):
    for _ in range(200):
        list(ask(session, served, "and " * 40, "ask", config))
        if session.turns[-1].status == "failed":
            break
    assert session.turns[-1].note is not None
    assert session.turns[-1].note.endswith("; forget the dialogue to make room")
    session.forget()
    list(ask(session, served, "Where?", "ask", config))
    assert [turn.status for turn in session.turns] == ["done"]


def writing(session, shared, question, config):
    """An answer that has its first words."""
    answer = ask(session, shared, question, "ask", config)
    while not session.turns or session.turns[-1].status != "writing":
        next(answer)
    return answer


def waiting(session, shared, question, config):
    """An answer that has been told its place in the line."""
    answer = ask(session, shared, question, "ask", config)
    while not session.turns or session.turns[-1].position is None:
        next(answer)
    return answer


def test_a_second_question_is_refused_while_one_is_answered(slow, config, pixels):
    shared = slow.pauses()
    session = begun(shared, pixels)
    first = writing(session, shared, "first", config)
    list(ask(session, shared, "second", "ask", config))
    assert [turn.question for turn in session.turns] == ["first"]
    assert session.to_json()["notice"]["text"] == "one answer is still being written; wait for it, or stop it"
    first.close()
    assert session.turns[0].status == "stopped"


def test_a_stopped_answer_frees_its_place_for_the_next_visitor(slow, config, pixels):
    """There is one place; the second visitor is told where they stand, and comes in when the first one stops."""
    shared = slow.pauses()
    one, two = begun(shared, pixels), begun(shared, pixels)
    first, second = writing(one, shared, "first", config), waiting(two, shared, "second", config)
    assert (two.turns[0].status, two.turns[0].position) == ("waiting", 1)
    one.stop()
    list(first)
    assert (one.turns[0].status, one.running) == ("stopped", None)
    slow.may_go_on.set()
    list(second)
    assert (two.turns[0].status, two.turns[0].position) == ("done", None)


def test_whoever_stops_while_waiting_is_told_at_once(slow, config, pixels):
    """Also from another thread, while nothing comes."""
    shared = slow.pauses()
    one, two = begun(shared, pixels), begun(shared, pixels)
    first, second = writing(one, shared, "first", config), waiting(two, shared, "second", config)
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(list, second)
        two.stop()
        rest.result(SOON)
    assert two.turns[0].status == "stopped"
    first.close()


def test_another_photo_stops_the_answer_and_begins_anew(slow, served, config, pixels):
    shared = slow.pauses()
    session = begun(shared, pixels)
    answer = writing(session, shared, "first", config)
    turn, shown = session.turns[0], session.to_json()["photo"]
    session.look_at(Photo.of(Upload("photo.jpg", pixels)), served.look_at(pixels), "a note")
    list(answer)
    assert turn.status == "stopped"
    assert session.to_json()["turns"] == []
    assert session.to_json()["notice"] == {"kind": "info", "text": "a note"}
    assert session.to_json()["photo"]["id"] != shown["id"]


def test_a_fault_of_ours_ends_the_answer_and_not_the_session(served, session, config, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(type(served), "stream", lambda *_: 1 / 0)
        list(ask(session, served, "Where?", "ask", config))
    assert session.turns[0].note == "the answer failed (ZeroDivisionError); the server's log says more"
    assert "ZeroDivisionError" in caplog.text
    list(ask(session, served, "Where?", "ask", config))
    assert [turn.status for turn in session.turns] == ["failed", "done"]


def test_gradio_can_copy_an_empty_session_and_copies_share_nothing(served, config, pixels):
    first, second = copy.deepcopy(Session()), copy.deepcopy(Session())
    first.look_at(Photo.of(Upload("photo.jpg", pixels)), served.look_at(pixels), None)
    list(ask(first, served, "Where?", "ask", config))
    assert second.to_json() == {"photo": None, "turns": [], "notice": None}


def test_a_large_photo_is_shown_small_and_kept_whole():
    pixels = np.random.default_rng(0).integers(0, 255, (900, 2560, 3), dtype=np.uint8)
    photo = Photo.of(Upload("wide.png", pixels))
    assert image_of(photo.url).shape == (450, SHOWN_SIDE, 3)
    assert (photo.pixels() == pixels).all()
    assert (photo.to_json()["width"], photo.to_json()["height"]) == (2560, 900)
    logits = torch.linspace(-9, 9, 900 * 2560).reshape(900, 2560)
    shown = ShownTarget.of(Target("sky", (0, 1), logits > 0, 0.9, logits), threshold=0.5)
    assert image_of(shown.url).shape == (450, SHOWN_SIDE)
    assert (shown.mask(0.5) == (logits > 0).numpy()).all()


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.73])
def test_a_map_gives_back_the_mask_exactly_and_other_thresholds_closely(threshold):
    logits = torch.linspace(-6, 6, 4000).reshape(40, 100)
    logits[0, 0] = -torch.inf  # the network does not see it
    probabilities = logits.sigmoid()
    shown = ShownTarget.of(Target("sky", (0, 1), probabilities > threshold, 0.9, logits), threshold=threshold)
    assert (shown.mask(threshold) == (probabilities > threshold).numpy()).all()
    for other in (0.05, 0.3, 0.9):
        away = (probabilities - other).abs() > 1 / 255
        assert (shown.mask(other) == (probabilities > other).numpy())[away.numpy()].all()


def test_updates_that_can_wait_are_left_out_and_others_are_not():
    changes = [True, *[False] * 500, True, *[False] * 500, True]
    seen = []
    for _ in throttled(seen.append(at_once) or at_once for at_once in changes):
        seen.append("shown")
    assert seen[:2] == [True, "shown"]
    assert seen[-2:] == [True, "shown"]
    assert seen.count("shown") < 100


def test_names_are_parted_by_commas_and_lines():
    assert names_in("the cat, a red cup\n\n dog ,") == ["the cat", "a red cup", "dog"]
