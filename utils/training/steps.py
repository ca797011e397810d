"""The folder of a run's checkpoints, one step each: their names, which of them are whole, which are kept.

A step is written aside, synced, described by a manifest, and renamed into place; then ``latest`` is. A process that is
killed at any moment leaves what was there before.
"""

from __future__ import annotations

import hashlib
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from model.errors import InputError
from model.files import is_file, is_folder, read_json, read_object, write_json, write_text
from model.outputs import remove_folder, remove_leftovers
from model.values import Finite, Schema

from .deepspeed_files import find_missing_file, is_of_deepspeed
from .stored import is_part, names_of_whole

logger = logging.getLogger(__name__)

CHECKPOINTS = "ckpt_model"  # in a run directory
# DeepSpeed's names, which the release's command lines rely on: the file that names a step, and the folder of a step.
LATEST = "latest"
_STEP = "global_step"
MANIFEST = "manifest.json"
SCORES = "scores.json"
_HASHED_AT_ONCE = 2**22  # bytes


class FileRecord(TypedDict):
    """A file of a step as it was written; sha256 in hexadecimal."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: str


_MANIFEST = Schema(dict[str, FileRecord])
_SCORES = Schema(dict[str, Finite])


def step_folder(folder: Path, update: int) -> Path:
    """Where the checkpoint after this update lies."""
    return folder / f"{_STEP}{update}"


def is_step(folder: Path) -> bool:
    """Whether a folder is named as a step is."""
    return re.fullmatch(rf"{_STEP}[0-9]+", folder.name) is not None


def update_of(step: Path) -> int:
    """The updates that a step has seen."""
    return int(step.name.removeprefix(_STEP))


def meant_step(weight: Path) -> Path | None:
    """A step itself, or the latest of a checkpoint folder; None for weights of another kind."""
    return weight if is_step(weight) else latest_step(weight)


def updates_of(weight: Path) -> int | None:
    """The updates that a checkpoint folder, or one step of it, has seen; None for weights that do not say so."""
    step = meant_step(weight)
    return update_of(step) if step else None


def step_names(folder: Path) -> list[str]:
    """The steps that a checkpoint folder holds, earliest first; none if there is no such folder."""
    if not is_folder(folder):
        return []
    return sorted((path.name for path in folder.glob(f"{_STEP}*") if is_step(path)), key=lambda name: (len(name), name))


def latest_step(folder: Path) -> Path | None:
    """The step that ``latest`` names; None if it names none that is there."""
    file = folder / LATEST
    if not is_file(file):
        return None
    step = folder / file.read_text(encoding="utf-8", errors="replace").strip()
    return step if step.parent == folder and is_step(step) and is_folder(step) else None


def name_latest(step: Path) -> None:
    """Have ``latest`` name a step that is in its place."""
    write_text(step.parent / LATEST, step.name)


def record_of(file: Path) -> FileRecord:
    """Size and hash of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_HASHED_AT_ONCE):
            digest.update(block)
    return FileRecord(bytes=file.stat().st_size, sha256=digest.hexdigest())


def write_manifest(step: Path, known: dict[str, FileRecord]) -> None:
    """Write sizes and hashes of every file below a step.

    Args:
        known: records of files that another process has just written and read.
    """
    files = sorted(path for path in step.rglob("*") if path.is_file())
    names = [path.relative_to(step).as_posix() for path in files]
    write_json(
        step / MANIFEST,
        {name: known.get(name) or record_of(path) for name, path in zip(names, files, strict=True)},
    )


def damage_of(step: Path) -> str:
    """What is wrong with a step, in words; empty if it is whole."""
    if not is_folder(step):
        return "it is no folder"
    if not is_file(step / MANIFEST):
        if is_of_deepspeed(step):  # which keeps no list of its files
            return find_missing_file(step)
        return f"it has no {MANIFEST}"
    try:
        content = read_json(step / MANIFEST)
        records = _MANIFEST.check(content, where=MANIFEST, remedy="copy it again")
    except InputError as err:
        return str(err)
    for name, record in records.items():
        if not (step / name).resolve().is_relative_to(step.resolve()):
            return f"its {MANIFEST} names {name}, which is not in it"
        if not is_file(step / name):
            return f"{name} is missing"
        if (size := (step / name).stat().st_size) != record["bytes"]:
            return f"{name} has {size:,} bytes, not {record['bytes']:,}"
    parts = [path.name for path in step.iterdir() if is_part(path.name)]
    for name in (*names_of_whole([*parts, *records]), *parts):
        if name not in records:
            return f"its {MANIFEST} does not name {name}"
    with ThreadPoolExecutor() as pool:  # hashing needs no lock of Python's
        found = pool.map(lambda name: record_of(step / name)["sha256"], records)
        for (name, record), sha256 in zip(records.items(), found, strict=True):
            if sha256 != record["sha256"]:
                return f"{name} has other bytes than were written"
    return ""


def find_whole_step(folder: Path) -> Path | None:
    """The step to go on with: the one that ``latest`` names, or else the newest before it that is whole.

    What is passed over is told in a warning.

    Returns:
        None if there is no step at all.
    Raises:
        InputError: if there are steps, but none is whole.
    """
    names = step_names(folder)
    if not names:
        return None
    latest = latest_step(folder)
    if latest is None:
        logger.warning("%s names no step of the folder; looking for the newest that is whole", folder / LATEST)
    end = len(names) if latest is None else names.index(latest.name) + 1
    passed: list[str] = []
    for name in (*reversed(names[:end]), *names[end:]):  # after it, one whose writer was killed before it was named
        damage = damage_of(folder / name)
        if not damage:
            if passed:
                logger.warning("%s; going on with %s, which is whole", "; ".join(passed), folder / name)
            if later := names[names.index(name) + 1 :]:
                logger.warning("%s goes on with %s; it also holds %s", folder, name, ", ".join(later))
            return folder / name
        passed.append(f"checkpoint {folder / name} is damaged: {damage}")
    raise InputError(
        f"no checkpoint of {folder} is whole ({'; '.join(passed)}); copy it again, or choose another --exp_name"
    )


def read_scores(folder: Path) -> dict[str, float]:
    """The validation score of each step that has one, by its name; none where they cannot be read."""
    try:
        return _SCORES.check(read_object(folder / SCORES), where=str(folder / SCORES), remedy="remove it")
    except InputError as err:
        if is_file(folder / SCORES):
            logger.warning("%s", err)
        return {}


def write_scores(folder: Path, scores: dict[str, float]) -> None:
    """Write what ``read_scores`` reads."""
    write_json(folder / SCORES, scores)


def best_step(folder: Path) -> Path | None:
    """The step with the highest score that is there; of equal ones the earliest."""
    scores = read_scores(folder)
    scored = [name for name in step_names(folder) if name in scores]
    return folder / max(scored, key=lambda name: scores[name]) if scored else None


def prune(folder: Path, *, keep: int) -> None:
    """Remove all steps but the last ``keep`` up to the one that ``latest`` names, and the best.

    Steps after it are of no run that goes on: a later save takes their place.
    """
    latest, best = latest_step(folder), best_step(folder)
    if latest is None:
        return
    names = step_names(folder)
    names = names[: names.index(latest.name) + 1]
    for name in names[:-keep]:
        if best is None or name != best.name:
            remove_folder(folder / name)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left of steps that they were writing; called by the owner of the folder."""
    for path in list(folder.glob(f".{_STEP}*")):
        if match := re.match(rf"\.({_STEP}[0-9]+)\.", path.name):
            remove_leftovers(folder / match[1])
    if is_folder(folder):
        for name in (LATEST, SCORES):
            remove_leftovers(folder / name)
