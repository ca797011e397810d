"""Checkpoints that DeepSpeed wrote, for the release and for earlier versions of this code: read without running code.

They are pickles. torch's restricted unpickler reads them, and only what DeepSpeed puts there beside tensors is let
through, as records without behavior.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from model.errors import InputError
from model.files import is_file

from .parts import FROZEN, MASTER, MUON
from .stored import Progress, WeightRecord

MODEL_STATES = "mp_rank_00_model_states.pt"  # ZeRO 0, 1 and 2
_DIVIDED_MODEL_STATES = "zero_pp_rank_0_mp_rank_00_model_states.pt"  # ZeRO 3
_RANK = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_(?:model|optim)_states\.pt")
_REFUSED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


class _Record:
    """What is left of an object of DeepSpeed's: its attributes."""


_LET_THROUGH: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Record, "deepspeed.utils.tensor_fragment.fragment_address"),
    (_Record, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Record, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
]


def is_of_deepspeed(step: Path) -> bool:
    """Whether a folder holds a checkpoint that DeepSpeed wrote."""
    return is_file(step / MODEL_STATES) or is_file(step / _DIVIDED_MODEL_STATES)


def find_missing_file(step: Path) -> str:
    """What can be told of such a step's damage without reading it, in words; empty if nothing."""
    for file in sorted(step.glob("*_states.pt")):
        if not is_zipfile(file):
            return f"{file.name} is cut off or empty"
    for kind in ("optim", "model"):
        ranks = sorted(_rank_of(file) for file in step.glob(f"*zero_pp_rank_*_mp_rank_00_{kind}_states.pt"))
        missing = sorted(set(range(len(ranks))) - set(ranks))
        if missing:
            return f"the {kind} states of process {missing[0]} are missing"
    return ""


def read_file(file: Path) -> dict[str, Any]:
    """The content of one file; nothing in it can run code.

    Raises:
        InputError: if it is missing or damaged, or holds anything but data.
    """
    try:
        with torch.serialization.safe_globals(_LET_THROUGH):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except Exception as err:  # unpickling what is damaged can raise nearly anything
        if refused := _REFUSED_GLOBAL.search(str(err)):
            raise InputError(
                f"{file} was refused: it would run {refused[1]}, which no checkpoint needs. Nothing was run; "
                "do not use this folder"
            ) from err
        raise InputError(f"{file} cannot be read ({_first_line(err)}); copy the checkpoint again") from err
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a {type(content).__name__}; expected DeepSpeed's states")
    return content


class DeepSpeedStep:
    """Such a step as a ``StoredState``.

    Raises:
        InputError: if a file is missing, damaged, not a checkpoint, or holds anything but data.
    """

    def __init__(self, step: Path) -> None:
        self.folder = step
        with _damage_told(step):
            self._model_files = self._read_ranks("model") or [read_file(step / MODEL_STATES)]
            self._model = self._model_files[0]
            optim_files = self._read_ranks("optim")
            self._optim = [content["optimizer_state_dict"] for content in optim_files]
            # Without a number: ZeRO 1 with sums of gradients in float32, which is another class of DeepSpeed.
            self._stage = int(self._optim[0].get("zero_stage", 1)) if self._optim else 0
            counts = self._optim[0]["partition_count"] if self._optim else 0
            expected = max(counts) if isinstance(counts, list) else counts
            if expected != len(self._optim):
                raise InputError(f"{step} has optimizer states of {len(self._optim)} processes, not {expected}")
            self._check_parts()

    def _check_parts(self) -> None:
        """Every element is in the part of one process: a copied file has some twice and lacks others."""
        for group, shapes in enumerate(self._shapes):
            parts = [mappings[group] for content in self._optim if (mappings := content.get("param_slice_mappings"))]
            for name, shape in shapes.items() if parts else ():
                if sum(part[name].numel for part in parts if name in part) != torch.Size(shape).numel():
                    raise InputError(f"{self.folder} has optimizer states of one process under the names of two")

    @property
    def weights(self) -> WeightRecord:
        with _damage_told(self.folder):
            trained = {name: list(shape) for shapes in self._shapes for name, shape in shapes.items()}
            frozen = {name: list(tensor.shape) for name, tensor in self._undivided.items() if name not in trained}
            frozen |= {name: list(shape) for name, shape in (self._model.get("frozen_param_shapes") or {}).items()}
            return WeightRecord(trained=trained, frozen=frozen, base={}, base_place="", precision="fp32")

    @property
    def progress(self) -> Progress:
        """Raises InputError where a run cannot go on from such a checkpoint."""
        if not self._stage:
            raise InputError(
                f"{self.folder} was written without ZeRO by an older version, from which a run cannot go on; merge it, "
                "and start from the merged model with --init_from"
            )
        if "update" not in self._model:
            raise InputError(
                f"{self.folder} was not written by this code, so it does not say where its stream of samples ended; "
                "merge it, and start from the merged model with --init_from"
            )
        with _damage_told(self.folder):
            states = self._optimizer(0)["state"].values()
            scaler = getattr(self._optim[0].get("loss_scaler"), "__dict__", {})
            names = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
            return Progress(
                update=self._model["update"],
                images_per_update=self._model["images_per_update"],
                samples=self._model["update"] * self._model["images_per_update"],
                processes=len(self._optim),
                optimizer_steps=max((int(state["step"]) for state in states if "step" in state), default=0),
                schedule_steps=self._model["lr_scheduler"]["last_epoch"],
                loss_scale={name: scaler[name] for name in names if name in scaler},
            )

    def read(self, kind: str, name: str) -> Tensor:
        with _damage_told(self.folder):
            if kind == FROZEN:
                return self._frozen(name)
            for group, shapes in enumerate(self._shapes):
                if name in shapes:
                    size = torch.Size(shapes[name]).numel()
                    join = self._divided if self._stage == 3 else self._joined
                    flat = join(kind, group, name)
                    return flat[:size].view(torch.Size(shapes[name]))
        raise InputError(f"checkpoint {self.folder} has no {kind} of {name}")

    def random_state(self, name: str) -> Tensor | None:
        return None  # DeepSpeed keeps none

    @property
    def _shapes(self) -> list[Mapping[str, torch.Size]]:
        return self._model["param_shapes"] if self._stage else []

    @cached_property
    def _undivided(self) -> dict[str, Tensor]:
        """Buffers, and below stage 2 all weights. At stage 0, only the flags of the run say which were trained."""
        names = self._model["buffer_names"]
        return {name: tensor for name, tensor in self._model["module"].items() if self._stage < 2 or name in names}

    def _frozen(self, name: str) -> Tensor:
        if name in self._undivided:
            return self._undivided[name]
        shape = torch.Size(self._model["frozen_param_shapes"][name])
        parts = [content["frozen_param_fragments"][name] for content in self._model_files]
        if self._stage < 3:
            return parts[0].view(shape)
        return torch.cat([part.flatten() for part in parts])[: shape.numel()].view(shape)

    def _joined(self, kind: str, group: int, name: str) -> Tensor:
        """ZeRO 1 and 2: a group of parameters is one vector, cut into equal parts."""
        shapes = self._shapes[group]
        paddings = (self._optim[0].get("param_alignment_paddings") or {group: [0] * len(shapes)})[group]
        offset, places = 0, {}
        for (other, shape), padding in zip(shapes.items(), paddings, strict=True):
            places[other] = (offset, torch.Size(shape).numel())
            offset += places[other][1] + padding
        start, size = places[name]
        part = len(self._flats(0, MASTER)[group])
        if kind == MUON[0]:
            return self._momentum(group, name, places, part)
        ranks = range(start // part, -(-(start + size) // part))
        return torch.cat([self._flats(rank, kind)[group] for rank in ranks])[start - ranks[0] * part :]

    def _momentum(self, group: int, name: str, places: dict[str, tuple[int, int]], part: int) -> Tensor:
        """Of every matrix that a process has a part of, Muon keeps the whole momentum there."""
        rank, offset = places[name][0] // part, 0
        for other, (start, size) in places.items():
            if other == name:
                break
            if start + size > rank * part:
                offset += size
        return self._flats(rank, MUON[0])[group][offset:]

    def _divided(self, kind: str, group: int, name: str) -> Tensor:
        """ZeRO 3: each parameter of a group is cut into equal parts; those of a process lie one after the other."""
        num, offset = len(self._optim), 0
        for other, shape in self._shapes[group].items():
            part = -(-torch.Size(shape).numel() // num)
            if other == name:
                return torch.cat([self._flats(rank, kind)[group][offset : offset + part] for rank in range(num)])
            offset += part
        raise KeyError(name)

    def _flats(self, rank: int, kind: str) -> list[Tensor]:
        content = self._optim[rank]
        if kind == MASTER:
            flats = content["fp32_flat_groups" if self._stage == 3 else "single_partition_of_fp32_groups"]
            return [flat.detach() for flat in flats]
        states = self._optimizer(rank)["state"]
        nothing = torch.zeros(0)  # in the place of a group that this kind is not of
        return [states[index].get(kind, nothing) for index in sorted(states)]

    def _optimizer(self, rank: int) -> dict[str, Any]:
        content = self._optim[rank]
        return content["optimizer_state_dict" if self._stage == 3 else "base_optimizer_state"]

    def _read_ranks(self, kind: str) -> list[dict[str, Any]]:
        files = sorted(self.folder.glob(f"*zero_pp_rank_*_mp_rank_00_{kind}_states.pt"), key=_rank_of)
        return [read_file(file) for file in files]


@contextmanager
def _damage_told(step: Path) -> Iterator[None]:
    """Whatever reading a damaged checkpoint raises, as one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as err:
        raise InputError(
            f"checkpoint {step} is incomplete or damaged ({type(err).__name__}: {_first_line(err)}); copy it again, or "
            "take another"
        ) from err


def _rank_of(file: Path) -> int:
    match = _RANK.fullmatch(file.name)
    return int(match[1]) if match else -1


def _first_line(err: Exception) -> str:
    return next(iter(str(err).splitlines()), type(err).__name__)
