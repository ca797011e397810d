"""From records to numbers: each rule against cases computed by hand, and errors that must not go unseen."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from model.errors import InputError
from tests.support.answers import answered, box
from utils.evaluation.matching import EMPTY, UNITED
from utils.evaluation.records import QuestionRecord
from utils.evaluation.scores import ScoringOptions, score_records

RESCORING = ("records", "benchmarks", "scores", "matching", "metrics", "generalized", "intervals", "compare")
NOTHING = box(0, 0, 0, 0)
A, B, C = box(0, 0, 6, 2), box(0, 4, 6, 6), box(0, 8, 6, 10)  # 12 pixels each
HALF_A = box(0, 0, 3, 2)


def score(records, rule="matched", group="all", **options):
    groups, questions = score_records(records, rule, options=ScoringOptions(**options))
    return groups[group], questions


def test_matched_one_to_one_in_any_order():
    """A found whole, B by a half, C missed: (1 + 1/2 + 0) / 3, and 12 + 6 + 0 of 12 + 12 + 12."""
    scores, (question,) = score([answered([box(0, 4, 3, 6), A], [A, B, C])])
    assert (scores["giou"], scores["ciou"]) == (0.5, 0.5)
    assert question.score == 0.5
    assert question.pairs.pred_index.tolist() == [1, 0, EMPTY]


def test_an_extra_mask_counts_against_an_empty_truth():
    scores, _ = score([answered([A, B], [A])])
    assert (scores["giou"], scores["ciou"]) == (0.5, 0.5)
    assert (scores["mean_pred"], scores["mean_true"], scores["right_count"]) == (2, 1, 0)


@pytest.mark.parametrize("protocol", ["teacher_forced", "named"])
def test_given_answers_are_paired_by_position(protocol):
    """The groups stand where the answer names the objects; a swap is an error there."""
    scores, questions = score([answered([B, A], [A, B], protocol=protocol)])
    assert scores["giou"] == 0
    assert questions[0].pairs.union.tolist() == [24, 24]
    scores, _ = score([answered([HALF_A], [A, B], protocol=protocol)])
    assert (scores["giou"], scores["ciou"]) == (0.25, 6 / 24)


def test_referring_joins_all_masks_of_an_answer():
    """Both halves of A are one prediction; the mean over expressions and the sums: (1 + 1/2) / 2, 18 of 24."""
    records = [answered([HALF_A, box(3, 0, 6, 2)], [A], index=0), answered([HALF_A], [A], index=1)]
    scores, questions = score(records, "referring")
    assert (scores["giou"], scores["ciou"], scores["num_pairs"]) == (0.75, 0.75, 2)
    assert questions[0].pairs.pred_index.tolist() == [UNITED]
    assert questions[1].pairs.pred_index.tolist() == [0]


def test_referring_without_a_mask_is_a_miss():
    scores, _ = score([answered([], [A])], "referring")
    assert (scores["giou"], scores["ciou"]) == (0, 0)


def test_several_expressions_in_one_question():
    """A given answer draws them in their order; a free one may take another."""
    scores, _ = score([answered([B, A], [A, B], protocol="teacher_forced")], "referring")
    assert scores["giou"] == 0
    scores, _ = score([answered([B, A], [A, B])], "referring")
    assert scores["giou"] == 1


@pytest.mark.parametrize("rule", ["matched", "referring", "generalized"])
def test_ignored_pixels_have_no_say(rule):
    """The right half of the photo does not count: neither what was drawn there nor what is there."""
    record = answered([box(0, 0, 3, 8)], [box(0, 0, 6, 10)], ignored=box(0, 5, 6, 10))
    scores, (question,) = score([record], rule)
    assert (scores["giou"], scores["ciou"]) == (0.5, 0.5)
    assert question.pairs.true_area.tolist() == [30]


def test_ious_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(20):
        predicted, true = (rng.random((30, 40)) < rng.random() for _ in range(2))
        record = answered([predicted], [true])
        _, (question,) = score([record])
        assert question.pairs.iou == coco_mask.iou(list(record.predictions), list(record.true_masks), [False])[0]


def test_nothing_asked_and_nothing_drawn_is_no_pair():
    groups, questions = score_records(
        [answered([], []), answered([A], [], index=1)], "matched", options=ScoringOptions()
    )
    assert [question.score for question in questions] == [None, 0]
    assert groups["no-target"]["num_questions"] == 2
    assert (groups["all"]["num_pairs"], groups["all"]["giou"], groups["all"]["ciou"]) == (1, 0, 0)
    assert groups["all"]["right_count"] == 0.5


def test_groups_by_number_kind_and_size():
    wide = (120, 200)
    small, medium, large = (box(0, 0, *sides, hw=wide) for sides in ((31, 33), (32, 32), (96, 96)))
    records = [
        answered([small], [small], index=0, kind="short"),
        answered([NOTHING] * 3, [A, B, C], index=1, kind="long"),
        answered([medium, large], [medium, large], index=2),
        answered([A] * 7, [A] * 7, index=3),
        answered([], [A] * 4, index=4),
    ]
    groups, _ = score_records(records, "matched", options=ScoringOptions())
    assert {
        name: (scores["num_questions"], scores["num_pairs"], scores["giou"]) for name, scores in groups.items()
    } == {
        "all": (5, 17, 10 / 17),
        "no-target": (0, 0, None),
        "single-target": (1, 1, 1),
        "multi-target": (4, 16, 9 / 16),
        "targets 2-3": (2, 5, 2 / 5),
        "targets 4-6": (1, 4, 0),
        "targets 7+": (1, 7, 1),
        "kind long": (1, 3, 0),
        "kind short": (1, 1, 1),
        "small targets": (4, 15, 8 / 15),
        "medium targets": (1, 1, 1),
        "large targets": (1, 1, 1),
    }


def test_the_released_number_stands_beside():
    """Two questions about one image, one with a mask too many, one with a mask too few: 2 of max(3, 3) masks."""
    records = [answered([A, B], [A]), answered([A], [A, C], conversation=1)]
    scores, _ = score(records)
    assert scores["giou"] == 0.5
    assert scores["released_muse_giou"] == 2 / 3
    assert "released_muse_giou" not in score(records, "referring")[0]


def test_a_rejected_pair_loses_its_intersection_alone():
    records = [answered([B, A], [A, B]), answered([A], [A], index=1), answered([A], [A], index=2)]
    verdicts = {records[0].key: [0.5, 0.6], records[1].key: [0.4]}
    groups, questions = score_records(records, "matched", options=ScoringOptions(), verdicts=verdicts)
    assert [question.score for question in questions] == [0.5, 0, 1]
    assert (groups["all"]["giou"], groups["all"]["ciou"]) == (2 / 4, 24 / 48)
    assert groups["all"]["num_unjudged"] == 1, "a question that the judge did not read"
    assert groups["all"]["released_muse_giou"] == 1, "the release has no judge"
    strict, _ = score_records(records, "matched", options=ScoringOptions(judge_threshold=0.6), verdicts=verdicts)
    assert strict["all"]["giou"] == 1 / 4


def test_a_missed_truth_has_no_verdict():
    record = answered([A], [A, B])
    groups, _ = score_records([record], "matched", options=ScoringOptions(), verdicts={record.key: [1.0]})
    assert groups["all"]["giou"] == 0.5


def test_verdicts_of_other_masks_are_refused():
    record = answered([A], [A])
    with pytest.raises(InputError, match="1 predicted masks and 2 verdicts"):
        score_records([record], "matched", options=ScoringOptions(), verdicts={record.key: [1.0, 1.0]})


RECORDS = [
    answered([A, HALF_A], [A, B], index=0),
    answered([B], [B], index=0, conversation=1),
    answered([C], [A], index=1),
    answered([HALF_A, C], [C, A], index=2),
]


def planted_duplicate(records: list[QuestionRecord]) -> list[QuestionRecord]:
    return [*records, records[0]]


def dropped_tail(records: list[QuestionRecord]) -> list[QuestionRecord]:
    return records[:-1]


def swapped_masks(records: list[QuestionRecord]) -> list[QuestionRecord]:
    """The predictions of two questions."""
    first, *between, last = records
    return [replace(first, predictions=last.predictions), *between, replace(last, predictions=first.predictions)]


def test_the_right_records_give_the_right_numbers():
    """Pairs 1 and 0, 1, 0, 1/2 and 1; 12 + 0 + 12 + 0 + 6 + 12 of 12 + 18 + 12 + 24 + 12 + 12."""
    scores, _ = score(RECORDS)
    found = [scores[name] for name in ("num_questions", "num_images", "num_pairs", "giou", "ciou")]
    assert found == [4, 3, 6, 3.5 / 6, 42 / 90]


def test_a_question_that_is_recorded_twice_is_refused():
    with pytest.raises(InputError, match=r"question 0 about sample 0 of Drawn\|val .* recorded twice"):
        score(planted_duplicate(RECORDS))


@pytest.mark.parametrize("plant", [dropped_tail, swapped_masks])
def test_planted_errors_change_the_numbers(plant):
    right, wrong = score(RECORDS)[0], score(plant(RECORDS))[0]
    assert wrong["giou"] != right["giou"]
    assert wrong["ciou"] != right["ciou"]
    assert (wrong["num_questions"] == right["num_questions"]) == (plant is swapped_masks)


def test_released_matching_is_the_same_in_any_company():
    """Points follow from the seed and the question, not from what was scored before."""
    rng = np.random.default_rng(0)
    records = [
        answered(list(rng.random((3, 9, 9)) < 0.5), list(rng.random((3, 9, 9)) < 0.5), index=i) for i in range(6)
    ]
    _, together = score(records, matching="released", seed=4)
    for record, question in zip(records, together, strict=True):
        _, (alone,) = score([record], matching="released", seed=4)
        assert alone.pairs.pred_index.tolist() == question.pairs.pred_index.tolist()


def test_released_matching_is_for_free_answers_alone():
    _, (question,) = score([answered([B, A], [A, B], protocol="named")], matching="released")
    assert question.pairs.pred_index.tolist() == [0, 1]


def test_a_damaged_mask_names_its_question():
    broken = {"size": [6, 10], "counts": "oo"}
    with pytest.raises(InputError, match=r"question 0 about sample 7 of Drawn\|val .*mask 0: its run lengths"):
        score([replace(answered([A], [A], index=7), predictions=(broken,))])


@pytest.mark.parametrize("rule", ["matched", "referring", "generalized"])
def test_the_order_of_records_changes_no_bit(rule):
    """Several processes write them in any order."""
    rng = np.random.default_rng(0)
    records = [
        answered(list(rng.random((2, 9, 9)) < 0.5), list(rng.random((rng.integers(3), 9, 9)) < 0.5), index=index)
        for index in range(40)
    ]
    groups, questions = score_records(records, rule, options=ScoringOptions())
    for _ in range(3):
        mixed = [records[index] for index in rng.permutation(len(records))]
        again, same = score_records(mixed, rule, options=ScoringOptions())
        assert again == groups
        assert [one.record for one in same] == [one.record for one in questions]


def test_without_questions_there_are_no_numbers():
    groups, questions = score_records([], "matched", options=ScoringOptions())
    assert questions == ()
    assert groups["all"]["num_questions"] == 0
    assert groups["all"]["giou"] is groups["all"]["giou_interval"] is groups["all"]["released_muse_giou"] is None


@pytest.mark.slow
def test_scoring_again_needs_no_torch(repository):
    program = "import sys\n" + "".join(f"import utils.evaluation.{name}\n" for name in RESCORING)
    program += "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
