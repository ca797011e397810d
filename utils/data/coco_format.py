"""What several readers expect of COCO's instances files. Sizes and segmentations are checked when masks are drawn, so
that one bad photo is one bad sample."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypeVar

from pydantic import AfterValidator, FailFast
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from model.values import Text


def _number_or_text(value: Any) -> int | str:
    if type(value) not in (int, str):
        raise PydanticCustomError("identifier", "a number or text")
    return value


Record = TypeVar("Record")
Identifier = Annotated[Any, AfterValidator(_number_or_text)]
Records = Annotated[list[Record], FailFast()]  # of half a million bad ones, the first is enough


class Category(TypedDict):
    """A class of objects."""

    id: Identifier
    name: Text


class Photo(TypedDict):
    """A photo, whose size is recorded in pixels."""

    id: Identifier
    file_name: Text
    height: Any
    width: Any


class Annotation(TypedDict):
    """An object in a photo."""

    image_id: Identifier
    category_id: Identifier
    segmentation: NotRequired[Any]


class Instances(TypedDict):
    """A whole file."""

    images: Records[Photo]
    annotations: Records[Annotation]
    categories: Records[Category]
