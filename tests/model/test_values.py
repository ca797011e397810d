"""Declared types and ranges: what fits passes untouched, what does not is told with its place in one line."""

from __future__ import annotations

from typing import NotRequired

import pytest
from typing_extensions import TypedDict

from model.errors import InputError
from model.values import Count, Finite, Schema, Text, shorten


class _Photo(TypedDict):
    height: Count
    corners: list[list[Finite]]
    name: NotRequired[Text]


_PHOTO = Schema(_Photo)


def _message(value: object) -> str:
    with pytest.raises(InputError) as caught:
        _PHOTO.check(value, where="a.json, record 3", remedy="Correct it")
    return str(caught.value)


def test_a_value_that_fits_passes_with_its_unknown_keys_left_out() -> None:
    assert _PHOTO.check({"height": 3, "corners": [[1, 2.5]]}, where="", remedy="") == {
        "height": 3,
        "corners": [[1, 2.5]],
    }


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"height": True, "corners": []}, "height is True; expected a whole number"),
        ({"height": "3", "corners": []}, "height is '3'; expected a whole number"),
        ({"height": 0, "corners": []}, "height is 0; expected 1 or more"),
        ({"height": 2**31, "corners": []}, "height is 2147483648; expected less than 2147483648"),
        ({"corners": []}, "height is missing"),
        ({"height": 1, "corners": [[0.0], [float("nan")]]}, "corners[1][0] is nan; expected a finite number"),
        ({"height": 1, "corners": 5}, "corners is 5; expected a list"),
        ({"height": 1, "corners": [], "name": "\udc80"},
         r"name is '\udc80'; expected text that can be written as UTF-8"),
        ([], "it is []; expected a JSON object"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_with_its_place(value: object, message: str) -> None:
    assert _message(value) == f"a.json, record 3: {message}. Correct it"


def test_a_message_is_one_line_of_printable_text_whatever_it_quotes() -> None:
    assert str(InputError("no photo 'a\nb\x1b[2J\udcff'")) == "no photo 'a\\nb\\x1b[2J\\udcff'"


def test_a_huge_value_is_cut_in_messages() -> None:
    nested: list[object] = []
    for _ in range(50_000):
        nested = [nested]
    assert len(shorten(nested)) < 40
    assert len(shorten("x" * 10_000)) < 80
