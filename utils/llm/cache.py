"""Replies on disk by the content of their requests: what was paid for once is not asked again."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

from model.errors import InputError
from model.files import is_file, read_json, write_json


class ReplyCache:
    """A folder with a small JSON file for each request.

    Args:
        folder: made when the first reply comes; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writes = Lock()  # two threads must not write aside under one name

    def get(self, digest: str) -> Any:
        """The reply to a request, unchecked; None if there is none, or its file is damaged."""
        file = self._file(digest)
        if file is None or not is_file(file):
            return None
        try:
            entry = read_json(file)
        except InputError:
            return None
        return entry.get("reply") if isinstance(entry, dict) and entry.get("request") == digest else None

    def put(self, digest: str, reply: Any) -> None:
        """Keep the reply to a request, whole or not at all.

        Raises:
            InputError: if the file cannot be written.
        """
        if file := self._file(digest):
            with self._writes:
                write_json(file, {"request": digest, "reply": reply}, compact=True)

    def _file(self, digest: str) -> Path | None:
        return self._folder / digest[:2] / f"{digest}.json" if self._folder else None
