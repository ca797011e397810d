"""An answer cut where its targets are named, for whatever shows names in the colors of their masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """A part of an answer.

    Attributes:
        text: words, or the number of a target.
        target: whose words they are; None of words between.
        is_number: it stands where the tokens of the target stand.
    """

    text: str
    target: int | None = None
    is_number: bool = False


def pieces(numbered: str, phrases: Sequence[str]) -> Iterator[Piece]:
    """Cut an answer where its targets are named.

    Args:
        numbered: the answer, with ``[0]`` in place of the first target.
        phrases: of the targets; each is looked for in the words before its number.
    """
    for number, phrase in enumerate(phrases):
        words, mark, rest = numbered.partition(f"[{number}]")
        if not mark:
            break
        numbered = rest
        before, found, after = words.rpartition(phrase) if phrase else (words, "", "")
        yield from (piece for piece in (Piece(before), Piece(found, number), Piece(after)) if piece.text)
        yield Piece(str(number), number, is_number=True)
    if numbered:
        yield Piece(numbered)
