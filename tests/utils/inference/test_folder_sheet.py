"""The page of scripts/predict.py: words get the colors of their masks, and text of strangers stays text."""

from __future__ import annotations

from pathlib import Path

from utils.inference.predictions import FoundTarget, Prediction
from utils.inference.questions import Question, read_questions
from utils.inference.sheet import write_sheet
from utils.inference.words import Piece, pieces

HOSTILE = "<script>alert(1)</script>\" onerror='x' [0]"
RLE = {"size": [2, 2], "counts": "04"}


def test_each_phrase_is_found_in_the_words_before_its_number():
    assert list(pieces("The cat and the cat [0] , a dog [1] .", ["cat", "dog"])) == [
        Piece("The cat and the "), Piece("cat", 0), Piece(" "), Piece("0", 0, is_number=True),
        Piece(" , a "), Piece("dog", 1), Piece(" "), Piece("1", 1, is_number=True), Piece(" ."),
    ]  # fmt: skip


def test_words_without_a_phrase_stay_plain():
    assert list(pieces("It is [0]", [""])) == [Piece("It is "), Piece("0", 0, is_number=True)]
    assert list(pieces("nothing", [])) == [Piece("nothing")]
    assert list(pieces("", [])) == []


def test_hostile_text_is_shown_and_does_nothing(tmp_path):
    target = FoundTarget(phrase=HOSTILE, score=0.5, area=4, bbox=[0, 0, 2, 2], segmentation=RLE)
    name = "a\udcff<b>.jpg"
    answer = Prediction(
        number=0, image=name, prompt=HOSTILE, size=[2, 2], text="x", numbered=f"{HOSTILE} [0]", reason=HOSTILE,
        targets=[target], overlay="overlays/a\udcff\"<b>.jpg", thumbnail="javascript:alert(1)",
    )  # fmt: skip
    failed = Prediction(number=1, image=name, prompt=[HOSTILE], error=HOSTILE)
    questions = [Question(number, 0, name, Path(name), HOSTILE, "a") for number in range(2)]
    write_sheet(tmp_path / "index.html", [answer, failed], questions, model=HOSTILE)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "onerror='" not in page
    assert "<b>.jpg" not in page
    assert "overlays/a%FF%22%3Cb%3E.jpg" in page
    assert 'src="javascript%3Aalert%281%29"' in page
    assert page.count("&lt;script&gt;") >= 6


def test_files_never_share_a_name(tmp_path):
    """Whatever suffixes, folders, capitals and numbers of questions there are."""
    names = ["a.jpg", "A.png", "a_2.jpg", "b/a.jpg", "B/a.jpg", ".hidden.jpg", ".git/a.jpg", "note.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    questions = read_questions(str(tmp_path), ["one", "two"])
    assert sorted({one.image for one in questions}) == sorted(["a.jpg", "A.png", "a_2.jpg", "b/a.jpg", "B/a.jpg"])
    assert len({one.stem.casefold() for one in questions}) == len(questions) == 10
    assert [one.number for one in questions] == list(range(10))


def test_a_glob_takes_what_it_matches(tmp_path, monkeypatch):
    for name in ("b.jpg", "deep/a.jpg", "c[1].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert [one.image for one in read_questions("**/*.jpg", ["?"])] == ["b.jpg", "c[1].jpg", "deep/a.jpg"]
    assert [one.image for one in read_questions("c[1].jpg", ["?"])] == ["c[1].jpg"], "a file of that very name"
