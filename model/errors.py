"""The one exception that means "the user can mend this"."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: a file, a flag or a checkpoint that the user gave.

    The message says what was found, what was expected, where, and the next command. Entry points print it
    without a traceback and exit with code 2; every other exception is a bug of ours and keeps its traceback.

    Args:
        reason: a few words under which bad samples are counted, such as "photo missing".
    """

    def __init__(self, message: str, *, reason: str = "other") -> None:
        super().__init__(message)
        self.reason = reason
