"""Questions and answers about named targets, from templates: those below, or a user's own (``--templates``).

A template has slots. A part in square brackets is said once for each name, as in "Here {is|are} [{name} {seg}].":

    {name}       the name with its article, in singular or plural: the cup, the cups
    {singular}   the noun alone, as after "every": cup
    {plural}     the noun alone, as after "all": cups
    {class}      the name as the annotation has it
    {seg}        the mask, in answers: once for each name
    {names}      short for [{name}]
    {is|are}     any two texts: the first for one thing, the second for several

Without brackets and ``{names}``, a template is for one name. docs/custom_data.md shows what comes out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from model.errors import InputError
from model.files import read_json
from model.text.conversation import IMAGE_MARK
from model.values import NonEmptyText, Schema, shorten

from .english import Noun, start_sentence
from .prompts import join_words
from .records import SEG_MARK

_QUESTIONS = (
    "Segment {names}.",
    "Please segment {names}.",
    "Where {is|are} {names}? Please show me the exact pixels.",
    "Find {names} in the photo and segment what you find.",
    "Could you mark {names} in this image?",
    "Which pixels belong to {names}?",
    "Trace the outline of {names} for me.",
    "Please cut {names} out of this photograph.",
    "Point out {names} by segmentation.",
    "I am looking for {names}. Please answer with segmentation.",
)
_ANSWERS = (
    "Here {is|are} [{name} {seg}].",
    "Sure, here {is|are} [{name} {seg}].",
    "You can see [{name} {seg}].",
    "[{name} {is|are} {seg}].",
    "Sure, [{name} {is|are} {seg}].",
)
_NAME_SLOTS = ("{name}", "{singular}", "{plural}", "{class}")
_SLOT = re.compile(r"\{[^{}]*\}")
_REMEDY = "Correct the file; docs/custom_data.md shows one"


class _File(TypedDict):
    questions: Annotated[list[NonEmptyText], Field(min_length=1)]
    answers: Annotated[list[NonEmptyText], Field(min_length=1)]


_FILE = Schema(_File)


@dataclass(frozen=True)
class Template:
    """A wording.

    Attributes:
        before, each, after: ``each`` is said once for each name, between the others. Without such a part it is empty,
            and ``before`` holds everything.
    """

    before: str
    each: str
    after: str

    @classmethod
    def read(cls, text: str) -> Template:
        """From text without mistakes."""
        before, _, rest = text.replace("{names}", "[{name}]").partition("[")
        each, _, after = rest.partition("]")
        return cls(before, each, after)

    def fill(self, nouns: Sequence[Noun]) -> str:
        """The sentence about some names: several only if there is a part for each."""
        is_plural = len(nouns) > 1 or nouns[0].is_plural
        if not self.each:
            return start_sentence(_fill(self.before, nouns[0], is_plural))
        parts = join_words([_fill(self.each, noun, noun.is_plural) for noun in nouns])
        before, after = (_fill(text, None, is_plural) for text in (self.before, self.after))
        return start_sentence(before + parts + after)


@dataclass(frozen=True)
class Templates:
    """Wordings to draw from; at least one question and one answer take several names if several are asked for."""

    questions: tuple[Template, ...]
    answers: tuple[Template, ...]

    def word(self, rng: np.random.Generator, nouns: Sequence[Noun]) -> tuple[str, str]:
        """A question about the names, and an answer with one ``{seg}`` for each, in their order."""
        question, answer = (
            fitting[int(rng.integers(len(fitting)))].fill(nouns)
            for fitting in (_fitting(self.questions, len(nouns)), _fitting(self.answers, len(nouns)))
        )
        return question, answer


def read_templates(file: str, *, most_names: int) -> Templates:
    """The templates of a JSON file; those above, if it is empty.

    Args:
        most_names: in one question.
    Raises:
        InputError: for the first mistake in it.
    """
    if not file:
        return Templates(tuple(map(Template.read, _QUESTIONS)), tuple(map(Template.read, _ANSWERS)))
    content = _FILE.check(read_json(Path(file), remedy="check the path"), where=file, remedy=_REMEDY)
    questions = tuple(_read(content["questions"], f"{file}: questions", is_answer=False))
    answers = tuple(_read(content["answers"], f"{file}: answers", is_answer=True))
    for key, templates in (("questions", questions), ("answers", answers)):
        if not _fitting(templates, most_names):
            raise InputError(
                f"{file}: none of its {key} takes several names; give one with a part in [brackets], or "
                "--targets_per_question 1"
            )
    return Templates(questions, answers)


def _fitting(templates: Sequence[Template], num_names: int) -> list[Template]:
    return [template for template in templates if num_names == 1 or template.each]


def _read(texts: Sequence[str], where: str, *, is_answer: bool) -> Iterable[Template]:
    for number, text in enumerate(texts):
        problem = _find_problem(text, is_answer=is_answer)
        if problem:
            raise InputError(f"{where}[{number}] is {shorten(text)}: {problem}. {_REMEDY}")
        yield Template.read(text)


def _find_problem(text: str, *, is_answer: bool) -> str:
    """What is wrong with a template; empty if nothing is."""
    if not text.strip() or IMAGE_MARK in text:
        return f"it is blank, or contains {IMAGE_MARK}"
    slots = _SLOT.findall(text)
    unknown = [slot for slot in slots if slot not in (*_NAME_SLOTS, "{names}", SEG_MARK) and slot.count("|") != 1]
    if unknown:
        return f"{unknown[0]} is no slot; expected {', '.join(_NAME_SLOTS)}, {{names}}, {SEG_MARK} or {{is|are}}"
    if set("{}") & set(_SLOT.sub("", text)):
        return "a brace has no partner"
    text = text.replace("{names}", "[{name}]")
    brackets = re.sub(r"[^\[\]]", "", text)
    if brackets not in ("", "[]"):
        return "expected one part in [brackets] at most, where {names} stands for one"
    template = Template.read(text)
    return _find_wrong_slots(template, is_answer=is_answer)


def _find_wrong_slots(template: Template, *, is_answer: bool) -> str:
    whole = template.before + template.each + template.after
    marks = whole.count(SEG_MARK)
    if not is_answer:
        if marks:
            return f"{SEG_MARK} belongs in answers only"
        if not any(slot in whole for slot in _NAME_SLOTS):
            return "it does not say what is asked for; expected {names} or {name}"
    elif marks != 1 or (template.each and SEG_MARK not in template.each):
        place = "in the part that is said for each name" if template.each else "in it"
        return f"{SEG_MARK} occurs {marks} times; expected once, {place}"
    if template.each:
        outside = [slot for slot in _NAME_SLOTS if slot in template.before + template.after]
        if outside:
            return f"{outside[0]} stands outside of the part that is said for each name"
        if not any(slot in template.each for slot in _NAME_SLOTS):
            return "the part in [brackets] holds no name"
    return ""


def _fill(text: str, noun: Noun | None, is_plural: bool) -> str:
    """Every slot at once, so that nothing in a name is taken for a slot."""
    values = {SEG_MARK: SEG_MARK}
    if noun is not None:
        values |= zip(_NAME_SLOTS, (noun.text, noun.singular, noun.plural, noun.given), strict=True)
    return _SLOT.sub(lambda found: values.get(found[0]) or found[0][1:-1].split("|")[is_plural], text)
