"""The reply that a request asks for: a JSON object of a declared type, found in whatever text a model writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pydantic

from model.values import first_problem

_DECODER = json.JSONDecoder()


class BadReply(Exception):
    """A reply that is not what was asked for."""


class ReplyType:
    """A type with hints, such as a ``TypedDict``, as a JSON schema and as a check of what comes back.

    Args:
        kind: what a reply's JSON object must be; nothing is converted.
        name: of the schema, in letters.
    """

    def __init__(self, kind: Any, *, name: str) -> None:
        self._adapter = pydantic.TypeAdapter[Any](kind)
        self.name = name
        self.schema: dict[str, Any] = self._adapter.json_schema()

    def check(self, value: Any) -> Any:
        """The value as plain data, known to fit.

        Raises:
            BadReply: if it does not.
        """
        try:
            return self._adapter.dump_python(self._adapter.validate_python(value, strict=True))
        except pydantic.ValidationError as err:
            raise BadReply(" ".join(part for part in ("the reply's", *first_problem(err)) if part)) from err

    def find(self, text: str) -> Any:
        """The first JSON object in a text that fits.

        Raises:
            BadReply: if none does; it tells about the first object.
        """
        problem = BadReply("the reply holds no JSON object")
        for number, value in enumerate(_objects(text)):
            try:
                return self.check(value)
            except BadReply as err:
                problem = problem if number else err
        raise problem

    def in_words(self) -> str:
        """What asks for such an object where a server knows no schemas."""
        return f"Reply with one JSON object that fits this JSON schema, and nothing else:\n{json.dumps(self.schema)}"


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, from left to right, without those inside others."""
    place = text.find("{")
    while place >= 0:
        try:
            value, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            yield value
        place = text.find("{", end)
