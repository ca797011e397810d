"""Words of a dataset are inserted, never formatted, and every phrase gets exactly one mark."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.data import prompts
from utils.data.records import SEG_MARK

phrases = st.lists(
    st.text(alphabet="ab {}|seg%phrasgou", min_size=1, max_size=12)
    | st.sampled_from(["{seg}", "{{seg}}", "{groups}", "{phrase}", "a || b", "{0}", "{"]),
    min_size=1,
    max_size=5,
)
seeds = st.integers(0, 10_000)


@given(phrases, seeds, st.booleans())
def test_one_mark_per_phrase(phrases, seed, named):
    answer = prompts.answer(np.random.default_rng(seed), phrases, named=named)
    assert answer.count(SEG_MARK) == len(phrases)


@given(phrases, seeds)
def test_named_answers_and_questions_contain_every_phrase(phrases, seed):
    rng = np.random.default_rng(seed)
    answer = prompts.answer(rng, phrases, named=True)
    question = prompts.short_question(rng, phrases, expand=True)
    for phrase in phrases:
        assert phrase.replace(SEG_MARK, "(seg)") in answer
        assert phrase in question


@given(phrases)
def test_evaluation_answers(phrases):
    assert prompts.muse_eval_answer(phrases).count(SEG_MARK) == len(phrases)


def test_evaluation_wording_is_fixed():
    expected = " What is {left} guy in this image? Please output segmentation mask."
    assert prompts.referring_eval_question("{left} guy") == expected
    assert prompts.muse_eval_question("Who?") == "Who? Please output segmentation mask."
    assert prompts.muse_eval_answer(["a", "b", "c"]) == "a is {seg}, b is {seg} and c is {seg}."
    assert SEG_MARK not in prompts.muse_eval_answer([])


@pytest.mark.parametrize(
    ("templates", "slots"),
    [
        (prompts.SHORT_QUESTIONS + prompts.EXPANDED_SHORT_QUESTIONS, ("{phrase}",)),
        (prompts.MASK_REQUESTS + prompts.EXPANDED_MASK_REQUESTS, ()),
        (prompts.NAMED_ANSWERS + prompts.SEPARATE_CLAUSES + prompts.NAMED_JOINT_ANSWERS, ("{phrase}", "{groups}")),
        (prompts.BARE_ANSWERS, ("{groups}",)),
        (prompts.BARE_JOINT_ANSWERS, ("{groups}",)),
    ],
)
def test_templates_have_their_slots_once_and_occur_once(templates, slots):
    """The release's expanded wordings entered its list two or three times."""
    assert len(set(templates)) == len(templates)
    for template in templates:
        rest = template
        for slot in slots:
            assert template.count(slot) == 1
            rest = rest.replace(slot, "")
        assert "{" not in rest


@pytest.mark.parametrize("expand", [False, True])
def test_expansion_adds_wordings(expand):
    rng = np.random.default_rng(0)
    short = {prompts.short_question(rng, ["X"], expand=expand) for _ in range(400)}
    long = {prompts.long_question(rng, "Who?", expand=expand) for _ in range(400)}
    assert len(short) == 4 + 10 * expand
    assert len(long) == 4 + 10 * expand
    assert all(question.startswith("Who? ") for question in long)
