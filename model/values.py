"""Values from flags and files, held to declared types and ranges: the one place that knows what "a number" is.

Flags, settings files and annotations declare what they expect with Python's type hints and the types below; pydantic
checks, and this file puts its first finding into our words.
"""

from __future__ import annotations

import functools
import reprlib
from collections.abc import Callable
from typing import Annotated, Any, Generic, Literal, TypeVar

import pydantic
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from .errors import InputError

Kind = TypeVar("Kind")
Class = TypeVar("Class")


def is_encodable(text: str) -> bool:
    """Whether text can be written as UTF-8: JSON may hold half of a surrogate pair, at which tokenizers stop."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encodable(text: str) -> str:
    if not is_encodable(text):
        raise PydanticCustomError("string_unicode", "not UTF-8")
    return text


Text = Annotated[str, AfterValidator(_encodable)]
NonEmptyText = Annotated[str, Field(min_length=1), AfterValidator(_encodable)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareAboveZero = Annotated[float, Field(gt=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]

# Of a model and its input. The limits lie far beyond every model there is, and far below what no memory holds.
Width = Annotated[int, Field(ge=1, le=2**17)]
Scales = Annotated[int, Field(ge=1, le=3)]
TokensPerScale = Annotated[int, Field(ge=1, le=1000)]
InputSide = Annotated[int, Field(ge=1, le=4096)]
TokenGrid = Annotated[int, Field(ge=1, le=4096)]
DecoderWidth = Annotated[int, Field(ge=16, le=2**14)]
Attention = Literal["sdpa", "eager", "flash_attention_2", "flex_attention"]
Precision = Literal["fp32", "bf16", "fp16"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
# Each is a process of its own: a slip of the finger must not take the machine down.
Workers = Annotated[int, Field(ge=0, le=1024)]

# What pydantic found wrong -> what was expected, with the limits that it gives.
_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_unicode": "text that can be written as UTF-8",
    "string_too_short": "text of {min_length} characters or more",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a JSON object",
    "dataclass_type": "a JSON object",
    "too_short": "{min_length} entries or more",
    "too_long": "{max_length} entries or fewer",
    "finite_number": "a finite number",
    "greater_than_equal": "{ge} or more",
    "greater_than": "more than {gt}",
    "less_than_equal": "{le} or less",
    "less_than": "less than {lt}",
    "literal_error": "{expected}",
}

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 60, 60


def shorten(value: Any) -> str:
    """A value from a file as a message shows it: long text, long lists and deep nesting are cut."""
    return _SHORT.repr(value)


def first_problem(err: pydantic.ValidationError) -> tuple[str, str]:
    """Where the first bad value stands (``answers[0].category_name``), and what is wrong with it."""
    problem = err.errors(include_url=False)[0]
    place = ""
    for step in problem["loc"]:
        place += f"[{step}]" if isinstance(step, int) else f".{step}"
    place = place.lstrip(".")
    if problem["type"] == "missing":
        return place, "is missing"
    template = _EXPECTED.get(problem["type"])
    expected = template.format(**problem.get("ctx", {})) if template else problem["msg"]
    return place, f"is {shorten(problem['input'])}; expected {expected}"


def checked_dataclass(cls: type[Class], refuse: Callable[[str, str], InputError]) -> type[Class]:
    """Make a frozen dataclass that holds values to their annotations, however it is made.

    Args:
        refuse: makes the error of a field's name and what is wrong with it; an ``InputError`` that ``__post_init__``
            raises speaks for itself.
    """
    # pydantic's own return type hides that the class is still the one that it was given.
    checked: Any = pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(strict=True))(cls)
    check = checked.__init__

    @functools.wraps(check)
    def construct(self: Any, *values: Any, **named: Any) -> None:
        try:
            check(self, *values, **named)
        except pydantic.ValidationError as err:
            problem = err.errors()[0]
            own = problem.get("ctx", {}).get("error")
            raise (own if isinstance(own, InputError) else refuse(*first_problem(err))) from err

    checked.__init__ = construct
    return checked


class Schema(Generic[Kind]):
    """What a value from a file must look like.

    Args:
        kind: a type with hints, such as a ``TypedDict``: keys that it does not name are left out, and nothing is
            converted (``true`` is no number, ``"3"`` neither).
    """

    def __init__(self, kind: type[Kind] | Any) -> None:
        self._adapter = pydantic.TypeAdapter[Kind](kind)

    def check(self, value: Any, *, where: str, remedy: str, reason: str = "bad record") -> Kind:
        """The value, known to fit.

        Args:
            where: file and record, for the message.
            remedy: what the user can do.
            reason: as of ``InputError``.
        Raises:
            InputError: for the first entry that does not fit.
        """
        try:
            return self._adapter.validate_python(value, strict=True)
        except pydantic.ValidationError as err:
            place, problem = first_problem(err)
            raise InputError(f"{where}: {place or 'it'} {problem}. {remedy}", reason=reason) from err
