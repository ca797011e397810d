"""Named shapes of photos -> records of custom data (docs/custom_data.md).

A target is everything in a photo that has the same name. Questions and answers are worded from the names
(``templates.py``).
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

from .annotation_formats import NamedShape, NamedShapes, Shape
from .english import has_common_names, make_noun
from .flags import OutputConfig
from .paths import check_data_kept
from .photos import photo_hw
from .sources.custom import draw_target
from .templates import Templates, read_templates

logger = logging.getLogger(__name__)

_MOST_WARNINGS = 20


@dataclass(frozen=True)
class Wording:
    """How records are made of named objects.

    Attributes:
        templates: of questions and answers.
        targets_per_question: most names in one question; the number is random.
        val_share: part of the photos whose records go to a second file.
    """

    templates: Templates
    targets_per_question: int
    val_share: float
    seed: int


def convert(photos: Iterable[NamedShapes], flags: OutputConfig, *, inputs: Sequence[str]) -> None:
    """Write what a reader gives; it has read nothing yet, because readers are generators.

    Args:
        inputs: files and folders that it will read.
    Raises:
        InputError: as ``check_target``, ``read_templates`` and ``write_records``.
    """
    out = Path(flags.out)
    read = [Path(name) for name in (*inputs, flags.templates) if name]
    check_target(out, flag="--out", inputs=read, val_share=flags.val_share)
    templates = read_templates(flags.templates, most_names=flags.targets_per_question)
    write_records(list(photos), out, Wording(templates, flags.targets_per_question, flags.val_share, flags.seed))


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


def write_records(photos: Sequence[NamedShapes], out: Path, wording: Wording) -> None:
    """Word, check and write: every target of every record can be drawn when this returns.

    Photos and shapes that cannot be used are left out, with a warning each and their count at the end.

    Raises:
        InputError: if nothing is left.
    """
    problems: list[str] = []
    counts: Counter[Path] = Counter()
    files = {False: out, True: val_file(out)}
    lines: dict[Path, list[str]] = {out: []}
    common = has_common_names(shape.name for photo in photos for shape in photo.shapes)
    for number, photo in enumerate(photos, 1):
        rng = np.random.default_rng([wording.seed, number])
        file = files[bool(rng.random() < wording.val_share)]
        targets = _usable_targets(photo, problems)
        records = [
            json.dumps(record) for record in _word(photo.image, targets, rng, wording, common, folder=out.parent)
        ]
        lines.setdefault(file, []).extend(records)
        counts[file] += bool(records)
    _report(problems)
    if not sum(counts.values()):
        raise InputError(
            f"nothing to write: {len(photos)} photos, none with a usable target. The warnings above say why"
        )
    for file, records in lines.items():
        write_text(file, "".join(f"{record}\n" for record in records))
        logger.info("%s: %d records about %d photos", file, len(records), counts[file])
    unused = len(photos) - sum(counts.values())
    if unused:
        logger.warning("%d of %d photos have no record", unused, len(photos))


def _report(problems: Sequence[str]) -> None:
    for problem in problems[:_MOST_WARNINGS]:
        logger.warning("left out: %s", problem)
    if len(problems) > _MOST_WARNINGS:
        logger.warning("... and %d more", len(problems) - _MOST_WARNINGS)


def _usable_targets(photo: NamedShapes, problems: list[str]) -> dict[str, list[NamedShape]]:
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
    targets: dict[str, list[NamedShape]] = {}
    for named in photo.shapes:
        try:
            draw_target([named.shape], hw, folder=Path(), where=f"{photo.image}, {named.name}")
            targets.setdefault(named.name, []).append(named)
        except InputError as err:
            problems.append(str(err))
    return targets


def _word(
    image: Path,
    targets: Mapping[str, list[NamedShape]],
    rng: np.random.Generator,
    wording: Wording,
    common: bool,
    *,
    folder: Path,
) -> Iterator[dict[str, Any]]:
    """Records that ask for every name once; the number of names per question is random."""
    names = [sorted(targets)[place] for place in rng.permutation(len(targets))]
    while names:
        size = int(rng.integers(1, wording.targets_per_question + 1))
        asked, names = names[:size], names[size:]
        counts = [len({shape.part_of for shape in targets[name]}) for name in asked]
        nouns = [
            make_noun(name, several=count > 1, has_common_names=common)
            for name, count in zip(asked, counts, strict=True)
        ]
        question, answer = wording.templates.word(rng, nouns)
        shapes = [_movable_target([named.shape for named in targets[name]], folder) for name in asked]
        turn = {"question": question, "answer": answer, "targets": shapes}
        yield {"image": _movable(image, folder), "turns": [turn]}


def _movable_target(shapes: Sequence[Shape], folder: Path) -> Shape | list[Shape]:
    moved = [{**shape, "png": _movable(Path(shape["png"]), folder)} if "png" in shape else shape for shape in shapes]
    return moved[0] if len(moved) == 1 else moved


def _movable(path: Path, folder: Path) -> str:
    """Relative where it lies in the folder of the records, so that both can be moved together; else absolute."""
    path, folder = path.resolve(), folder.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
