"""Small rows of an evaluation that are scored as a real one is: photos on disk, masks, names, hostile words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from model.drawing import write_image
from model.rle import encode_rle
from utils.evaluation.benchmarks import Benchmark, Published
from utils.evaluation.records import QuestionRecord
from utils.evaluation.scores import ScoredRow, ScoringOptions, score_records

H, W = 60, 90
HOSTILE = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 1'>"
SETTINGS: dict[str, Any] = {
    "config": {"version": f"models/{HOSTILE}", "pictures": 4},
    "command": "python scripts/evaluate.py --version MODEL",
    "versions": {"torch": "2.13.0"},
}
PUBLISHED = (
    Published("PixelLM-7B", "giou", 0.421, "PixelLM, table 2", "generate", True),
    Published("PixelLM-7B", "ciou", 0.533, "PixelLM, table 2", "generate", True),
    Published("Other-7B", "giou", 0.123, "a note"),
)


def square(x: int, y: int, side: int = 20) -> np.ndarray:
    """(H, W) bool."""
    mask = np.zeros((H, W), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


def question(
    folder: Path, number: int, true: Sequence[np.ndarray], predicted: Sequence[np.ndarray], **changes: Any
) -> QuestionRecord:
    """A question about a photo of its own, which is written; masks are (H, W) bool."""
    photo = folder / f"photo {number}.png"
    if not photo.exists():
        write_image(photo, np.full((H, W, 3), (60, 90 + 5 * number, 120), dtype=np.uint8))
    phrases = tuple(f"thing {letter}" for letter in "abcdefgh"[: len(predicted)])
    answer = "Here: " + ", ".join(f"the {phrase} [{place}]" for place, phrase in enumerate(phrases))
    record = QuestionRecord(
        benchmark="MultiReasonSeg|val", protocol="generate", index=number, conversation=0, sample_id=f"photo-{number}",
        image=str(photo), upright=True, size=(H, W), question=f"What is it, number {number}?", kind="",
        has_target=bool(true), names=tuple(f"true thing {place}" for place in range(len(true))),
        true_masks=tuple(map(encode_rle, true)), ignored=None, answer=answer, numbered=answer, reason=None,
        phrases=phrases, confidences=(0.9,) * len(phrases), predictions=tuple(map(encode_rle, predicted)),
    )  # fmt: skip
    return replace(record, **changes)


def muse_records(folder: Path, *, shift: int = 0) -> list[QuestionRecord]:
    """Seven questions, of which number 3 is answered worst; every prediction is moved by ``shift`` pixels."""
    one, two, three = (4, 4), (34, 30), (64, 8)

    def moved(place: tuple[int, int], by: int) -> np.ndarray:
        return square(place[0] + by + shift, place[1])

    true = [square(*one), square(*two)]
    hostile = {"question": HOSTILE, "numbered": f"{HOSTILE} [0]", "phrases": (HOSTILE,), "names": (HOSTILE,)}
    return [
        question(folder, 0, true, [moved(one, 2), moved(two, 4)]),
        question(folder, 1, true, [moved(two, 1), moved(one, 1)]),  # in another order
        question(folder, 2, true, [moved(one, 5), moved(two, 5), square(*three, 12)]),  # one is extra
        question(folder, 3, [square(*three), *true], [moved(two, 18)]),  # two are missed, the third nearly
        question(folder, 4, [square(*one)], [moved(one, 10)], **hostile),
        question(folder, 5, [square(*one)], [moved(one, 3)], kind="short", sample_id=HOSTILE),
        question(folder, 6, [square(*two)], [moved(two, 8)], image=str(folder / "nowhere.jpg"), kind="long"),
    ]


def rows(folder: Path, *, shift: int = 0) -> list[ScoredRow]:
    """A row of MUSE, one of referring questions, and one without data."""
    muse = Benchmark("MultiReasonSeg|val", ("MultiReasonSeg|val",), "matched", ("generate",), PUBLISHED)
    referring = Benchmark("refcoco|unc|val", ("refcoco|unc|val",), "referring", ("generate",))
    missing = Benchmark("ReasonSeg|val", ("ReasonSeg|val",), "referring", ("teacher_forced",), PUBLISHED[:1])
    expressions = [
        question(folder, 10 + number, [square(20, 20)], [square(20 + 2 * number + shift, 20)], benchmark=referring.name)
        for number in range(3)
    ]
    found = []
    for benchmark, records in ((muse, muse_records(folder, shift=shift)), (referring, expressions)):
        groups, questions = score_records(records, benchmark.rule, options=ScoringOptions())
        found.append(ScoredRow(benchmark, "generate", groups, questions))
    return [*found, ScoredRow(missing, "teacher_forced", {}, (), "dataset/reason_seg is not there")]
