"""Questions about a scene whose answers name every target and mark its mask with ``{seg}``.

A question is kept only if the picture alone decides its answer: comparisons need a clear margin, and an
object that is named in a question is the only one of that name. Answers follow one rule, so that a small
autoregressive model can learn them: targets in the order of a scene's objects, each as "the {color} {shape}
{seg}"; whether "Sure" comes first depends on the wording of the question only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import TypeVar

import numpy as np

from utils.data.prompts import join_words
from utils.data.records import SEG_MARK, Turn

from .painting import COLORS, TEXTURES
from .scene import SIZES, Scene, ToyObject
from .shapes import SHAPES

T = TypeVar("T")

MAX_TARGETS = 6
_MAP_LETTERS = "ABCDEF"
SQUARES = tuple(column + row for row in _MAP_LETTERS for column in _MAP_LETTERS)
# Differences that a person sees at a glance: positions as shares of a side, sizes as ratios.
_POSITION_MARGIN = 0.07
_HALF_MARGIN = 0.05
_SIZE_MARGIN = 1.3

# Wordings. Requests are answered "Sure, ...", other questions directly.
_EVERY_KIND = ("Segment every {one}.", "Find each {one} in the picture.", "Mark every {one} you can see.")
_MANY_KIND = (
    "Segment all the {many}.",
    "Where are the {many}?",
    "Which {many} can you see?",
    "Show me all the {many} in the picture.",
)
_ADJECTIVE_KIND = (
    "Which objects are {traits}?",
    "Which things are {traits}?",
    "Segment everything that is {traits}.",
)
_TWO_KINDS = (
    "Segment every {first} and every {second}.",
    "Find each {first} and each {second} in the picture.",
    "Which objects are {firsts} or {seconds}?",
)
_NAMED = (
    "Segment {names}.",
    "Where can I find {names}?",
    "Please mark {names}.",
    "Find {names} in the picture.",
)
_EXTREME = (
    "Which object is the {extreme}?",
    "Segment the {extreme} object.",
    "Find the {extreme} thing in the picture.",
)
_EXTREME_WORDS = ("leftmost", "rightmost", "topmost", "lowest", "largest", "smallest")
_HALF = (
    "Which objects are in the {half} half of the picture?",
    "Segment everything in the {half} half.",
    "What can you see in the {half} half?",
)
_HALF_WORDS = ("left", "right", "upper", "lower")
_ALL = (
    "Segment every object in the picture.",
    "Which objects can you see?",
    "Find all the things in the picture.",
)

# How often each family is asked where several could be.
_FAMILY_WEIGHTS = {
    "kind": 6.0,
    "narrow kind": 1.0,
    "two kinds": 0.6,
    "named": 1.0,
    "extreme": 1.2,
    "half": 0.8,
    "all": 1.2,
}


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


@dataclass(frozen=True)
class Kind:
    """A description such as "large red stars": traits left as None are not asked for."""

    size: str | None = None
    texture: str | None = None
    color: str | None = None
    shape: str | None = None

    def matches(self, item: ToyObject) -> bool:
        """Whether an object has every trait that is asked for."""
        wanted = ((self.size, item.size), (self.texture, item.texture), (self.color, item.color))
        return all(want in (None, has) for want, has in (*wanted, (self.shape, item.shape)))

    @property
    def adjectives(self) -> tuple[str, ...]:
        """The traits that stand before the noun."""
        return tuple(word for word in (self.size, self.texture, self.color) if word)

    @property
    def num_traits(self) -> int:
        """How many traits are asked for."""
        return len(self.adjectives) + (self.shape is not None)

    @property
    def one(self) -> str:
        """The singular, such as "large red star"."""
        return " ".join((*self.adjectives, self.shape or "object"))

    @property
    def many(self) -> str:
        """The plural, such as "large red stars"."""
        return " ".join((*self.adjectives, _plural(self.shape or "object")))


@dataclass(frozen=True)
class _Candidate:
    """One thing that can be asked, in several wordings."""

    family: str
    targets: tuple[int, ...]
    texts: tuple[str, ...]


def short_name(item: ToyObject) -> str:
    """The name of an object, such as "the red star"; no other object of its scene has it."""
    return f"the {item.color} {item.shape}"


def square_of(item: ToyObject) -> str:
    """Where the middle of an object is, on a map of 6 x 6 over the picture padded to a square at the right or below.

    Column and row, one letter each: "AA" is at the top left, "FF" at the bottom right.
    """
    height, width = item.mask.shape
    shares = (share * side / max(height, width) for share, side in zip(item.center, (width, height), strict=True))
    return "".join(_MAP_LETTERS[int(len(_MAP_LETTERS) * share)] for share in shares)


def _indices(objects: Sequence[ToyObject], kind: Kind) -> tuple[int, ...]:
    return tuple(i for i, item in enumerate(objects) if kind.matches(item))


def _traits(objects: Sequence[ToyObject]) -> tuple[str, ...]:
    """What may be asked for in a scene: nobody can tell small from large where all are of one size."""
    sizes = {item.size for item in objects}
    return (*(("size",) if len(sizes) > 1 else ()), "texture", "color", "shape")


def _kinds_of(item: ToyObject, traits: Sequence[str], num_traits: Sequence[int]) -> Iterator[Kind]:
    """Every description of an object by so many of the traits, shorter ones first."""
    for count in num_traits:
        for names in combinations(traits, count):
            yield Kind(**{name: getattr(item, name) for name in names})


def _kinds(objects: Sequence[ToyObject], num_traits: Sequence[int]) -> dict[Kind, tuple[int, ...]]:
    """Every kind of so many traits that occurs, with the objects of that kind; in a fixed order."""
    kinds = (kind for item in objects for kind in _kinds_of(item, _traits(objects), num_traits))
    return {kind: _indices(objects, kind) for kind in dict.fromkeys(kinds)}


def _extremes(objects: Sequence[ToyObject]) -> dict[str, int]:
    """Superlatives that clearly belong to one object: "leftmost", "largest", ..."""
    if len(objects) < 2:
        return {}
    found: dict[str, int] = {}
    x, y = np.array([item.center for item in objects]).T
    for word, value in zip(_EXTREME_WORDS[:4], (x, -x, y, -y), strict=True):
        first, second = np.argsort(value, kind="stable")[:2]
        if value[second] - value[first] >= _POSITION_MARGIN:
            found[word] = int(first)
    # Both what shows and the whole shape must agree, or a hidden part would decide.
    shown = np.array([item.area for item in objects], float)
    whole = shown / [item.visible_share for item in objects]
    for word, sign in zip(_EXTREME_WORDS[4:], (-1, 1), strict=True):
        first, second = np.argsort(sign * shown, kind="stable")[:2]
        rest = np.delete(whole, first)
        ratios = (shown[first] / shown[second], whole[first] / (rest.max() if sign < 0 else rest.min()))
        if all((ratio if sign < 0 else 1 / ratio) >= _SIZE_MARGIN for ratio in ratios):
            found[word] = int(first)
    return found


def _ask_kinds(objects: Sequence[ToyObject]) -> Iterator[_Candidate]:
    kinds = _kinds(objects, (1, 2))
    for kind, targets in kinds.items():
        templates = _EVERY_KIND + (_MANY_KIND if len(targets) > 1 else ())
        if kind.shape is None:
            templates += _ADJECTIVE_KIND
        traits = " and ".join(kind.adjectives)
        family = "kind" if kind.num_traits == 1 else "narrow kind"
        yield _Candidate(
            family, targets, tuple(t.format(one=kind.one, many=kind.many, traits=traits) for t in templates)
        )
    nouns = [(kind, targets) for kind, targets in kinds.items() if kind.shape]
    for (first, left), (second, right) in combinations(nouns, 2):
        # "every star and every red star" would be an odd thing to ask.
        if set(left).isdisjoint(right):
            words = {"first": first.one, "firsts": first.many, "second": second.one, "seconds": second.many}
            texts = tuple(t.format(**words) for t in _TWO_KINDS)
            yield _Candidate("two kinds", tuple(sorted(left + right)), texts)


def _ask_named(objects: Sequence[ToyObject]) -> Iterator[_Candidate]:
    for count in (1, 2, 3):
        for chosen in combinations(range(len(objects)), count):
            words = [short_name(objects[i]) for i in chosen]
            # Both orders, so that the order of the answer cannot be copied from the question.
            joined = [join_words(words), join_words(words[::-1])] if count > 1 else words
            yield _Candidate("named", chosen, tuple(t.format(names=j) for t in _NAMED for j in joined))


def _ask_extremes(objects: Sequence[ToyObject]) -> Iterator[_Candidate]:
    for extreme, index in _extremes(objects).items():
        yield _Candidate("extreme", (index,), tuple(t.format(extreme=extreme) for t in _EXTREME))


def _ask_halves(objects: Sequence[ToyObject]) -> Iterator[_Candidate]:
    for axis, halves in ((0, _HALF_WORDS[:2]), (1, _HALF_WORDS[2:])):
        offsets = [item.center[axis] - 0.5 for item in objects]
        if min(map(abs, offsets)) < _HALF_MARGIN:
            continue
        for sign, half in zip((-1, 1), halves, strict=True):
            targets = tuple(i for i, offset in enumerate(offsets) if sign * offset > 0)
            yield _Candidate("half", targets, tuple(t.format(half=half) for t in _HALF))


def _ask_all(objects: Sequence[ToyObject]) -> Iterator[_Candidate]:
    yield _Candidate("all", tuple(range(len(objects))), _ALL)


_FAMILIES: tuple[Callable[[Sequence[ToyObject]], Iterator[_Candidate]], ...] = (
    _ask_kinds,
    _ask_named,
    _ask_extremes,
    _ask_halves,
    _ask_all,
)


def answer_text(objects: Sequence[ToyObject], targets: Sequence[int], question: str) -> str:
    """The answer to a question: every target by its name, each followed by ``{seg}``."""
    named = ", ".join(f"{short_name(objects[i])} {SEG_MARK}" for i in targets)
    return f"{named[0].upper()}{named[1:]}." if question.endswith("?") else f"Sure, {named}."


def ask_questions(
    scene: Scene, rng: np.random.Generator, *, num_questions: int, count_weights: dict[int, float]
) -> list[Turn]:
    """Draw questions about a scene, each with its own set of targets (indices into ``Scene.objects``).

    Args:
        num_questions: how many to draw; fewer come back when the scene does not offer so many.
        count_weights: number of targets (1 to ``MAX_TARGETS``) -> how often to ask for so many.
    """
    by_count: dict[int, list[_Candidate]] = {count: [] for count in sorted(count_weights)}
    for family in _FAMILIES:
        for candidate in family(scene.objects):
            if len(candidate.targets) in by_count:
                by_count[len(candidate.targets)].append(candidate)
    asked: list[Turn] = []
    while len(asked) < num_questions:
        seen = {turn.targets for turn in asked}
        fresh = {n: [c for c in offered if c.targets not in seen] for n, offered in by_count.items()}
        counts = [n for n, offered in fresh.items() if offered]
        if not counts:
            break
        count = _weighted(counts, [count_weights[n] for n in counts], rng)
        families = sorted({candidate.family for candidate in fresh[count]})
        family = _weighted(families, [_FAMILY_WEIGHTS[name] for name in families], rng)
        offered = [candidate for candidate in fresh[count] if candidate.family == family]
        candidate = offered[rng.integers(len(offered))]
        text = candidate.texts[rng.integers(len(candidate.texts))]
        asked.append(Turn(text, answer_text(scene.objects, candidate.targets, text), candidate.targets))
    return asked


def _weighted(items: Sequence[T], weights: Sequence[float], rng: np.random.Generator) -> T:
    total = np.asarray(weights, float)
    return items[int(rng.choice(len(items), p=total / total.sum()))]


def referring_phrases(scene: Scene, index: int) -> list[str]:
    """Phrases without an article that fit exactly one object, as people write them for RefCOCO."""
    objects = scene.objects
    item = objects[index]
    phrases = [
        kind.one
        for kind in _kinds_of(item, _traits(objects), (1, 2, 3))
        if kind.shape and _indices(objects, kind) == (index,)
    ]
    for kind in (Kind(shape=item.shape), Kind(color=item.color)):
        rivals = [objects[i] for i in _indices(objects, kind)]
        phrases += [f"{word} {kind.one}" for word, i in _extremes(rivals).items() if rivals[i] is item]
    return list(dict.fromkeys(phrases))


def vocabulary_text() -> Iterator[str]:
    """Lines that hold every word of the toy world: all wordings of questions, and all names of objects."""
    wordings = _EVERY_KIND + _MANY_KIND + _ADJECTIVE_KIND + _TWO_KINDS + _NAMED + _EXTREME + _HALF + _ALL
    for color, shape in product(COLORS, SHAPES):
        yield from wordings
        yield ", ".join((*_EXTREME_WORDS, *_HALF_WORDS))
        yield f"Sure, the {color} {shape} {SEG_MARK}, the {color} {shape} {SEG_MARK}."
        yield ", ".join(_plural(shape) for _ in SIZES)
        yield ", ".join(f"the {color} {shape} {square}" for square in SQUARES)
        for size, texture in product(SIZES, TEXTURES):
            yield f"the {Kind(size, texture, color, shape).one}, {Kind(size, texture, color).many}."
