"""The page as gradio gets it: two endpoints, events that belong to one visitor, and nothing from another host."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from utils.demo.examples import find_examples
from utils.demo.page import Page, make_page
from utils.demo.session import Session
from utils.demo.theme import make_theme


@pytest.fixture
def page(served, config, uploads, monkeypatch) -> Page:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads))
    return Page(served, config, [])


def event(**sent: Any) -> Any:
    return SimpleNamespace(_data=sent)


TAB = SimpleNamespace(session_hash="tab")


def test_programs_see_the_two_endpoints_and_nothing_else(served, config):
    blocks = make_page(served, config)
    shown = blocks.get_api_info()
    assert set(shown["named_endpoints"]) == {"/segment", "/segment_names"}
    assert not shown["unnamed_endpoints"]
    others = [function for function in blocks.fns.values() if function.api_name not in ("segment", "segment_names")]
    assert len(others) >= 6
    assert {function.api_visibility for function in others} == {"private"}
    waiting = [function for function in blocks.fns.values() if function.concurrency_limit is not None]
    assert [function.targets for function in waiting] == [[(None, "unload")]], "what waits, waits in the predictor"


def test_the_theme_loads_no_fonts_of_another_host():
    assert "http" not in "".join(make_theme()._stylesheets)
    assert "fonts.g" not in make_theme()._get_theme_css()


def test_an_upload_and_a_question_fill_the_session(page, uploads, jpeg):
    session = Session()
    (uploads / "a.jpg").write_bytes(jpeg)
    assert page.upload(session, event(path=str(uploads / "a.jpg"), name="a.jpg"))[1]["photo"]["name"] == "a.jpg"
    *_, last = page.submit(session, event(question="Where?", kind="ask"), TAB)
    assert [turn["status"] for turn in last["turns"]] == ["done"]
    *_, last = page.submit(session, event(question="the cat", kind="names"), TAB)
    assert [turn["kind"] for turn in last["turns"]] == ["ask", "names"]
    file = page.download(session, event(
        what="coco", turn=1, hidden=[], names={}, threshold=0.5, opacity=0.2, outline=False,
    ))  # fmt: skip
    assert file["file"]["name"] == "a_coco.json"
    assert "value" not in file
    cleared = page.clear(session)
    assert (cleared["turns"], cleared["photo"]["name"]) == ([], "a.jpg")


@pytest.mark.parametrize(
    "sent", [None, "x", ["x"], 5, {}, {"example": "0"}, {"example": -1}, {"example": 10**9}], ids=str
)
def test_any_event_of_a_hostile_browser_is_answered_in_words(page, sent):
    session = Session()
    bad = SimpleNamespace(_data=sent)
    assert page.upload(session, bad)[1]["notice"]["kind"] == "error"
    assert [shown["notice"]["kind"] for _, shown in page.select(session, bad, TAB)] == ["error"]
    assert [shown["notice"]["kind"] for shown in page.submit(session, bad, TAB)] == ["error"]
    assert page.download(session, bad)["value"]["notice"]["kind"] == "error"
    page.stop(session)
    assert page.clear(session)["notice"] is None


def test_a_closed_tab_stops_its_answer(slow, served, config, uploads, jpeg, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads))
    (uploads / "a.jpg").write_bytes(jpeg)
    page, session = Page(slow.pauses(), config, []), Session()
    page.upload(session, event(path=str(uploads / "a.jpg"), name="a.jpg"))
    answer = page.submit(session, event(question="Where?", kind="ask"), TAB)
    while next(answer)["turns"][0]["status"] != "writing":
        pass
    page.leave(SimpleNamespace(session_hash="another tab"))
    assert session.running is not None
    page.leave(TAB)
    *_, last = answer
    assert last["turns"][0]["status"] == "stopped"


def test_examples_of_a_folder_are_shown_and_their_questions_asked(served, config, uploads, jpeg, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg)
    lines = tmp_path / "examples.jsonl"
    lines.write_text('{"image": "a.jpg", "prompt": "Where?"}\n{"image": "a.jpg", "prompt": ["the cat", "a cup"]}\n')
    examples = find_examples(type(config)(version=config.version, examples=str(lines)))
    assert [(one.question, one.kind) for one in examples] == [("Where?", "ask"), ("the cat, a cup", "names")]
    session = Session()
    *_, (_, last) = Page(served, config, examples).select(session, event(example=1), TAB)
    assert [target["phrase"] for target in last["turns"][0]["targets"]] == ["the cat", "a cup"]
    photos = find_examples(type(config)(version=config.version, examples=str(tmp_path)))
    assert [(one.photo.name, one.question) for one in photos] == [("a.jpg", "")]
    assert find_examples(config) == []
