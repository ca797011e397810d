"""One step of a checkpoint, written and read: tensors in pieces, and what else a run needs to go on.

Tensors are safetensors files, the rest is JSON: nothing in a step can run code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import pydantic
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from model.errors import InputError
from model.files import is_file, read_object, write_json
from model.outputs import sync
from model.values import Count, Finite, NonNegative, NonNegativeInt, Schema, first_problem, shorten
from utils.cli.config import Precision

from .parts import FROZEN, MASTER, Piece

PROGRESS, WEIGHTS = "progress.json", "weights.json"
_PART = re.compile(r"state-\d{5}-of-(?P<total>\d{5})\.safetensors")
_KEY = re.compile(r"(?P<kind>\w+)/(?P<start>\d{1,15})/(?P<name>.+)")
_RANDOM = "random"  # kind of a random state; its name is a device and the number of a process
_REMEDY = "copy the checkpoint again, or take another"


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(strict=True))
class Progress:
    """Where a run stands, beside its tensors.

    Attributes:
        update: updates done.
        images_per_update: of all processes together.
        samples: drawn by all of them: the place in the stream.
        processes: that wrote the checkpoint.
        optimizer_steps: updates that the optimizer has made of them.
        schedule_steps: steps of the learning-rate schedule.
        loss_scale: state of fp16's loss scale; empty in other precisions.
        seconds: that all updates took together.
        scores: validation score of the steps before this one.
    """

    update: NonNegativeInt
    images_per_update: Count
    samples: NonNegativeInt
    processes: Count
    optimizer_steps: NonNegativeInt
    schedule_steps: NonNegativeInt
    loss_scale: dict[str, Finite] = field(default_factory=dict)
    seconds: NonNegative = 0.0
    scores: dict[str, Finite] = field(default_factory=dict)


class WeightRecord(TypedDict):
    """Which weights a step has, and which it takes from what the run started from.

    Attributes:
        trained, frozen: name -> shape of what is in the step.
        base: name -> fingerprint of what is taken from the base, which is equal to it bit for bit.
        base_place: hub name or absolute folder of the base.
        precision: of training; weights from the base were cast to it.
    """

    trained: dict[str, list[NonNegativeInt]]
    frozen: dict[str, list[NonNegativeInt]]
    base: dict[str, str]
    base_place: str
    precision: Precision


_WEIGHTS = Schema(WeightRecord)


class StoredState(Protocol):
    """What a run goes on from, whoever wrote it."""

    @property
    def progress(self) -> Progress: ...

    @property
    def weights(self) -> WeightRecord: ...

    def read(self, kind: str, name: str) -> Tensor:
        """A whole tensor, on the CPU."""
        ...

    def random_state(self, name: str) -> Tensor | None:
        """A process's random state of that name."""
        ...


class NotFinite(InputError):
    """A weight or a moment is not a number, or infinite."""


def part_name(number: int, total: int) -> str:
    """The file of one process."""
    return f"state-{number:05d}-of-{total:05d}.safetensors"


def is_part(name: str) -> bool:
    """Whether a file is named as that of a process is."""
    return _PART.fullmatch(name) is not None


def names_of_whole(names: Iterable[str]) -> list[str]:
    """The files that a whole step has at least, if it has any of these; each part says how many there are."""
    totals = {int(match["total"]) for name in names if (match := _PART.fullmatch(name))} or {1}
    return [PROGRESS, WEIGHTS, *(part_name(number + 1, total) for total in sorted(totals) for number in range(total))]


def write_part(file: Path, pieces: Iterable[Piece], random_states: dict[str, Tensor]) -> None:
    """Write what one process holds.

    Raises:
        NotFinite: if a value is not.
    """
    tensors = {}
    for piece in pieces:
        if not bool(torch.isfinite(piece.values).all()):
            what = "weight" if piece.kind in (MASTER, FROZEN) else f"optimizer state {piece.kind} of"
            raise NotFinite(f"{what} {piece.name} is not finite")
        tensors[f"{piece.kind}/{piece.start}/{piece.name}"] = piece.values.detach().to("cpu", copy=True)
    for name, state in random_states.items():
        tensors[f"{_RANDOM}/0/{name}"] = state.cpu()
    save_file(tensors, file)
    sync(file)  # here, as only the machine that wrote it can


def write_records(step: Path, progress: Progress, weights: WeightRecord) -> None:
    """Write what is not a tensor."""
    write_json(step / PROGRESS, asdict(progress))
    write_json(step / WEIGHTS, weights)


def read_weight_record(folder: Path) -> WeightRecord:
    """Of a step, or of a run directory, which has a copy of the last one's.

    Raises:
        InputError: if it is missing or damaged.
    """
    return _WEIGHTS.check(read_object(folder / WEIGHTS, remedy=_REMEDY), where=str(folder / WEIGHTS), remedy=_REMEDY)


class StoredStep:
    """A step that this code wrote. Tensors lie in its files until they are asked for.

    Raises:
        InputError: if a file is missing or damaged.
    """

    def __init__(self, step: Path) -> None:
        self.folder = step
        self.progress = _read_progress(step / PROGRESS)
        self.weights = read_weight_record(step)

    @cached_property
    def _places(self) -> dict[tuple[str, str], list[tuple[int, Any, str]]]:
        """(kind, name) -> of each piece: where it begins, the open file, its key."""
        places: dict[tuple[str, str], list[tuple[int, Any, str]]] = {}
        for number in range(self.progress.processes):
            path = self.folder / part_name(number + 1, self.progress.processes)
            if not is_file(path):
                raise InputError(f"{path} does not exist; {_REMEDY}")
            try:
                file = safe_open(path, "pt")
            except (SafetensorError, OSError) as err:
                raise InputError(f"{path} cannot be read ({err}); {_REMEDY}") from err
            for key in file.keys():  # noqa: SIM118 - not a dictionary
                if not (match := _KEY.fullmatch(key)):
                    raise InputError(f"{path} has {shorten(key)}, which is no piece of a weight; {_REMEDY}")
                places.setdefault((match["kind"], match["name"]), []).append((int(match["start"]), file, key))
        return places

    def read(self, kind: str, name: str) -> Tensor:
        """As of ``StoredState``.

        Raises:
            InputError: if the step lacks it, or a part of it.
        """
        shape = self.weights["frozen" if kind == FROZEN else "trained"].get(name)
        pieces = sorted(self._places.get((kind, name), []), key=lambda piece: piece[0])
        if shape is None or not pieces:
            raise InputError(f"checkpoint {self.folder} has no {kind} of {name}; {_REMEDY}")
        stretches = [(start, file.get_tensor(key).flatten()) for start, file, key in pieces]
        size, end = torch.Size(shape).numel(), 0
        for start, values in stretches:
            if start <= end:  # otherwise something before it is missing
                end = max(end, start + len(values))
        if end != size:
            raise InputError(f"checkpoint {self.folder} has {end} of {size} elements of {kind} {name}; {_REMEDY}")
        if len(stretches) == 1:
            return stretches[0][1].view(shape)
        flat = torch.empty(size, dtype=stretches[0][1].dtype)
        for start, values in stretches:
            flat[start : start + len(values)] = values
        return flat.view(shape)

    def random_state(self, name: str) -> Tensor | None:
        for _, file, key in self._places.get((_RANDOM, name), []):
            return file.get_tensor(key)
        return None


def _read_progress(file: Path) -> Progress:
    try:
        return Progress(**read_object(file, remedy=_REMEDY))
    except pydantic.ValidationError as err:
        raise InputError(f"{file}: {' '.join(first_problem(err))}. {_REMEDY}") from err
