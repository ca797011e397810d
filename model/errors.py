"""The one exception that means "the user can mend this"."""

from __future__ import annotations

import re

_LONGEST = 1900  # a message quotes what it found, which may be a list of a million numbers
# What would break a line, move the cursor, turn the direction of what follows, or cannot be written as UTF-8 at all.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class InputError(ValueError):
    """Bad input: a file, a flag or a checkpoint that the user gave.

    The message says what was found, what was expected, where, and the next command. Entry points print it
    without a traceback and exit with code 2; every other exception is a bug of ours and keeps its traceback.

    Args:
        message: becomes one line that any terminal can show, whatever file names and values stand in it: a line break
            in it is written as ``\\n``, and the middle of a very long message is left out.
        reason: a few words under which bad samples are counted, such as "photo missing".
    """

    def __init__(self, message: str, *, reason: str = "other") -> None:
        super().__init__(one_line(message))
        self.reason = reason


def one_line(message: str) -> str:
    """A message that any terminal can show in one line, of bounded length."""
    line = _UNPRINTABLE.sub(_escape, message)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
