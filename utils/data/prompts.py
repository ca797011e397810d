"""Wording: phrases and sentences -> questions and answers.

Training draws from tuples of templates; evaluation has one fixed form each. Templates have the slots ``{phrase}`` and
``{groups}``. Text of a dataset is inserted, never formatted, because it may contain braces.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .records import SEG_MARK

_PHRASE, _GROUPS = "{phrase}", "{groups}"

# The release evaluates with these words; they are among those of training, too.
EVAL_MASK_REQUEST = "Please output segmentation mask."
_EVAL_QUESTION = f"What is {_PHRASE} in this image? {EVAL_MASK_REQUEST}"

SHORT_QUESTIONS = (
    _EVAL_QUESTION,
    "Where in the picture is {phrase}? Mark the place with a mask.",
    "Segment {phrase}, please.",
    "Find {phrase} in the photo and show me the exact pixels.",
)
EXPANDED_SHORT_QUESTIONS = (
    "Could you draw a mask over {phrase}?",
    "I am looking for {phrase}. Give me the segmentation.",
    "Which part of the image shows {phrase}? Answer with a mask.",
    "Please separate {phrase} from the rest of the scene.",
    "Point out {phrase} by segmentation.",
    "Trace the outline of {phrase} for me.",
    "Look for {phrase} and return the matching region.",
    "Can you tell me which pixels belong to {phrase}?",
    "Cut out {phrase} from this photograph.",
    "Show where {phrase} can be seen, as a segmentation mask.",
)
MASK_REQUESTS = (
    EVAL_MASK_REQUEST,
    "Answer with segmentation masks.",
    "Mark everything you mention with a mask.",
    "Include a mask for each object in your answer.",
)
EXPANDED_MASK_REQUESTS = (
    "Segment whatever you name.",
    "Let me see the regions as masks.",
    "Show the pixels of each thing you talk about.",
    "Use segmentation to point at what you mean.",
    "Give the mask of every object that matters here.",
    "Outline the objects in your reply.",
    "I would like to have them segmented as well.",
    "Add the segmentation of all of them.",
    "Support your answer with masks.",
    "Please draw the masks that go with it.",
)
NAMED_ANSWERS = (
    "It is {phrase}: {groups}.",
    "{phrase} is {groups}.",
    "Sure, {phrase} is {groups}.",
    "You can see {phrase} here: {groups}.",
)
BARE_ANSWERS = ("{groups}.", "It is {groups}.", "Here it is: {groups}.")
SEPARATE_CLAUSES = ("{phrase} is {groups}", "{phrase} is shown by {groups}", "{phrase} is at {groups}")
NAMED_JOINT_ANSWERS = (
    "{phrase} are {groups}.",
    "Sure, {phrase} are {groups}.",
    "The masks of {phrase} are {groups}, in this order.",
)
BARE_JOINT_ANSWERS = ("{groups}.", "They are {groups}.", "Here they are: {groups}.")
EXPLANATION_REQUESTS = (
    "Explain your answer.",
    "Tell me how you know.",
    "Give the reason as well.",
    "Why is it this one?",
    "Say in words what led you there.",
)
PART_NAMES = ("the {part} of the {whole}", "{whole} {part}")

NO_TARGET_ANSWER = "There is no such thing in the image."


def join_words(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def as_names(phrases: Sequence[str]) -> tuple[str, ...]:
    """Phrases as an answer may hold them: a ``{seg}`` in one of them is no target."""
    return tuple(phrase.replace(SEG_MARK, "(seg)") for phrase in phrases)


def short_question(rng: np.random.Generator, phrases: Sequence[str], *, expand: bool) -> str:
    """Ask for the masks of one or several phrases.

    Args:
        expand: ``--use_expand_question_list``, here and below.
    """
    templates = SHORT_QUESTIONS + EXPANDED_SHORT_QUESTIONS if expand else SHORT_QUESTIONS
    return _draw(rng, templates).replace(_PHRASE, join_words(phrases))


def long_question(rng: np.random.Generator, sentence: str, *, expand: bool) -> str:
    """A question that is a sentence already, followed by a request for masks."""
    return f"{sentence} {_draw(rng, MASK_REQUESTS + EXPANDED_MASK_REQUESTS if expand else MASK_REQUESTS)}"


def explanation_request(rng: np.random.Generator) -> str:
    """Follows a question whose answer gives masks and reasons."""
    return _draw(rng, EXPLANATION_REQUESTS)


def part_name(rng: np.random.Generator, whole: str, part: str) -> str:
    """ "the handle of the cup", "cup handle"."""
    return _draw(rng, PART_NAMES).replace("{part}", part).replace("{whole}", whole)


def bare_answer(rng: np.random.Generator) -> str:
    """One ``{seg}`` for a question that has no phrase to name."""
    return _draw(rng, BARE_ANSWERS).replace(_GROUPS, SEG_MARK)


def answer(rng: np.random.Generator, phrases: Sequence[str], *, named: bool) -> str:
    """Answer with one ``{seg}`` per phrase, several of them each in a clause of its own or all together.

    Args:
        phrases: one or more.
        named: every phrase must occur; otherwise the answer may be masks alone.
    """
    if len(phrases) == 1:
        return _fill(_draw(rng, NAMED_ANSWERS if named else NAMED_ANSWERS + BARE_ANSWERS), phrases)
    if rng.random() < 0.5:
        return _separate(_draw(rng, SEPARATE_CLAUSES), phrases)
    return _fill(_draw(rng, NAMED_JOINT_ANSWERS if named else NAMED_JOINT_ANSWERS + BARE_JOINT_ANSWERS), phrases)


def referring_eval_question(phrase: str) -> str:
    """The release's form, leading space included."""
    return f" {_EVAL_QUESTION.replace(_PHRASE, phrase)}"


def referring_eval_answer(count: int) -> str:
    """``{seg}, {seg} and {seg}.``"""
    return f"{join_words([SEG_MARK] * count)}."


def reasoning_eval_question(sentence: str) -> str:
    """The release's form for a question that is a sentence, leading space included."""
    return f" {sentence} {EVAL_MASK_REQUEST}"


def muse_eval_question(sentence: str) -> str:
    """A question of MUSE, followed by the request for masks."""
    return f"{sentence} {EVAL_MASK_REQUEST}"


def muse_eval_answer(phrases: Sequence[str]) -> str:
    """Every true phrase with its ``{seg}``, in one fixed form."""
    return _separate("{phrase} is {groups}", phrases) if phrases else NO_TARGET_ANSWER


def _draw(rng: np.random.Generator, templates: Sequence[str]) -> str:
    return templates[int(rng.integers(len(templates)))]


def _separate(clause: str, phrases: Sequence[str]) -> str:
    return join_words([_fill(clause, [phrase]) for phrase in phrases]) + "."


def _fill(template: str, phrases: Sequence[str]) -> str:
    # The phrases are inserted last, so that nothing in them is taken for a slot.
    words = join_words(as_names(phrases))
    return template.replace(_GROUPS, join_words([SEG_MARK] * len(phrases))).replace(_PHRASE, words)
