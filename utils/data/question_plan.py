"""Names of things in a photo -> conversations that ask for some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import prompts
from .records import Turn

Conversations = tuple[tuple[Turn, ...], ...]


@dataclass(frozen=True)
class QuestionPlan:
    """How many questions are asked about a photo, and how they are worded.

    Attributes:
        num_questions: ``--num_classes_per_sample``, questions per photo, at most.
        per_question: ``--num_classes_per_question``, things per question, at most.
        expand: ``--use_expand_question_list``, draw from more question wordings.
    """

    num_questions: int = 3
    per_question: int = 1
    expand: bool = False

    def ask(self, rng: np.random.Generator, phrases: Sequence[str]) -> tuple[list[int], Conversations]:
        """Draw some phrases, deal them to questions and write these.

        Returns:
            the drawn positions in ``phrases``, in the order of the masks, and conversations of one turn each.
        """
        groups = deal(rng, len(phrases), num_groups=self.num_questions, group_size=self.per_question)
        drawn: list[int] = []
        conversations = []
        for group in groups:
            words = [phrases[position] for position in group]
            targets = tuple(range(len(drawn), len(drawn) + len(group)))
            drawn += group
            question = prompts.short_question(rng, words, expand=self.expand)
            conversations.append((Turn(question, prompts.answer(rng, words, named=False), targets),))
        return drawn, tuple(conversations)


def deal(rng: np.random.Generator, count: int, *, num_groups: int, group_size: int) -> list[list[int]]:
    """Draw at most ``num_groups * group_size`` of ``count`` items and deal them to groups, as the release does.

    Every group gets one first; each further item goes to a random group that has room.
    """
    order = rng.permutation(count)[: num_groups * group_size].tolist()
    groups = [[item] for item in order[:num_groups]]
    for item in order[num_groups:]:
        with_room = [group for group in groups if len(group) < group_size]
        with_room[rng.integers(len(with_room))].append(item)
    return groups
