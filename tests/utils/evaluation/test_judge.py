"""The text judgment: what a model reads about an answer, and that its verdicts are kept, continued and counted."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.errors import InputError
from model.rle import encode_rle
from tests.support.chat_server import ChatServer, Sent, chat_server
from utils.cli.args import BadValue, parse
from utils.evaluation.judge import (
    UNMATCHED,
    VERDICTS,
    Unjudgeable,
    judge_rows,
    judged_by,
    make_request,
    read_verdicts,
    rewrite,
)
from utils.evaluation.judge_flags import JUDGE_CACHE, Judge, JudgeFlags
from utils.evaluation.records import QuestionRecord
from utils.evaluation.scores import ScoringOptions, score_records

HW = (20, 30)


def mask(left: int, top: int, right: int, bottom: int) -> dict[str, Any]:
    pixels = np.zeros(HW, dtype=bool)
    pixels[top:bottom, left:right] = True
    return encode_rle(pixels)


def make_record(index: int = 0, **changes: Any) -> QuestionRecord:
    """A dog and a cat are asked for; the answer has them the other way round, and a third mask beside both."""
    values: dict[str, Any] = {
        "benchmark": "MultiReasonSeg|val", "protocol": "generate", "index": index, "conversation": 0,
        "sample_id": str(index), "image": "photo.jpg", "upright": False, "size": HW, "question": f"Who barks? {index}",
        "kind": "", "has_target": True, "names": ("brown dog", "gray cat"),
        "true_masks": (mask(0, 0, 10, 10), mask(20, 10, 30, 20)), "ignored": None, "answer": "",
        "numbered": "The cat is [0], the dog is [1], and a bird [2].", "reason": None,
        "phrases": ("cat", "dog", "bird"), "confidences": (0.9, 0.9, 0.9),
        "predictions": (mask(0, 0, 10, 9), mask(21, 10, 30, 20), mask(12, 0, 15, 3)),
    }  # fmt: skip
    return QuestionRecord(**values | changes)


def scores_for(body: dict[str, Any], score: float = 1.0) -> Sent:
    """As many as are asked for."""
    count = body["response_format"]["json_schema"]["schema"]["properties"]["scores"]["minItems"]
    return Sent(json.dumps({"scores": [score] * count}))


def make_judge(server: ChatServer, **changes: Any) -> Judge:
    return Judge(**{"url": server.url, "model": "m", "tries": 2, "first_pause": 0.001, "concurrency": 3} | changes)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / VERDICTS).read_text(encoding="utf-8").splitlines()]


def test_a_judge_reads_the_true_names_where_the_answer_has_masks():
    text = make_request(make_record()).messages[0]["content"]
    first, second = "(brown dog [0, 0, 10, 9])", "(gray cat [21, 10, 30, 20])"
    third = f"({UNMATCHED} [12, 0, 15, 3])"
    assert f"Answer: The cat is {first}, the dog is {second}, and a bird {third}.\n" in text
    assert f"\n1. {first}\n2. {second}\n3. {third}\n" in text
    assert "Question: Who barks? 0\n" in text
    assert "30 pixels wide and 20 pixels high" in text
    assert "3 numbers" in text


def test_a_mask_that_touches_nothing_has_no_name():
    """The matching pairs it with the object that is left, which it does not show."""
    record = make_record(numbered="It is [0].", predictions=(mask(12, 0, 15, 3),), phrases=("",), confidences=(0.9,))
    assert f"Answer: It is ({UNMATCHED} [12, 0, 15, 3]).\n" in make_request(record).messages[0]["content"]
    empty = make_record(numbered="It is [0].", predictions=(mask(0, 0, 0, 0),), phrases=("",), confidences=(0.9,))
    assert f"({UNMATCHED} [0, 0, 0, 0])" in make_request(empty).messages[0]["content"]


def test_numbers_are_replaced_from_left_to_right():
    assert rewrite("[1] of [0] and [1]", ["(a)", "(b)"]) == "[1] of (a) and (b)"
    assert rewrite("{x} [0]", ["([1] {y})"]) == "{x} ([1] {y})"
    with pytest.raises(Unjudgeable, match="mask 1"):
        rewrite("[1] of [0]", ["(a)", "(b)"])


def test_every_answer_with_masks_gets_a_score_for_each_mask(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    none = make_record(2, predictions=(), phrases=(), confidences=(), numbered="Nobody.")
    records = [make_record(1), make_record(0), none, make_record(3, protocol="teacher_forced")]
    with chat_server(answer=scores_for) as server:
        judge_rows(tmp_path, records, make_judge(server))
        assert len(server.requests) == 2
    assert read_verdicts(tmp_path) == {
        ("MultiReasonSeg|val", "generate", 0, 0): (1.0, 1.0, 1.0),
        ("MultiReasonSeg|val", "generate", 1, 0): (1.0, 1.0, 1.0),
    }
    assert [line["key"][2] for line in lines_of(tmp_path)] == [0, 1], "in the order of the set"
    assert judged_by(tmp_path, records) == "m"
    assert judged_by(tmp_path, [none]) == "none"
    assert "2 questions judged, 0 failed" in caplog.text
    assert "30 tokens" in caplog.text


def test_without_a_judge_there_are_no_verdicts(tmp_path):
    assert read_verdicts(tmp_path) is None
    assert judged_by(tmp_path, [make_record()]) == "none"


def test_the_order_in_which_replies_come_does_not_show(tmp_path):
    contents = []
    for folder, concurrency in ((tmp_path / "a", 1), (tmp_path / "b", 8)):
        with chat_server(answer=scores_for) as server:
            judge_rows(folder, [make_record(n) for n in range(12)], make_judge(server, concurrency=concurrency))
        contents.append((folder / VERDICTS).read_bytes())
    assert contents[0] == contents[1]


def test_a_judgment_goes_on_where_it_was_killed(tmp_path):
    records = [make_record(number) for number in range(4)]
    with chat_server(answer=scores_for) as server:
        judge = make_judge(server, cache=tmp_path / "cache")
        judge_rows(tmp_path, records, judge)
        whole = (tmp_path / VERDICTS).read_bytes()
        (tmp_path / VERDICTS).write_bytes(whole[: len(whole) // 2 - 5])
        judge_rows(tmp_path, records, make_judge(server, cache=tmp_path / "other"))
        assert len(server.requests) == 4 + 3, "of four lines, two are lost and the second is torn"
        assert (tmp_path / VERDICTS).read_bytes() == whole
        (tmp_path / VERDICTS).unlink()
        judge_rows(tmp_path, records, judge)
        assert len(server.requests) == 4 + 3, "the cache has them all"
    assert (tmp_path / VERDICTS).read_bytes() == whole


@pytest.mark.parametrize("change", [{"numbered": "[0] [1] [2]"}, {"names": ("dog", "cat")}, {"question": "Which?"}])
def test_what_was_judged_about_another_answer_is_judged_again(tmp_path, change):
    with chat_server(answer=scores_for) as server:
        judge_rows(tmp_path, [make_record(0), make_record(1)], make_judge(server))
        judge_rows(tmp_path, [make_record(0), make_record(1, **change)], make_judge(server))
        assert len(server.requests) == 3


def test_another_model_judges_anew_and_lines_of_other_rows_stay(tmp_path):
    with chat_server(answer=scores_for) as server:
        judge_rows(tmp_path, [make_record(0), make_record(1)], make_judge(server))
        judge_rows(tmp_path, [make_record(1)], make_judge(server, model="larger"))
        assert len(server.requests) == 3
    assert [line["model"] for line in lines_of(tmp_path)] == ["m", "larger"]


def test_a_judge_that_stops_leaves_no_verdict_about_another_answer(tmp_path):
    records = [make_record(0), make_record(1, question="Which?"), make_record(2, predictions=())]
    with chat_server(answer=scores_for) as server:
        judge_rows(tmp_path, [make_record(number) for number in range(3)], make_judge(server))
    with chat_server(Sent("no key", 401)) as server, pytest.raises(InputError, match="refuses the key"):
        judge_rows(tmp_path, records, make_judge(server))
    assert list(read_verdicts(tmp_path)) == [records[0].key]


def test_a_question_that_cannot_be_judged_is_listed_counted_and_asked_again(tmp_path, caplog):
    def answer(body: dict[str, Any]) -> Sent:
        return Sent("oops", 500) if "barks? 1" in body["messages"][0]["content"] and is_broken else scores_for(body)

    is_broken = True
    records = [make_record(0), make_record(1), make_record(2, names=("", "cat"))]
    with chat_server(answer=answer) as server:
        judge_rows(tmp_path, records, make_judge(server))
        assert len(server.requests) == 1 + 2
        assert list(read_verdicts(tmp_path)) == [records[0].key]
        errors = [line.get("error", "") for line in lines_of(tmp_path)]
        assert errors[0] == ""
        assert "500: oops" in errors[1]
        assert "no name for true mask 0" in errors[2]
        assert "1 questions judged, 2 failed" in caplog.text
        is_broken = False
        judge_rows(tmp_path, records, make_judge(server))
    assert list(read_verdicts(tmp_path)) == [records[0].key, records[1].key]


def test_what_the_ceiling_leaves_out_is_listed(tmp_path):
    records = [make_record(number) for number in range(3)]
    with chat_server(answer=lambda body: scores_for(body)) as server:
        judge_rows(tmp_path, records, make_judge(server, ceiling=100))
        assert not server.requests
    assert judged_by(tmp_path, records) == "m"
    assert len(lines_of(tmp_path)) == 3
    assert all("ceiling of 100 tokens" in line["error"] for line in lines_of(tmp_path))


def test_a_wrong_number_of_scores_is_no_verdict(tmp_path):
    with chat_server('{"scores": [1, 1]}', '{"scores": [1, 1]}') as server:
        judge_rows(tmp_path, [make_record()], make_judge(server))
    assert "scores" in lines_of(tmp_path)[0]["error"]
    assert read_verdicts(tmp_path) == {}, "there is a judge, who gave none"


def test_a_rejected_mask_loses_its_intersection_and_unjudged_questions_keep_theirs(tmp_path):
    """At the threshold is below it."""
    records = [make_record(0), make_record(1)]
    replies = {"0": '{"scores": [0.5, 0.51, 1]}', "1": "no JSON"}
    with chat_server(
        answer=lambda body: Sent(replies[body["messages"][0]["content"].split("barks? ")[1][0]])
    ) as server:
        judge_rows(tmp_path, records, make_judge(server))
    groups, questions = score_records(
        records, "matched", options=ScoringOptions(judge_threshold=0.5), verdicts=read_verdicts(tmp_path)
    )
    assert [one.pairs.intersection.tolist() for one in questions] == [[0, 90, 0], [90, 90, 0]]
    assert groups["all"]["num_unjudged"] == 1


@pytest.mark.parametrize("damage", ["{}", "[]", "not JSON", '{"key": ["a", "b", 1, 2], "model": "m", "asked": 3}'])
def test_a_damaged_line_is_told_with_its_place(tmp_path, damage):
    (tmp_path / VERDICTS).write_text(f"{damage}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"verdicts\.jsonl:1.* remove verdicts\.jsonl, and judge again"):
        read_verdicts(tmp_path)


def flags(*argv: str) -> JudgeFlags:
    return parse(JudgeFlags, argv, "").config


def test_nobody_judges_unless_asked_to():
    assert flags().chosen_judge is None


def test_the_flags_make_a_judge(tmp_path):
    where = ("--judge", "llm", "--judge_url", "http://localhost:8000/v1", "--judge_model", "m")
    judge = flags(*where).chosen_judge
    assert judge == Judge("http://localhost:8000/v1", "m", ceiling=10_000_000)
    money = ("--judge_max_cost", "2", "--judge_price_in", "0.5", "--judge_price_out", "1.5")
    judge = flags(*where, *money, "--judge_cache", str(tmp_path / JUDGE_CACHE), "--judge_threshold", "0.3").chosen_judge
    assert judge is not None
    assert (judge.ceiling, judge.prices, judge.cache) == (2.0, (0.5, 1.5), tmp_path / JUDGE_CACHE)
    assert judge.threshold == 0.3


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--judge", "llm"], "needs --judge_url"),
        (["--judge", "llm", "--judge_url", "http://localhost:8000/v1"], "needs --judge_model"),
        (["--judge_max_cost", "1"], "--judge_price_in"),
        (["--judge_price_in", "1"], "--judge_max_cost"),
        (["--judge_threshold", "1.5"], "--judge_threshold is 1.5"),
        (["--judge_max_cost", "nan"], "--judge_max_cost"),
        *((["--judge", "llm", "--judge_model", "m", "--judge_url", url], "--judge_url")
          for url in ("localhost:8000", "ftp://localhost", "http://", "http://[::1", "http://localhost:99999/v1")),
    ],
)  # fmt: skip
def test_flags_that_cannot_work_are_told(argv, problem):
    with pytest.raises(InputError, match=problem):
        flags(*argv)
    assert issubclass(BadValue, InputError)


@pytest.mark.parametrize("url", ["http://me:sk-secret@localhost/v1", "https://localhost/v1?key=sk-secret"])
def test_an_address_with_a_secret_is_refused_and_not_repeated(url):
    with pytest.raises(InputError, match="OPENAI_API_KEY") as caught:
        flags("--judge", "llm", "--judge_model", "m", "--judge_url", url)
    assert "secret" not in str(caught.value)
