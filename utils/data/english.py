"""Class names and expressions as English sentences need them: with an article, in singular and plural.

The rules are those of docs/custom_data.md. They are few and know no dictionary. A class name may be singular or plural,
which libraries such as inflect expect to be told: they take "bus" and "lens" for plurals.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Number = Literal["singular", "plural", "mass"]

_ARTICLES = ("the", "a", "an")
_DETERMINERS = {
    *_ARTICLES,
    *("this", "that", "these", "those", "my", "your", "his", "her", "its", "our", "their", "each", "every", "some"),
    *("any", "all", "both", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "several"),
}
_SINGULAR_DETERMINERS = {"a", "an", "this", "that", "each", "every", "one"}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What follows the noun, as in "bag of rice" and "man who waves".
_AFTER_NOUN = _words(
    "of in on at by with without from for to near under behind above below beside between inside that which who"
)
# No plural, and "is".
_MASS = _words(
    "water grass sand snow ice mud dirt soil gravel asphalt concrete smoke fog rain dust moss rust foam oil milk "
    "coffee tea juice beer wine bread rice pasta meat cheese butter sugar salt food hair fur skin clothing furniture "
    "luggage equipment machinery traffic vegetation terrain foliage wood metal plastic cardboard fabric trash garbage "
    "rubbish litter debris rubble wreckage corrosion tissue cutlery silverware jewelry underwear footwear tennis"
)
_IRREGULAR = {
    "person": "people", "man": "men", "child": "children", "foot": "feet", "tooth": "teeth", "goose": "geese",
    "mouse": "mice", "leaf": "leaves", "knife": "knives", "shelf": "shelves", "wolf": "wolves", "half": "halves",
    "loaf": "loaves", "calf": "calves", "scarf": "scarves", "potato": "potatoes", "tomato": "tomatoes",
    "sheep": "sheep", "deer": "deer", "fish": "fish", "aircraft": "aircraft", "cattle": "cattle", "lens": "lenses",
    "gas": "gases", "canvas": "canvases", "bus": "buses", "cookie": "cookies", "movie": "movies", "hoodie": "hoodies",
    "brownie": "brownies", "zombie": "zombies",
}  # fmt: skip
_REGULAR_MEN = ("human", "german", "roman", "ottoman")  # their plural has an s
_ALWAYS_PLURAL = _words("scissors pants trousers shorts jeans pajamas glasses sunglasses clothes stairs cattle skis")
_NO_PLURAL = ("ss", "us", "is")  # ends of words in s that are one thing: glass, bus, iris


@dataclass(frozen=True)
class Noun:
    """A name in the forms that a sentence can need.

    Attributes:
        text: "the red cups": a sentence can take it as it is.
        singular: "red cup": after "every".
        plural: "red cups": after "all".
        is_plural: "are" belongs to ``text``, not "is".
        given: the name as the annotation has it.
    """

    text: str
    singular: str
    plural: str
    is_plural: bool
    given: str


def make_noun(name: str, *, several: bool, has_common_names: bool) -> Noun:
    """The forms of a name.

    Args:
        name: a class or an expression, such as "red cup" or "man on the left".
        several: it stands for more than one object.
        has_common_names: other names of the data begin with a small letter, so a capital one means a proper name.
    """
    words = name.split()
    first = words[0].lower()
    if first in _DETERMINERS or first.endswith(("'s", "s'")):
        has_article = first in _ARTICLES and len(words) > 1
        singular, plural, number = _numbers(" ".join(words[1:]) if has_article else name)
        forms = (singular, plural) if has_article else (name, name)
        return Noun(name, *forms, number == "plural" and first not in _SINGULAR_DETERMINERS, name)
    if _takes_no_article(words) or (has_common_names and _is_capitalized(words)):
        return Noun(name, name, name, False, name)
    singular, plural, number = _numbers(name)
    is_plural = number == "plural" or (several and number != "mass")
    return Noun(f"the {plural if is_plural else singular}", singular, plural, is_plural, name)


def has_common_names(names: Iterable[str]) -> bool:
    """Whether any of the names begins with a small letter."""
    return any(name[0].islower() for name in names)


def start_sentence(text: str) -> str:
    """With a capital letter first; a word such as "iPhone" keeps its own."""
    first = re.split(r"[\s,.:;]", text, maxsplit=1)[0]
    return text[0].upper() + text[1:] if first.islower() else text


def _takes_no_article(words: list[str]) -> bool:
    """ "player 7", and names in another script."""
    return words[-1][-1].isdigit() or not re.search("[A-Za-z]", " ".join(words))


def _is_capitalized(words: list[str]) -> bool:
    """ "Golden Gate Bridge", not "TV" and not "Christmas tree"."""
    return all(re.match("[A-Z][a-z]", word) or word in ("of", "the") for word in words)


def _numbers(name: str) -> tuple[str, str, Number]:
    """Singular, plural, and what the name itself is."""
    words = name.split()
    place = next((index for index, word in enumerate(words) if index and word.lower() in _AFTER_NOUN), len(words)) - 1
    before, noun, after = words[:place], words[place], words[place + 1 :]
    one, many, number = _numbers_of(noun)
    return " ".join([*before, one, *after]), " ".join([*before, many, *after]), number


def _numbers_of(noun: str) -> tuple[str, str, Number]:
    lower = noun.lower()
    if lower in _MASS:
        return noun, noun, "mass"
    if lower in _ALWAYS_PLURAL:
        return noun, noun, "plural"
    for one, many in _IRREGULAR.items():
        if lower.endswith(many) and one != many:
            return noun[: -len(many)] + one, noun, "plural"
        if lower.endswith(one) and not lower.endswith(_REGULAR_MEN):
            return noun, noun[: -len(one)] + many, "singular"
    if lower.endswith("s") and not lower.endswith(_NO_PLURAL) and len(lower) > 3:
        return _singular(noun), noun, "plural"
    return noun, _plural(noun), "singular"


def _plural(noun: str) -> str:
    if re.search("[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")


def _singular(noun: str) -> str:
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    return noun[:-2] if noun.endswith(("sses", "xes", "ches", "shes")) else noun[:-1]
