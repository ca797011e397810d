"""gRefCOCO's scores, line by line as its official evaluator counts."""

from __future__ import annotations

import pytest

from tests.support.answers import answered, box
from utils.evaluation.generalized import Expression, score_expressions
from utils.evaluation.scores import ScoringOptions, score_records

# What is there, what was said, I, U -> what is added to gIoU, to the sums of cIoU.
TABLE = {
    "no target, said": (Expression(False, True, 0, 0), 1, (0, 0)),
    "no target, said beside stray pixels": (Expression(False, True, 0, 9), 1, (0, 0)),
    "no target, not said": (Expression(False, False, 0, 9), 0, (0, 9)),
    "no target, not said, nothing drawn": (Expression(False, False, 0, 0), 0, (0, 0)),
    "target, none said": (Expression(True, True, 0, 8), 0, (0, 8)),
    "target, none said beside a mask": (Expression(True, True, 6, 8), 0, (0, 8)),
    "target, not said": (Expression(True, False, 6, 8), 0.75, (6, 8)),
    "target, not said, no pixel anywhere": (Expression(True, False, 0, 0), 0, (0, 0)),
}


@pytest.mark.parametrize("case", TABLE)
def test_each_case_adds_what_the_evaluator_adds(case):
    expression, iou, areas = TABLE[case]
    assert expression.iou == iou
    assert expression.areas == areas


def test_the_scores_of_a_set():
    """TP 2, FN 2, FP 2, TN 2 of the table; 1 + 1 + 3/4 over 8 expressions; 6 pixels of 9 + 8 + 8 + 8."""
    scores = score_expressions([expression for expression, _, _ in TABLE.values()], whole_set=True)
    assert scores == {
        "giou": 2.75 / 8, "ciou": 6 / 33, "n_acc": 0.5, "t_acc": 0.5, "pr_70": 0.25, "pr_80": 0.0, "pr_90": 0.0,
    }  # fmt: skip


def test_precision_counts_the_threshold_itself():
    scores = score_expressions([Expression(True, False, tenths, 10) for tenths in (6, 7, 8, 9, 10)], whole_set=True)
    assert (scores["pr_70"], scores["pr_80"], scores["pr_90"]) == (0.8, 0.6, 0.4)


def test_nothing_to_divide_by():
    only_none = score_expressions([Expression(False, True, 0, 0)], whole_set=True)
    assert only_none == {
        "giou": 1.0, "ciou": None, "n_acc": 1.0, "t_acc": None, "pr_70": None, "pr_80": None, "pr_90": None,
    }  # fmt: skip
    assert set(score_expressions([], whole_set=True).values()) == {None}


def test_accuracies_of_a_set_without_absent_targets():
    """The evaluator writes 0 for both; of a group, what can be divided is."""
    found = [Expression(True, False, 1, 1)]
    whole, group = (score_expressions(found, whole_set=whole) for whole in (True, False))
    assert (whole["n_acc"], whole["t_acc"]) == (0, 0)
    assert (group["n_acc"], group["t_acc"]) == (None, 1)


EMPTY = box(0, 0, 0, 0)
LEFT, RIGHT = box(0, 0, 6, 4), box(0, 6, 6, 10)
# One record for each case of the table that an answer can be in, and one for masks without a pixel.
RECORDS = [
    answered([], [], index=0),  # no target, and nothing drawn
    answered([LEFT], [], index=1),  # no target, and 24 pixels drawn
    answered([EMPTY], [], index=2),  # no target, and a mask without a pixel
    answered([], [LEFT], index=3),  # missed
    answered([EMPTY, EMPTY], [LEFT], index=4),  # missed, by masks without a pixel
    answered([LEFT], [LEFT, RIGHT], index=5),  # one of two: I 24, U 48
    answered([RIGHT, LEFT], [LEFT, RIGHT], index=6),  # both together: I 48, U 48
]


def test_records_are_scored_by_both_rules_for_no_target():
    """gIoU: 1, 0, 0, 0, 0, 1/2, 1. Where no pixel means "no target", the third adds 1, and the fifth is a miss."""
    groups, questions = score_records(RECORDS, "generalized", options=ScoringOptions())
    scores = groups["all"]
    assert [question.score for question in questions] == [1, 0, 0, 0, 0, 0.5, 1]
    assert scores["giou"] == 2.5 / 7
    assert scores["giou_empty"] == 3.5 / 7
    assert scores["ciou"] == (24 + 48) / (24 + 24 + 24 + 48 + 48)
    assert (scores["n_acc"], scores["t_acc"]) == (1 / 3, 3 / 4)
    assert (scores["n_acc_empty"], scores["t_acc_empty"]) == (2 / 3, 2 / 4)
    assert (scores["pr_70"], scores["pr_80"], scores["pr_90"]) == (1 / 4, 1 / 4, 1 / 4)


def test_groups_by_what_is_there():
    groups, _ = score_records(RECORDS, "generalized", options=ScoringOptions())
    counts = {name: groups[name]["num_questions"] for name in ("no-target", "single-target", "multi-target")}
    assert counts == {"no-target": 3, "single-target": 2, "multi-target": 2}
    assert groups["no-target"]["giou"] == groups["no-target"]["n_acc"] == 1 / 3
    assert groups["multi-target"]["ciou"] == 72 / 96


def test_the_annotation_says_whether_there_is_a_target():
    """A target whose mask has no pixel is one; the wrong rule, from pixels, would reward the empty answer."""
    for has_target, score in ((True, 0.0), (False, 1.0)):
        record = answered([], [box(0, 0, 0, 0)], has_target=has_target)
        _, (question,) = score_records([record], "generalized", options=ScoringOptions())
        assert question.score == score


def test_a_wrong_rule_for_no_target_changes_the_scores():
    right, _ = score_records(RECORDS, "generalized", options=ScoringOptions())
    for wrong in ("matched", "referring"):
        groups, _ = score_records(RECORDS, wrong, options=ScoringOptions())
        assert groups["all"]["giou"] != right["all"]["giou"]
