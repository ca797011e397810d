"""report.html as a file: what it holds, which questions it shows, in which colors; strangers' text stays text."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest

from tests.support.scored_rows import HOSTILE, SETTINGS, H, W, muse_records, question, rows, square
from utils.evaluation.benchmarks import Benchmark
from utils.evaluation.records import QuestionRecord
from utils.evaluation.report import write_report
from utils.evaluation.report_plots import plots
from utils.evaluation.report_samples import Entry, choose, color_slots, members, outline
from utils.evaluation.scores import ScoredQuestion, ScoredRow, ScoringOptions, score_records


def scored(records: list[QuestionRecord], rule="matched") -> tuple[ScoredQuestion, ...]:
    return score_records(records, rule, options=ScoringOptions())[1]


def written(folder, evaluated, **options) -> str:
    write_report(folder / "report.html", evaluated, **{"settings": SETTINGS, **options})
    return (folder / "report.html").read_text(encoding="utf-8")


def data_of(page: str) -> dict:
    """What the script of the page reads."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


def test_no_text_of_strangers_becomes_markup(tmp_path):
    page = written(tmp_path, rows(tmp_path), other=(HOSTILE, rows(tmp_path, shift=3)))
    assert page.count("<script") == 2, "the data, and the script of the page"
    assert "<img" not in page
    assert data_of(page)["questions"][4][3] == HOSTILE


def test_the_page_names_no_other_place(tmp_path):
    page = written(tmp_path, rows(tmp_path))
    assert set(re.findall(r"https?://[^\"' ]*", page)) == {"http://www.w3.org/2000/svg"}
    assert re.search(r"default-src 'none'; img-src data:; style-src 'sha256-\S+'; script-src 'sha256-\S+'", page)


def test_the_same_result_gives_the_same_bytes(tmp_path):
    assert written(tmp_path, rows(tmp_path)) == written(tmp_path, rows(tmp_path))


def test_scores_stand_beside_published_ones_and_a_row_without_data_is_named(tmp_path):
    evaluated = rows(tmp_path)
    evaluated[0].groups["all"] |= {"giou": 0.456, "giou_interval": [0.4, 0.512]}
    page = re.sub(r"\s+", " ", written(tmp_path, evaluated))
    assert '45.6<span class="small">40.0\N{EN DASH}51.2</span>' in page
    assert "PixelLM, table 2; protocol: generate; read in the source" in page
    assert "a note; protocol not stated; not verified" in page
    assert "42.1" in page
    assert "53.3" in page
    assert "not evaluated: <bdi>dataset/reason_seg is not there</bdi>" in page


def test_what_was_evaluated_stands_on_top(tmp_path):
    head = written(tmp_path, rows(tmp_path)).split("<main>")[0]
    assert "10 questions about 10 photos, in 2 rows; 1 more without data" in head
    for name, value in {"judge": "none", "versions": "torch 2.13.0", "command": SETTINGS["command"]}.items():
        assert re.search(rf"<dt>{name}</dt><dd[^>]*><bdi>{re.escape(value)}</bdi>", head)


def test_questions_that_rows_share_count_once_among_all_rows(tmp_path):
    muse, *_ = rows(tmp_path)
    joined = replace(muse, benchmark=replace(muse.benchmark, name="MultiReasonSeg|test"))
    page = written(tmp_path, [muse, joined])
    data, count = data_of(page), len(muse.questions)
    assert f"{count} questions about {count} photos, in 2 rows" in page
    assert data["repeated"] == list(range(count, 2 * count))
    assert data["lists"][2] == data["lists"][0]
    assert data["plots"][2] == data["plots"][0]


def test_a_result_without_any_data_is_a_page(tmp_path):
    page = written(tmp_path, rows(tmp_path)[2:], settings={})
    assert "not evaluated" in page
    assert data_of(page)["questions"] == []


def test_each_kind_shows_the_questions_that_it_names(tmp_path):
    first = scored(muse_records(tmp_path))
    second = scored(muse_records(tmp_path, shift=-3))
    kinds = choose([Entry(0, one, other) for one, other in zip(first, second, strict=True)], most=3)
    scores = [one.score for one in first]
    assert kinds["worst"] == sorted(range(7), key=lambda place: scores[place])[:3]
    assert kinds["worst"][0] == 3
    assert kinds["best"] == sorted(range(7), key=lambda place: -scores[place])[:3]
    assert len(set(kinds["random"])) == 3
    assert kinds["extra"] == [2]
    assert kinds["missed"] == [3]
    assert all(first[place].score > second[place].score for place in kinds["better"])
    assert {"better", "worse"} <= set(kinds)
    assert all(first[place].score < second[place].score for place in kinds["worse"])


def test_settings_say_how_many_are_pictured(tmp_path):
    def count(pictures: int) -> int:
        settings = {"config": {"pictures": pictures}}
        return len(data_of(written(tmp_path, rows(tmp_path), settings=settings))["pictures"])

    assert count(0) == 0
    assert 1 < count(1) < count(9) == 10


def test_matched_masks_share_a_color_and_no_other_has_it(tmp_path):
    records = muse_records(tmp_path)
    swapped, extra, missed = scored([records[1], records[2], records[3]])
    assert color_slots(swapped) == ([1, 0], [0, 1])
    assert color_slots(extra) == ([0, 1, 2], [0, 1])
    assert color_slots(missed) == ([2], [0, 1, 2])
    assert [(pair.predicted, pair.true) for pair in members(missed)][:1] == [([0], [2])]


def test_masks_that_are_compared_together_have_one_color(tmp_path):
    true = [square(0, 0), square(40, 0)]
    two, none, extra = scored(
        [question(tmp_path, 0, true, true), question(tmp_path, 1, true, []), question(tmp_path, 2, [], true)],
        "generalized",
    )
    assert color_slots(two) == ([0, 0], [0, 0])
    assert [(pair.predicted, pair.true, pair.iou) for pair in members(two)] == [([0, 1], [0, 1], 1.0)]
    assert Entry(0, none).num_missed == 2
    assert Entry(0, extra).num_extra == 2


def test_a_photo_stands_in_the_page_once(tmp_path):
    records = muse_records(tmp_path)
    same = [replace(record, image=records[0].image) for record in records]
    benchmark = Benchmark("MultiReasonSeg|val", ("MultiReasonSeg|val",), "matched", ("generate",))
    data = data_of(written(tmp_path, [ScoredRow(benchmark, "generate", {}, scored(same))]))
    assert len(data["pictures"]) == 7
    assert len(data["photos"]) == 1
    assert data["photos"][0].startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image": "nowhere.jpg"}, "image nowhere.jpg does not exist"),
        ({"size": (W, H)}, "pixels; the question was about"),
    ],
)
def test_a_photo_that_cannot_be_shown_is_told_in_its_place(tmp_path, changes, says):
    record = question(tmp_path, 0, [], [], **changes)
    benchmark = Benchmark("x", ("x",), "matched", ("generate",))
    data = data_of(written(tmp_path, [ScoredRow(benchmark, "generate", {}, scored([record]))]))
    assert says in data["pictures"]["0"]["note"]
    assert data["pictures"]["0"]["photo"] == -1


def test_an_outline_encloses_its_mask():
    y, x = np.mgrid[:200, :300]
    ring = (np.hypot(x - 150, y - 100) < 80) & (np.hypot(x - 150, y - 100) > 40)
    mask = ring | square_at(5, 5) | (np.abs(x - 290) < 3)
    painted = np.zeros(mask.shape, dtype=np.uint8)
    for part in re.findall(r"M(.*?)z", outline(mask)):
        start, _, steps = part.partition("l")
        points = np.cumsum(np.array([start.split(), *np.array(steps.split()).reshape(-1, 2)], dtype=int), axis=0)
        layer = cv2.fillPoly(np.zeros_like(painted), [points.astype(np.int32)], 1)
        painted ^= layer  # as the rule evenodd
    assert (painted.astype(bool) ^ mask).sum() < 0.03 * mask.sum()
    assert outline(np.zeros((9, 9), dtype=bool)) == ""


def square_at(x: int, y: int) -> np.ndarray:
    mask = np.zeros((200, 300), dtype=bool)
    mask[y : y + 30, x : x + 30] = True
    return mask


def test_plots_count_every_pair_and_every_question(tmp_path):
    questions = scored(muse_records(tmp_path))
    shown = plots(questions)
    ious = np.concatenate([one.pairs.iou for one in questions])
    assert sum(shown["ious"]) == len(ious)
    assert shown["ious"][0] == (ious < 0.05).sum()
    assert sum(count for _, _, count in shown["sizes"]) == sum(one.record.num_true for one in questions)
    assert [(name, count) for name, _, count in shown["targets"]] == [("1", 3), ("2", 3), ("3", 1)]
    assert shown["targets"][2][1] == pytest.approx(questions[3].score, abs=1e-4)
