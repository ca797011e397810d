"""Custom data: a JSON-lines file of photos with questions, answers and targets. docs/custom_data.md has the format.

Shapes: M masks of one sample, H, W size of its photo as displayed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import InputError
from model.files import is_file, is_folder, parse_json
from model.text.conversation import IMAGE_MARK
from model.values import is_encodable, shorten
from utils.data.family import Download, Family, UnusableSource, ValSets
from utils.data.paths import DatasetPaths, MissingData
from utils.data.photos import photo_hw, read_label_map
from utils.data.records import SEG_MARK, RawSample, Turn
from utils.masks.rasterize import decode_segmentation

logger = logging.getLogger(__name__)

_SHAPES = '{"polygon": [x, y, ...]}, {"rle": {"size": [H, W], "counts": ...}}, {"png": "FILE.png"}, or a list of these'
_VAL_PREFIX = "custom|"
_KEYS = ({"polygon"}, {"rle"}, {"png"}, {"png", "value"})


@dataclass(frozen=True)
class CustomRecord:
    """A line of the file.

    Attributes:
        turns: one dialogue about the photo; ``Turn.targets`` are indices into ``targets``.
        targets: the shapes of each, which are united.
    """

    image: Path
    turns: tuple[Turn, ...]
    targets: tuple[tuple[Mapping[str, Any], ...], ...]


class CustomSource:
    """One file, for training or validation: every line is a sample, in the words that it has; ``rng`` is not used.

    All lines are checked when the file is opened. What stays in memory is where each of them begins.

    Args:
        asked_by: the flag that names the file.
        single_turn: refuse dialogues of several turns: a validation question stands alone.

    Raises:
        MissingData: if the file does not exist.
        UnusableSource: if a line is bad.
        InputError: if the file is empty.
    """

    def __init__(self, file: Path, *, asked_by: str, single_turn: bool = False) -> None:
        self.name = f"custom|{file}"
        self._file = file
        _check_exists(file, asked_by)
        self._lines, problems = scan(file, single_turn=single_turn)
        if problems:
            others = len(problems) - 1
            more = f"; {others} more {'lines are' if others > 1 else 'line is'} bad" if others else ""
            raise UnusableSource(
                f"{problems[0]}{more}. Correct the file ({asked_by}); `python -m utils.data.verify --dataset custom "
                f"--custom_data {file} --deep` lists every bad line",
                problems,
            )
        if not len(self._lines):
            raise InputError(f"{asked_by}: {file} is empty; expected a record per line, see docs/custom_data.md")
        self.mask_share = float((self._lines[:, 2] > 0).mean())
        logger.info("%s: %d records, %.0f %% of them with targets", self.name, len(self._lines), 100 * self.mask_share)

    def __len__(self) -> int:
        return len(self._lines)

    def get(self, index: int, rng: np.random.Generator) -> RawSample:
        number, start, _ = self._lines[index].tolist()
        with self._file.open("rb") as file:
            file.seek(start)
            line = file.readline()
        where = f"{self._file}, line {number}"
        try:
            record = parse_record(line, self._file.parent)
            hw = photo_hw(record.image, upright=True)
            masks = [
                draw_target(shapes, hw, folder=self._file.parent, where=f"target {place}")
                for place, shapes in enumerate(record.targets)
            ]
        except InputError as err:
            raise InputError(f"{where}: {err}", reason=err.reason) from err
        stacked = np.stack(masks) if masks else np.zeros((0, *hw), dtype=bool)
        return RawSample(where, record.image, (record.turns,), stacked, upright=True)


def scan(file: Path, *, single_turn: bool) -> tuple[np.ndarray, list[str]]:
    """Check every line of a file: its format, and that its pictures exist.

    Returns:
        (lines, 3) int64, the number of each line, the byte where it begins and its targets, empty lines left out; and
        what is wrong, with file and line.
    """
    lines: list[tuple[int, int, int]] = []
    problems: list[str] = []
    start = 0
    names = cache(_names)  # asking a network drive for every picture would take minutes
    with file.open("rb") as content:
        for number, line in enumerate(content, 1):
            if line.strip():
                num_targets = 0
                try:
                    record = parse_record(line, file.parent)
                    num_targets = len(record.targets)
                    problem = _find_problem(record, file.parent, names, single_turn=single_turn)
                except InputError as err:
                    problem = str(err)
                if problem:
                    problems.append(f"{file}, line {number}: {problem}")
                lines.append((number, start, num_targets))
            start += len(line)
    return np.array(lines, dtype=np.int64).reshape(-1, 3), problems


def _find_problem(
    record: CustomRecord, folder: Path, names: Callable[[Path], frozenset[str]], *, single_turn: bool
) -> str | None:
    if single_turn and len(record.turns) > 1:
        return f"it has {len(record.turns)} turns; for validation, give every question a line of its own"
    pictures = [record.image]
    pictures += [folder / shape["png"] for shapes in record.targets for shape in shapes if "png" in shape]
    missing = [picture for picture in pictures if picture.name not in names(picture.parent) and not is_file(picture)]
    return f"{missing[0]} does not exist; paths start at the folder of this file" if missing else None


def _names(folder: Path) -> frozenset[str]:
    """What lies in a folder."""
    return frozenset(os.listdir(folder)) if is_folder(folder) else frozenset()


def parse_record(line: bytes, folder: Path) -> CustomRecord:
    """Read one line.

    Args:
        folder: where relative paths start.
    Raises:
        InputError: what is wrong with it; file and line are for the caller to add.
    """
    text = line.removeprefix(b"\xef\xbb\xbf")
    record = parse_json(text, where="it", remedy="expected one object per line")
    if not isinstance(record, Mapping):
        raise InputError(f"it is a {type(record).__name__}; expected one JSON object per line, not one for the file")
    image, turns = record.get("image"), record.get("turns")
    if not isinstance(image, str) or not image:
        raise InputError(f'"image" is {shorten(image)}; expected the path of a photo')
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise InputError(
            f'"turns" is {shorten(turns)}; expected a list of {{"question": ..., "answer": ..., "targets": ...}}'
        )
    parsed: list[Turn] = []
    targets: list[tuple[Mapping[str, Any], ...]] = []
    for number, turn in enumerate(turns):
        try:
            question, answer, own, names = _parse_turn(turn)
            places = tuple(range(len(targets), len(targets) + len(own)))
            parsed.append(Turn(question, answer, places, names=names, has_target=bool(own)))
        except InputError as err:
            raise InputError(f"turn {number}: {err}") from err
        targets += own
    return CustomRecord(folder / image, tuple(parsed), tuple(targets))


def _parse_turn(turn: Any) -> tuple[str, str, list[tuple[Mapping[str, Any], ...]], tuple[str, ...]]:
    """Question, answer, the shapes of each target, and the names of the targets."""
    if not isinstance(turn, Mapping):
        raise InputError(f"it is a {type(turn).__name__}; expected an object with question, answer and targets")
    question, answer, targets = _parse_text(turn, "question"), _parse_text(turn, "answer"), turn.get("targets", [])
    if SEG_MARK in question:
        raise InputError(f'"question" contains {SEG_MARK}, which belongs in answers only')
    if not isinstance(targets, Sequence) or isinstance(targets, str):
        raise InputError(f'"targets" is {shorten(targets)}; expected a list, one entry per {SEG_MARK}')
    shapes = [_parse_target(target, place) for place, target in enumerate(targets)]
    return question, answer, shapes, _parse_names(turn.get("names", []), len(shapes))


def _parse_names(names: Any, num_targets: int) -> tuple[str, ...]:
    is_list = isinstance(names, Sequence) and not isinstance(names, str)
    if not is_list or len(names) not in (0, num_targets) or not all(_is_name(name) for name in names):
        raise InputError(
            f'"names" is {shorten(names)}; expected a list of {num_targets}, one name per target without marks, or '
            "none at all"
        )
    return tuple(name.strip() for name in names)


def _is_name(name: Any) -> bool:
    is_text = isinstance(name, str) and bool(name.strip()) and is_encodable(name)
    return is_text and SEG_MARK not in name and IMAGE_MARK not in name


def _parse_text(turn: Mapping[str, Any], key: str) -> str:
    text = turn.get(key)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f'"{key}" is {shorten(text)}; expected text')
    if not is_encodable(text):
        raise InputError(f'"{key}" holds half of a surrogate pair; expected text that can be written as UTF-8')
    if IMAGE_MARK in text:
        raise InputError(
            f'"{key}" contains {IMAGE_MARK}; leave it out, the photo always comes before the first question'
        )
    return text


def _parse_target(target: Any, place: int) -> tuple[Mapping[str, Any], ...]:
    shapes: list[Any] = target if isinstance(target, list) and target else [target]
    if not all(_is_shape(shape) for shape in shapes):
        raise InputError(f"target {place} is {shorten(target)}; expected {_SHAPES}")
    return tuple(shapes)


def _is_shape(shape: Any) -> bool:
    """Right keys with values of the right kind; what they draw is checked when they are drawn."""
    if not isinstance(shape, Mapping) or set(shape) not in _KEYS:
        return False
    if "png" in shape:
        file, value = shape["png"], shape.get("value", 0)
        return isinstance(file, str) and file.lower().endswith(".png") and type(value) is int  # JPEG blurs values
    if "rle" in shape:
        code = shape["rle"]
        return isinstance(code, Mapping) and set(code) == {"size", "counts"} and isinstance(code["size"], list)
    return isinstance(shape["polygon"], list)


def draw_target(shapes: Sequence[Mapping[str, Any]], hw: tuple[int, int], *, folder: Path, where: str) -> np.ndarray:
    """Rasterize the shapes of a target, united: (H, W) bool, at least one pixel.

    Args:
        folder: where relative paths start.
        where: for messages.
    Raises:
        InputError: if a shape cannot be drawn or has another size, or the mask is empty.
    """
    mask = np.zeros(hw, dtype=bool)
    for shape in shapes:
        if "png" in shape:
            mask |= _read_png(folder / shape["png"], shape.get("value"), hw, where=where)
        else:
            segmentation = [shape["polygon"]] if "polygon" in shape else shape["rle"]
            mask |= decode_segmentation(segmentation, hw, where=where)
    if not mask.any():
        raise InputError(
            f"{where} covers no pixel of the photo, which is {hw[0]} x {hw[1]} (height x width)", reason="empty mask"
        )
    return mask


def _read_png(path: Path, value: int | None, hw: tuple[int, int], *, where: str) -> np.ndarray:
    labels = read_label_map(path)
    if labels.shape != hw:
        raise InputError(
            f"{where}: {path} is {labels.shape}, the photo {hw} (height, width); masks need the size of their photo",
            reason="photo and masks differ in size",
        )
    return labels != 0 if value is None else labels == value


def _download(file: str) -> Download:
    def find(paths: DatasetPaths, flag: str) -> Path:
        _check_exists(Path(file), flag)
        return Path(file)

    return Download(f"your own {file}", (find,), "docs/custom_data.md has the format", "yours")


def _check_exists(file: Path, asked_by: str) -> None:
    if not is_file(file):
        advice = "Give a JSON-lines file; docs/custom_data.md has the format"
        raise MissingData(file, "does not exist", asked_by, advice=advice)


def _val_file(name: str) -> Path:
    return Path(name.removeprefix(_VAL_PREFIX))


FAMILY = Family(
    "custom",
    lambda options, part: CustomSource(Path(part), asked_by=f"--custom_data {part}"),
    lambda part: [_download(part)],
    part_flag="custom_data",
    val_sets=ValSets(
        lambda paths, name: CustomSource(_val_file(name), asked_by=f"--val_dataset {name}", single_turn=True),
        lambda name: [_download(str(_val_file(name)))],
        file_prefix=_VAL_PREFIX,
    ),
    hint="; docs/custom_data.md has the format",
)
