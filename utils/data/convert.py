"""Named shapes of photos -> records of custom data (docs/custom_data.md).

A target is everything in a photo that has the same name. Questions and answers are worded from the names.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import InputError
from model.files import is_folder, write_text
from model.outputs import check_output_file

from . import prompts
from .annotation_formats import NamedShapes, Shape
from .flags import OutputConfig
from .paths import check_data_kept
from .photos import photo_hw
from .sources.custom import draw_target

logger = logging.getLogger(__name__)

_MOST_WARNINGS = 20


@dataclass(frozen=True)
class Wording:
    """How records are made of named objects.

    Attributes:
        targets_per_question: most names in one question; the number is random.
        val_share: part of the photos whose records go to a second file.
    """

    targets_per_question: int
    val_share: float
    seed: int


def convert(photos: Iterable[NamedShapes], flags: OutputConfig, *, inputs: Sequence[str]) -> None:
    """Write what a reader gives; it has read nothing yet, because readers are generators.

    Args:
        inputs: files and folders that it will read.
    Raises:
        InputError: as ``check_target`` and ``write_records``.
    """
    out = Path(flags.out)
    check_target(out, flag="--out", inputs=[Path(name) for name in inputs], val_share=flags.val_share)
    write_records(photos, out, Wording(flags.targets_per_question, flags.val_share, flags.seed))


def check_target(out: Path, *, flag: str, inputs: Sequence[Path], val_share: float) -> None:
    """Refuse an output file that could not be written or that is read here, before anything is read.

    Args:
        inputs: files, and folders of photos, masks or annotations, however deep these lie in them.
        val_share: as of ``Wording``.
    Raises:
        InputError: as ``check_output_file``.
    """
    folders = [path for path in inputs if is_folder(path)]
    for file in (out, val_file(out)) if val_share else (out,):
        check_output_file(file, flag=flag, inputs=inputs)
        check_data_kept(file, folders, flag=flag)


def val_file(out: Path) -> Path:
    """The second file, of the validation part."""
    return out.with_name(f"{out.stem}_val{out.suffix}")


def write_records(photos: Iterable[NamedShapes], out: Path, wording: Wording) -> None:
    """Word, check and write: every target of every record can be drawn when this returns.

    Photos and shapes that cannot be used are left out, with a warning each and their count at the end.

    Raises:
        InputError: if nothing is left.
    """
    problems: list[str] = []
    counts: Counter[Path] = Counter()
    files = {False: out, True: val_file(out)}
    lines: dict[Path, list[str]] = {out: []}
    number = 0
    for number, photo in enumerate(photos, 1):
        rng = np.random.default_rng([wording.seed, number])
        file = files[bool(rng.random() < wording.val_share)]
        targets = _usable_targets(photo, problems)
        records = [json.dumps(record) for record in _word(photo.image, targets, rng, wording, folder=out.parent)]
        lines.setdefault(file, []).extend(records)
        counts[file] += bool(records)
    _report(problems)
    if not sum(counts.values()):
        raise InputError(f"nothing to write: {number} photos, none with a usable target. The warnings above say why")
    for file, records in lines.items():
        write_text(file, "".join(f"{record}\n" for record in records))
        logger.info("%s: %d records about %d photos", file, len(records), counts[file])
    unused = number - sum(counts.values())
    if unused:
        logger.warning("%d of %d photos have no record", unused, number)


def _report(problems: Sequence[str]) -> None:
    for problem in problems[:_MOST_WARNINGS]:
        logger.warning("left out: %s", problem)
    if len(problems) > _MOST_WARNINGS:
        logger.warning("... and %d more", len(problems) - _MOST_WARNINGS)


def _usable_targets(photo: NamedShapes, problems: list[str]) -> dict[str, list[Shape]]:
    """Name -> shapes that can be drawn; what cannot, is added to ``problems``."""
    if photo.problem:
        problems.append(photo.problem)
        return {}
    try:
        hw = photo_hw(photo.image, upright=True)
        if photo.hw not in (None, hw):
            raise InputError(f"image {photo.image} is {hw}, its annotation says {photo.hw} (height, width)")
    except InputError as err:
        problems.append(str(err))
        return {}
    targets: dict[str, list[Shape]] = {}
    for name, shape in photo.shapes:
        try:
            draw_target([shape], hw, folder=Path(), where=f"{photo.image}, {name}")
            targets.setdefault(name, []).append(shape)
        except InputError as err:
            problems.append(str(err))
    return targets


def _word(
    image: Path, targets: Mapping[str, list[Shape]], rng: np.random.Generator, wording: Wording, *, folder: Path
) -> Iterator[dict[str, Any]]:
    """Records that ask for every name once; the number of names per question is random."""
    names = [sorted(targets)[place] for place in rng.permutation(len(targets))]
    while names:
        size = int(rng.integers(1, wording.targets_per_question + 1))
        asked, names = names[:size], names[size:]
        turn = {
            "question": prompts.short_question(rng, asked, expand=True),
            "answer": prompts.answer(rng, asked, named=False),
            "targets": [_movable_target(targets[name], folder) for name in asked],
        }
        yield {"image": _movable(image, folder), "turns": [turn]}


def _movable_target(shapes: Sequence[Shape], folder: Path) -> Shape | list[Shape]:
    moved = [{**shape, "png": _movable(Path(shape["png"]), folder)} if "png" in shape else shape for shape in shapes]
    return moved[0] if len(moved) == 1 else moved


def _movable(path: Path, folder: Path) -> str:
    """Relative where it lies in the folder of the records, so that both can be moved together; else absolute."""
    path, folder = path.resolve(), folder.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
