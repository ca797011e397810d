"""The loop that writes answers, one pass of the language model for a word and one for a whole token group.

Shapes: Q answers, A of them unfinished, T tokens of an answer, D language-model width, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .compiled import FixedContext
from .context import Context

Reading = Context | FixedContext  # grows with the answers, or stays where a compiled pass expects it
Pick = Callable[[Tensor, "Sequence[Answer]"], list[int]]


@dataclass
class Answer:
    """One answer on its way.

    Attributes:
        row: its number, by which the caller knows it.
        room: T at most; a token group that would not fit is not begun.
        ids: its tokens so far.
        states: the states that predicted them; each (1, D) or, of a token group, more.
        num_groups: complete token groups in it.
        is_done: nothing follows.
        is_cut: because there is no room.
    """

    row: int
    room: int
    ids: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    num_groups: int = 0
    is_done: bool = False
    is_cut: bool = False


@dataclass(frozen=True)
class Rules:
    """How answers are written.

    Attributes:
        group: the ids of a token group; its first one brings the others along, which are then read in one pass.
        by_group: whether it does; otherwise every token is chosen by itself.
        max_groups: of an answer; None for any number.
        end_ids: tokens of which each ends an answer.
        must_stop: asked after every part of an answer.
    """

    group: tuple[int, ...]
    by_group: bool
    max_groups: int | None
    end_ids: frozenset[int]
    must_stop: Callable[[Answer], bool] | None = None


@dataclass
class Begun:
    """Prompts that were read, whose answers are to be written.

    Attributes:
        context: has a row for each.
        states: (Q, D), behind the last token of each prompt.
        answers: Q, still empty.
    """

    context: Reading
    states: Tensor
    answers: Sequence[Answer]


def decode(
    begun: Begun,
    rules: Rules,
    *,
    embed: Callable[[Tensor], Tensor],
    head: Callable[[Tensor], Tensor],
    pick: Pick,
    arrivals: Callable[[], Begun | None] | None = None,
) -> Iterator[tuple[Answer, list[int]]]:
    """Write the answers to Q prompts that have been read.

    Answers do not wait for one another: in one pass, one of them may read a word and another a whole group. The caller
    may set ``is_done`` to end one.

    Args:
        begun: what it begins with.
        embed: (A, n) ids to (A, n, D).
        head: (A, D) states to (A, V) logits.
        pick: the next token of each answer by its logits, which it may change.
        arrivals: asked between two passes for answers that are to be written along.
    Yields:
        each answer and what was just added to it: a token as soon as it is chosen, a group once its states are known.
        What could not be added is nothing, and ends the answer.
    """
    context, states, active = begun.context, begun.states, list(begun.answers)
    while active:
        logits = head(states)
        if rules.max_groups is not None:
            for mine, answer in zip(logits, active, strict=True):
                if answer.num_groups >= rules.max_groups:
                    mine[list(rules.group)] = -torch.inf
        chosen = pick(logits, active)
        parts = [
            _add(answer, token, state, rules)
            for answer, token, state in zip(active, chosen, states.split(1), strict=True)
        ]
        yield from ((answer, part) for answer, part in zip(active, parts, strict=True) if len(part) < 2)
        # The states within a group are needed though nothing follows it.
        read_on = [place for place, part in enumerate(parts) if len(part) > 1 or not active[place].is_done]
        if not read_on:
            return
        read_on = _keep(context, read_on, of=len(active))
        active, parts = [active[place] for place in read_on], [parts[place] for place in read_on]
        read = read_parts(context, parts, embed, device=states.device)
        for answer, part, mine in zip(active, parts, read, strict=True):
            if len(part) > 1:
                answer.states.append(mine[-len(part) : -1])
                yield answer, part
        new = None if arrivals is None else arrivals()
        unfinished = [place for place, answer in enumerate(active) if not answer.is_done]
        unfinished = _keep(context, unfinished, of=len(active))
        states, active = read[unfinished, -1], [active[place] for place in unfinished]
        if new is not None:
            states, active = _join(context, states, active, new)
            new = None  # what it had read was copied


def _join(context: Reading, states: Tensor, active: list[Answer], new: Begun) -> tuple[Tensor, list[Answer]]:
    """Let answers go on beside those that are unfinished; returns states and answers of all."""
    assert isinstance(context, Context), "a compiled pass has one row"
    assert isinstance(new.context, Context), "a compiled pass has one row"
    if not active:
        context.select([])
    context.join(new.context)
    return torch.cat([states, new.states]), [*active, *new.answers]


def _keep(context: Reading, places: list[int], *, of: int) -> list[int]:
    """Leave out all other answers from later passes.

    Returns:
        the places in the order in which they go on: the last ones fill gaps, so that few are copied.
    """
    if not places or len(places) == of:
        return places
    count, kept = len(places), set(places)
    from_behind = (place for place in places if place >= count)
    order = [place if place in kept else next(from_behind) for place in range(count)]
    context.select(order)
    return order


def _add(answer: Answer, token: int, state: Tensor, rules: Rules) -> list[int]:
    """Add a chosen token, or the group that it begins, and say what was added."""
    begins_group = rules.by_group and token == rules.group[0] and token not in rules.end_ids
    part = list(rules.group) if begins_group else [token]
    if len(answer.ids) + len(part) > answer.room:
        answer.is_done = answer.is_cut = True
        return []
    answer.ids += part
    answer.states.append(state)
    size = len(rules.group)
    answer.num_groups += part[-1] == rules.group[-1] and tuple(answer.ids[-size:]) == rules.group
    ends = part[-1] in rules.end_ids or (rules.must_stop is not None and rules.must_stop(answer))
    answer.is_cut = not ends and len(answer.ids) == answer.room
    answer.is_done = ends or answer.is_cut
    return part


def read_parts(
    context: Reading, parts: Sequence[list[int]], embed: Callable[[Tensor], Tensor], *, device: torch.device
) -> Tensor:
    """One pass over some tokens of each row.

    Args:
        embed: (A, n) ids to (A, n, D).
    Returns:
        (A, n, D) states, those of shorter parts at the end.
    """
    width = max(map(len, parts))
    ids = torch.tensor([[0] * (width - len(part)) + part for part in parts], device=device)
    is_token = None
    if any(len(part) < width for part in parts):
        is_token = torch.tensor([[False] * (width - len(part)) + [True] * len(part) for part in parts], device=device)
    return context.read(embed(ids), is_token)
