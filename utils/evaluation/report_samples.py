"""The questions that a report shows in pictures: which ones, their photos, and their masks as outlines. No torch.

A photo stands in the page once, however many questions are about it. Masks are drawn over it as SVG paths, so that a
mask has the very color of the words that name it, in every answer that is compared.

Shapes: P predicted masks, G true masks, h, w size of a picture in pixels.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import cv2
import numpy as np

from model.badges import place_badges
from model.drawing import fit
from model.errors import InputError
from model.photo_file import check_size, read_image
from utils.inference.words import pieces
from utils.masks.rle import decode_rles

from .matching import EMPTY, UNITED
from .records import QuestionRecord
from .scores import ScoredQuestion

SIDE = 560  # pixels of the longer side of a picture
BADGE = 13  # radius of a number, in pixels of the picture
_QUALITY = 80  # of the JPEG
_SLACK = 0.7  # pixels that an outline may leave its mask: half of the line
_GRAY = 128  # in place of a photo that cannot be read


@dataclass(frozen=True)
class Entry:
    """A question of the report.

    Attributes:
        row: number of its row.
        other: the same question in the run beside it.
    """

    row: int
    scored: ScoredQuestion
    other: ScoredQuestion | None = None

    @property
    def num_extra(self) -> int:
        """Predictions that no true mask is left for."""
        return sum(len(pair.predicted) for pair in members(self.scored) if not pair.true)

    @property
    def num_missed(self) -> int:
        """True masks that got no prediction."""
        return sum(len(pair.true) for pair in members(self.scored) if not pair.predicted)

    @property
    def gain(self) -> float | None:
        """The score less that of the other run."""
        if self.scored.score is None or self.other is None or self.other.score is None:
            return None
        return self.scored.score - self.other.score


@dataclass(frozen=True)
class Pair:
    """Numbers of the masks that are compared, none where there is no counterpart; several are joined."""

    predicted: list[int]
    true: list[int]
    iou: float


def members(scored: ScoredQuestion) -> list[Pair]:
    """The pairs of a question."""
    record, pairs = scored.record, scored.pairs
    rows = zip(pairs.pred_index.tolist(), pairs.true_index.tolist(), pairs.iou.tolist(), strict=True)
    return [
        Pair(_numbers(pred, record.num_predicted), _numbers(true, record.num_true), round(iou, 4))
        for pred, true, iou in rows
    ]


def _numbers(index: int, count: int) -> list[int]:
    return list(range(count)) if index == UNITED else [] if index == EMPTY else [index]


def choose(entries: Sequence[Entry], *, most: int) -> dict[str, list[int]]:
    """The places of the entries that are shown in pictures, by kind, at most so many of each; the first one first.

    Of equal ones, the first in the order of the set comes first, as in the table of all questions.
    """
    scores = {place: one.scored.score for place, one in enumerate(entries) if one.scored.score is not None}
    gains = {place: gain for place, one in enumerate(entries) if (gain := one.gain)}

    def first(places: Any, key: Any) -> list[int]:
        return sorted(places, key=key)[:most]

    extra = {place: one.num_extra for place, one in enumerate(entries) if one.num_extra}
    missed = {place: one.num_missed for place, one in enumerate(entries) if one.num_missed}
    kinds = {
        "worst": first(scores, lambda place: (scores[place], place)),
        "best": first(scores, lambda place: (-scores[place], place)),
        "random": Random(0).sample(range(len(entries)), min(most, len(entries))),
        "extra": first(extra, lambda place: (-extra[place], place)),
        "missed": first(missed, lambda place: (-missed[place], place)),
        "better": first((place for place in gains if gains[place] > 0), lambda place: (-gains[place], place)),
        "worse": first((place for place in gains if gains[place] < 0), lambda place: (gains[place], place)),
    }
    return {kind: places for kind, places in kinds.items() if places}


@dataclass
class Album:
    """Pictured questions as plain data.

    Attributes:
        photos: JPEG files as data addresses, each once.
    """

    photos: list[str] = field(default_factory=list)
    _known: dict[tuple[str, bool, tuple[int, int]], dict[str, Any]] = field(default_factory=dict)

    def picture(self, entry: Entry) -> dict[str, Any]:
        """A question with its photo, its masks, and its words cut where they name them.

        Raises:
            InputError: if a mask or the recorded size is damaged. A photo that cannot be read is told in its place.
        """
        record = entry.scored.record
        check_size(*record.size, where=record.sample_id)
        predicted, true = record.masks()
        answers = [_answer(entry.scored, predicted)]
        if entry.other is not None:
            answers.append(_answer(entry.other, entry.other.record.masks()[0]))
        _, slots = color_slots(entry.scored)
        return {
            **self._photo(record),
            "truth": _shapes(true, slots),
            "slots": slots,
            "names": [*record.names, *[""] * (len(true) - len(record.names))],
            "ignored": _ignored_path(record),
            "answers": answers,
        }

    def _photo(self, record: QuestionRecord) -> dict[str, Any]:
        """Number and size of the photo, which is read for the first question about it."""
        key = (record.image, record.upright, record.size)
        if key not in self._known:
            image, note = _read_photo(record)
            picture, _ = fit(image, np.zeros((0, *record.size), dtype=bool), side=SIDE)
            number = -1 if note else len(self.photos)
            if not note:
                self.photos.append(_jpeg_address(picture))
            self._known[key] = {"photo": number, "note": note, "size": [picture.shape[1], picture.shape[0]]}
        return self._known[key]


def _read_photo(record: QuestionRecord) -> tuple[np.ndarray, str]:
    """Pixels, (H, W, 3), and why they are gray; empty if they are the photo's."""
    try:
        image = read_image(record.image, as_stored=not record.upright)
        if image.shape[:2] == tuple(record.size):
            return image, ""
        found, expected = (" x ".join(map(str, hw)) for hw in (image.shape[:2], record.size))
        note = f"image {record.image} is {found} pixels; the question was about one of {expected}"
    except InputError as err:
        note = str(err)
    return np.full((*record.size, 3), _GRAY, dtype=np.uint8), note


def _jpeg_address(picture: np.ndarray) -> str:
    """(h, w, 3) uint8 RGB -> an address that holds the whole file."""
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def _answer(scored: ScoredQuestion, predicted: np.ndarray) -> dict[str, Any]:
    """What one run gave: masks, words and pairs; ``predicted`` is (P, H, W) bool."""
    record = scored.record
    slots, _ = color_slots(scored)
    return {
        "shapes": _shapes(predicted, slots),
        "slots": slots,
        "phrases": [*record.phrases, *[""] * (len(predicted) - len(record.phrases))],
        "words": [list(piece) for piece in pieces(record.numbered, record.phrases)],
        "pairs": [[pair.predicted, pair.true, pair.iou] for pair in members(scored)],
        "reason": record.reason or "",
    }


def color_slots(scored: ScoredQuestion) -> tuple[list[int], list[int]]:
    """The places in the palette of the P predicted and of the G true masks.

    A true mask has its own number, masks that are joined have one color, a predicted mask has that of its true one.
    Extra ones take the places that follow.
    """
    record = scored.record
    predicted, true = [EMPTY] * record.num_predicted, list(range(record.num_true))
    free = record.num_true
    for pair in members(scored):
        slot = pair.true[0] if pair.true else free
        free += not pair.true
        for number in pair.predicted:
            predicted[number] = slot
        for number in pair.true:
            true[number] = slot
    for number, slot in enumerate(predicted):
        if slot == EMPTY:  # a mask that the rule compares with nothing
            predicted[number], free = free, free + 1
    return predicted, true


def _shapes(masks: np.ndarray, slots: Sequence[int]) -> list[dict[str, Any]]:
    """(M, H, W) bool -> outlines in the pixels of the picture, the largest first: a later one covers those before."""
    small = _resize(masks)
    areas = small.sum(axis=(1, 2))
    order = np.argsort(-areas, kind="stable").tolist()
    shown = [number for number in order if areas[number]]
    num_rows = small.shape[1]
    badges = {badge.number: badge.center for badge in place_badges(small, shown, radius=BADGE, num_rows=num_rows)}
    return [
        {"number": number, "slot": slots[number], "path": outline(small[number]), "badge": badges.get(number)}
        for number in order
    ]


def _resize(masks: np.ndarray) -> np.ndarray:
    """(M, H, W) bool -> (M, h, w) bool."""
    return fit(np.zeros((*masks.shape[1:], 3), dtype=np.uint8), masks, side=SIDE)[1]


def _ignored_path(record: QuestionRecord) -> str:
    """The outline of what counts for nothing; empty if everything counts."""
    if record.ignored is None:
        return ""
    return outline(_resize(decode_rles([record.ignored], hw=record.size))[0])


def outline(mask: np.ndarray) -> str:
    """(h, w) bool -> the data of an SVG path, to be filled by the rule ``evenodd``."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts = []
    for contour in contours:
        (x, y), *_ = points = cv2.approxPolyDP(contour, _SLACK, True)[:, 0].tolist()
        steps = np.diff(points, axis=0).ravel().tolist()
        parts.append(f"M{x} {y}{'l' + ' '.join(map(str, steps)) if steps else 'h0'}z")
    return "".join(parts)
