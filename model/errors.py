"""The one exception that means "the user can mend this"."""

from __future__ import annotations

import re

# What would break a line, move the cursor, or cannot be written as UTF-8 at all.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class InputError(ValueError):
    """Bad input: a file, a flag or a checkpoint that the user gave.

    The message says what was found, what was expected, where, and the next command. Entry points print it
    without a traceback and exit with code 2; every other exception is a bug of ours and keeps its traceback.

    Args:
        message: becomes one line that any terminal can show, whatever file names and values stand in it: a line break
            in it is written as ``\\n``.
        reason: a few words under which bad samples are counted, such as "photo missing".
    """

    def __init__(self, message: str, *, reason: str = "other") -> None:
        super().__init__(_UNPRINTABLE.sub(_escape, message))
        self.reason = reason


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
