"""Questions about a scene whose answers name every target and mark its mask with ``{seg}``.

A question is kept only if the picture alone decides its answer: comparisons need a clear margin, and an
object that is named in a question is the only one of that name. Answers follow one rule, so that a small
autoregressive model can learn them: targets from left to right, each as "the {color} {shape} {place} is
{seg}"; whether "Sure" comes first depends on the wording of the question only.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import TypeVar

import numpy as np

from utils.data.prompts import join_words
from utils.data.records import SEG_MARK, Turn
from utils.toy_world.painting import COLORS, TEXTURES
from utils.toy_world.scene import SIZES, Scene, ToyObject, grid_cell
from utils.toy_world.shapes import SHAPES

T = TypeVar("T")

MAX_TARGETS = 6
# By (row, column) of `grid_cell`.
_PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the middle", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
# Differences that a person sees at a glance: positions as shares of a side, sizes as ratios.
_POSITION_MARGIN = 0.07
_CELL_MARGIN = 0.03
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
_KIND_AND_EXTREME = (
    "Which things are {traits}, and which object is the {extreme}?",
    "Segment everything that is {traits}, and also the {extreme} object.",
)
_SIDE = (
    "Which objects are {side} the {name}?",
    "Segment everything {side} the {name}.",
    "What can you see {side} the {name}?",
)
_SIDE_WORDS = ("to the left of", "to the right of", "above", "below")
_SAME = (
    "Which other objects have the same {trait} as the {name}?",
    "Segment all other objects with the same {trait} as the {name}.",
)
_SAME_WORDS = {"color": "color", "shape": "shape", "pattern": "texture"}  # word -> trait
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
    "kind and extreme": 0.4,
    "side": 0.4,
    "same": 0.4,
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
        wanted = ((self.size, item.size), (self.texture, item.texture), (self.color, item.color))
        return all(want in (None, has) for want, has in (*wanted, (self.shape, item.shape)))

    @property
    def adjectives(self) -> tuple[str, ...]:
        return tuple(word for word in (self.size, self.texture, self.color) if word)

    @property
    def num_traits(self) -> int:
        return len(self.adjectives) + (self.shape is not None)

    @property
    def one(self) -> str:
        return " ".join((*self.adjectives, self.shape or "object"))

    @property
    def many(self) -> str:
        return " ".join((*self.adjectives, _plural(self.shape or "object")))


@dataclass(frozen=True)
class _Candidate:
    """One thing that can be asked, in several wordings."""

    family: str
    targets: tuple[int, ...]
    texts: tuple[str, ...]


def place_of(item: ToyObject) -> str:
    """Where in the picture, in words, such as "at the top left"."""
    row, column = grid_cell(item.center)
    return _PLACES[row][column]


def short_name(item: ToyObject) -> str:
    """The name of an object in answers, such as "the red star at the top left"."""
    return f"the {item.color} {item.shape} {place_of(item)}"


def _place_is_sure(item: ToyObject) -> bool:
    return all(abs(value - edge) > _CELL_MARGIN for value in item.center for edge in (1 / 3, 2 / 3))


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


def _unique_names(objects: Sequence[ToyObject]) -> dict[int, str]:
    """For each object that has one, the shortest name that no other object shares, without an article."""
    names: dict[int, str] = {}
    for i, item in enumerate(objects):
        kinds = [kind for kind in _kinds_of(item, _traits(objects), (2, 3, 4)) if kind.color and kind.shape]
        name = next((kind.one for kind in kinds if _indices(objects, kind) == (i,)), None)
        if name:
            names[i] = name
    return names


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
    names = _unique_names(objects)
    for count in (1, 2, 3):
        for chosen in combinations(names, count):
            words = [f"the {names[i]}" for i in chosen]
            # Both orders, so that the order of the answer cannot be copied from the question.
            joined = [join_words(words), join_words(words[::-1])] if count > 1 else words
            yield _Candidate("named", chosen, tuple(t.format(names=j) for t in _NAMED for j in joined))


def _ask_extremes(objects: Sequence[ToyObject]) -> Iterator[_Candidate]:
    kinds = {kind: targets for kind, targets in _kinds(objects, (1,)).items() if kind.shape is None}
    for extreme, index in _extremes(objects).items():
        yield _Candidate("extreme", (index,), tuple(t.format(extreme=extreme) for t in _EXTREME))
        for kind, targets in kinds.items():
            if index not in targets:
                texts = tuple(t.format(traits=kind.adjectives[0], extreme=extreme) for t in _KIND_AND_EXTREME)
                yield _Candidate("kind and extreme", tuple(sorted((*targets, index))), texts)


def _ask_relations(objects: Sequence[ToyObject]) -> Iterator[_Candidate]:
    for index, name in _unique_names(objects).items():
        others = [i for i in range(len(objects)) if i != index]
        for axis, sides in ((0, _SIDE_WORDS[:2]), (1, _SIDE_WORDS[2:])):
            offset = {i: objects[i].center[axis] - objects[index].center[axis] for i in others}
            if min(abs(value) for value in offset.values()) < _POSITION_MARGIN:
                continue
            for sign, side in zip((-1, 1), sides, strict=True):
                targets = tuple(i for i in others if sign * offset[i] > 0)
                yield _Candidate("side", targets, tuple(t.format(side=side, name=name) for t in _SIDE))
        for word, trait in _SAME_WORDS.items():
            targets = tuple(i for i in others if getattr(objects[i], trait) == getattr(objects[index], trait))
            yield _Candidate("same", targets, tuple(t.format(trait=word, name=name) for t in _SAME))


def _ask_all(objects: Sequence[ToyObject]) -> Iterator[_Candidate]:
    yield _Candidate("all", tuple(range(len(objects))), _ALL)


_FAMILIES: tuple[Callable[[Sequence[ToyObject]], Iterator[_Candidate]], ...] = (
    _ask_kinds,
    _ask_named,
    _ask_extremes,
    _ask_relations,
    _ask_all,
)


def answer_text(objects: Sequence[ToyObject], targets: Sequence[int], question: str) -> str:
    """The answer to a question: every target by its short name, each followed by ``{seg}``."""
    named = ", ".join(f"{short_name(objects[i])} is {SEG_MARK}" for i in targets)
    return f"{named[0].upper()}{named[1:]}." if question.endswith("?") else f"Sure, {named}."


def ask_questions(
    scene: Scene, rng: np.random.Generator, *, num_questions: int, count_weights: dict[int, float]
) -> list[Turn]:
    """Draw questions about a scene, each with its own set of targets (indices into `Scene.objects`).

    Args:
        num_questions: how many to draw; fewer come back when the scene does not offer so many.
        count_weights: number of targets (1 to `MAX_TARGETS`) -> how often to ask for so many.
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
    for kind in (Kind(shape=item.shape), Kind(color=item.color, shape=item.shape)):
        rivals = [objects[i] for i in _indices(objects, kind)]
        here = [rival for rival in rivals if place_of(rival) == place_of(item)]
        if len(here) == 1 and all(map(_place_is_sure, rivals)):
            phrases.append(f"{kind.one} {place_of(item)}")
        extremes = _extremes(rivals)
        phrases += [f"{word} {kind.one}" for word, i in extremes.items() if rivals[i] is item]
    return list(dict.fromkeys(phrases))


def vocabulary_text() -> Iterator[str]:
    """Lines that hold every word of the toy world: all wordings of questions, and all names of objects."""
    wordings = (
        *(_EVERY_KIND + _MANY_KIND + _ADJECTIVE_KIND + _TWO_KINDS + _NAMED),
        *(_EXTREME + _KIND_AND_EXTREME + _SIDE + _SAME + _ALL),
    )
    places = [place for row in _PLACES for place in row]
    for color, shape in product(COLORS, SHAPES):
        yield from wordings
        yield ", ".join((*_EXTREME_WORDS, *_SIDE_WORDS, *_SAME_WORDS))
        yield "Sure, " + ", ".join(f"the {color} {shape} {place} is {SEG_MARK}" for place in places) + "."
        yield ", ".join(_plural(shape) for _ in SIZES)
        for size, texture in product(SIZES, TEXTURES):
            yield f"the {Kind(size, texture, color, shape).one}, {Kind(size, texture, color).many}."
