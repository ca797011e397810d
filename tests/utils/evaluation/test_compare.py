"""Two results paired by question: the differences, who won, and what cannot be compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from model.errors import InputError
from tests.support.answers import answered, box
from utils.evaluation.benchmarks import Benchmark
from utils.evaluation.compare import compare
from utils.evaluation.records import QuestionRecord
from utils.evaluation.scores import ScoredRow, ScoringOptions, score_records

WHOLE, HALF, NOTHING = box(0, 0, 6, 4), box(0, 0, 3, 4), box(0, 0, 0, 0)


def row(records: list[QuestionRecord], *, name: str = "Drawn|val", rule: Any = "matched", **changed: Any) -> ScoredRow:
    protocol = records[0].protocol if records else "generate"
    options = changed.get("options", ScoringOptions())
    groups, questions = score_records(records, rule, options=options)
    return ScoredRow(Benchmark(name, (name,), rule, (protocol,)), protocol, groups, questions, **changed)


def answers(*masks, **changed: Any) -> list[QuestionRecord]:
    """One question about each image, answered with one mask."""
    return [answered([mask], [WHOLE], index=index, **changed) for index, mask in enumerate(masks)]


ONE = row(answers(HALF, WHOLE, HALF, NOTHING))
OTHER = row(answers(WHOLE, HALF, HALF, HALF))


def test_differences_are_those_of_the_common_questions():
    """IoUs 1/2, 1, 1/2, 0 and 1, 1/2, 1/2, 1/2; 24 pixels each."""
    (found,) = compare([ONE], [OTHER]).rows
    giou, ciou = found.differences
    assert (giou.metric, giou.one, giou.other, giou.change) == ("giou", 0.5, 0.625, 0.125)
    assert (ciou.metric, ciou.one, ciou.other, ciou.change) == ("ciou", 0.5, 0.625, 0.125)
    assert (found.better, found.worse, found.equal) == (2, 1, 1)
    assert (found.num_questions, found.num_images) == (4, 4)
    # Changes 1/2, -1/2, 0, 1/2 about their mean 1/8 sum to 0.6875 in squares; t with 3 degrees of freedom.
    half = 3.18244630528371 * (4 / 3 * 0.6875) ** 0.5 / 4
    assert giou.interval == pytest.approx([0.125 - half, 0.125 + half])


def test_a_result_equals_itself():
    (found,) = compare([ONE], [ONE]).rows
    assert (found.better, found.worse, found.equal) == (0, 0, 4)
    assert all(difference.change == 0 and difference.interval == [0, 0] for difference in found.differences)


def test_a_dropped_question_is_named():
    """A result that lost its tail is compared over what is left, and says what the other one has more."""
    (found,) = compare([ONE], [row(answers(WHOLE, HALF, HALF))]).rows
    assert found.num_questions == 3
    assert found.only_one == ("question 0 about sample 3 of Drawn|val (generate; photo)",)
    assert found.only_other == ()
    assert found.differences[0].one == pytest.approx(2 / 3)


def test_rows_of_only_one_are_named():
    extra = row(answers(WHOLE, benchmark="B|val"), name="B|val")
    missing = replace(extra, missing="no such files")
    found = compare([ONE, extra], [OTHER, missing])
    assert [one.name for one in found.rows] == ["Drawn|val"]
    assert (found.only_one, found.only_other) == (("B|val (generate)",), ())


def test_right_silence_beats_a_stray_mask():
    quiet, stray = (row([answered(masks, [], index=0)]) for masks in ([], [WHOLE]))
    (found,) = compare([quiet], [stray]).rows
    assert (found.better, found.worse, found.equal) == (0, 1, 0)


def test_generalized_rows_count_questions():
    quiet, stray = (row([answered(masks, [], index=0)], rule="generalized") for masks in ([], [WHOLE]))
    (found,) = compare([quiet], [stray]).rows
    assert (found.differences[0].one, found.differences[0].other) == (1, 0)


def test_other_protocols_are_refused():
    given = row(answers(WHOLE, protocol="named"))
    with pytest.raises(InputError, match=r"Drawn\|val \(generate\) and Drawn\|val \(named\)"):
        compare([ONE], [given])
    with pytest.raises(InputError, match="and nothing"):
        compare([ONE], [])


def test_other_judges_are_refused():
    with pytest.raises(InputError, match="judged by none in the first result and by some-model in the second"):
        compare([ONE], [replace(OTHER, judge="some-model")])


def test_other_matching_is_refused():
    released = [row(answers(WHOLE), options=ScoringOptions(matching="released", seed=seed)) for seed in (0, 1)]
    with pytest.raises(InputError, match="exact matching and rule matched, released matching, seed 0"):
        compare([ONE], [released[0]])
    with pytest.raises(InputError, match=r"seed 0 and .*seed 1"):
        compare([released[0]], [released[1]])
    unused = replace(OTHER, options=ScoringOptions(seed=7, judge_threshold=0.9))
    assert compare([ONE], [unused]).rows, "neither was used"


@pytest.mark.parametrize(
    ("what", "changed"),
    [("true_masks", {}), ("size", {}), ("names", {"names": ("cup",)}), ("has_target", {"has_target": False})],
)
def test_other_data_are_refused(what, changed):
    shape = {"true_masks": HALF, "size": box(0, 0, 6, 4, hw=(6, 11))}.get(what, WHOLE)
    other = row([answered([shape], [shape], **changed), *answers(WHOLE, WHOLE)[1:]])
    with pytest.raises(InputError, match=f"different data: question 0 about sample 0 .* same {what} in both"):
        compare([ONE], [other])


def test_the_table_says_it_all():
    longer = row(answers(WHOLE, HALF, HALF, HALF, *[WHOLE] * 7))
    table = compare([ONE], [longer, row(answers(WHOLE, benchmark="B|val"), name="B|val")]).table(one="old", other="new")
    lines = table.splitlines()
    assert lines[:2] == ["A: old", "B: new"]
    assert "Drawn|val, generate: 4 questions about 4 images" in lines
    assert any(line.split()[:4] == ["giou", "50.0%", "62.5%", "+12.5%"] for line in lines)
    assert "B is better in 2 questions, worse in 1, equal in 1" in lines
    assert any(line.startswith("only B has 7: question 0 about sample 4") and "and 2 more" in line for line in lines)
    assert lines[-1] == "only B has 1: B|val (generate)"


def test_plain_data():
    found = compare([ONE], [OTHER]).to_dict()
    assert found["rows"][0]["differences"][0]["change"] == 0.125
