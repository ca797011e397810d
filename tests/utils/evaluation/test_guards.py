"""Answers without token groups, and masks that show nothing."""

from __future__ import annotations

import torch

from utils.evaluation.blanks import Blanks, count_blanks
from utils.evaluation.guards import FEWEST_QUESTIONS, no_token_group

from .test_evaluation import A, B, evaluate

MODEL = {"version": "runs/my run/hf_model", "results_file": "out/results.json"}


def warning(tmp_path, true, replies) -> str:
    return str(no_token_group("Tiny|val", evaluate(tmp_path, [true], [replies]), **MODEL) or "")


def test_answers_that_never_ask_for_a_mask(tmp_path):
    text = warning(tmp_path, [[A]] * FEWEST_QUESTIONS + [[]], [[]] * (FEWEST_QUESTIONS + 1))
    assert f"Tiny|val: none of {FEWEST_QUESTIONS} answers that should draw holds a complete token group" in text
    assert "out/results.json" in text
    assert text.endswith("Next: python chat.py --version 'runs/my run/hf_model'")


def test_one_mask_is_enough(tmp_path):
    assert warning(tmp_path, [[A]] * FEWEST_QUESTIONS, [[]] * (FEWEST_QUESTIONS - 1) + [[B]]) == ""


def test_few_questions_prove_nothing(tmp_path):
    assert warning(tmp_path, [[A]] * (FEWEST_QUESTIONS - 1), [[]] * (FEWEST_QUESTIONS - 1)) == ""


def test_a_set_without_masks_wants_none(tmp_path):
    assert warning(tmp_path, [[]] * 3 * FEWEST_QUESTIONS, [[]] * 3 * FEWEST_QUESTIONS) == ""


def test_masks_that_show_nothing_are_counted_where_the_truth_shows_something():
    some, none, whole = torch.tensor([[1.0, -1.0]]), torch.full((1, 2), -1.0), torch.full((1, 2), 1.0)
    true = torch.stack([some, some, some, none, whole]) > 0
    predicted = torch.stack([some, none, whole, none, whole])
    other = torch.stack([none])
    nothing = torch.zeros(0, 3, 5)
    areas = [(logits > 0).sum((1, 2)) for logits in (predicted, other, nothing)]
    counts = count_blanks(areas, [true, torch.stack([some]) > 0, nothing > 0])
    assert counts.tolist() == [4, 2, 1]
    assert Blanks(4, 2, 1).share == 0.75
    assert Blanks().share == 0
    assert Blanks(4, 2, 1) + Blanks(1, 0, 1) == Blanks(5, 2, 2)
