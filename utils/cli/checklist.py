"""A warning that teaches: what was seen, what it usually means, what to look at, and the next command."""

from __future__ import annotations

from dataclasses import dataclass

from model.errors import one_line


@dataclass(frozen=True)
class Checklist:
    """One warning of several lines.

    Attributes:
        found: what was seen, with its numbers.
        meaning: what that usually means.
        look_at: what to look at, the likeliest first.
        next_command: the command that tells more.
    """

    found: str
    meaning: str
    look_at: tuple[str, ...]
    next_command: str

    def __str__(self) -> str:
        lines = [
            self.found,
            f"  It usually means: {self.meaning}",
            *(f"  Look at: {place}" for place in self.look_at),
            f"  Next: {self.next_command}",
        ]
        return "\n".join(map(one_line, lines))
