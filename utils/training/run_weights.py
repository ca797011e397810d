"""All weights that a run trained with, from whatever was kept of them: what every merge begins with."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from math import prod
from pathlib import Path

from torch import Tensor

from model.errors import InputError
from model.files import is_file, is_folder
from model.hub import resolve_folder
from model.weights.checkpoint import holds_tower
from model.weights.tensors import read_weights

from .base_weights import read_start, take_from_base
from .checkpoints import open_step
from .parts import FROZEN, MASTER
from .run_description import RunDescription
from .steps import LATEST, damage_of, is_step, meant_step, step_names
from .stored import WEIGHTS, StoredState, WeightRecord, read_weight_record

logger = logging.getLogger(__name__)


def read_training_weights(weight: Path, *, version: str = "", vision_tower: str = "") -> dict[str, Tensor]:
    """A file, a folder of shards, a checkpoint folder or one step of it -> every weight, by the names of training.

    What a checkpoint leaves to its base is read from there, also where ``zero_to_fp32.py`` has written the rest.

    Args:
        version, vision_tower: where base and tower are, if they are no longer where the run found them.
    Raises:
        InputError: if it does not exist, is damaged, holds no weights, or the base is missing or another one.
    """
    if not is_file(weight) and not is_folder(weight):
        raise InputError(f"--weight {weight} does not exist; give pytorch_model.bin, a shard folder, or ckpt_model")
    if is_folder(weight) and (is_file(weight / LATEST) or is_step(weight) or step_names(weight)):
        step = _step_of(weight)
        logger.info("putting the checkpoint %s together", step)
        stored = open_step(step)
        return join_weights(stored) | _from_base(step, stored.weights, version=version, vision_tower=vision_tower)
    weights = read_weights(weight)
    description = RunDescription.of_weight(weight)
    if description is not None and is_file(description.folder / WEIGHTS):
        record = read_weight_record(description.folder)
        if not set(record["base"]) <= set(weights):
            base = _from_base(description.folder, record, version=version, vision_tower=vision_tower)
            return base | weights
    return weights


def estimate_size(weight: Path) -> int:
    """Bytes that all weights take in 16 bits, about; what cannot be told without a download or is damaged counts zero.

    Args:
        weight: as of ``read_training_weights``.
    """
    step = meant_step(weight)
    if step is None or not is_file(step / WEIGHTS):
        return _bytes_of_weights(step or weight) // 2  # they are of 32 bits
    with suppress(InputError):
        record = read_weight_record(step)
        shapes = [*record["trained"].values(), *record["frozen"].values()]
        base = Path(record["base_place"]) if record["base"] else None
        return 2 * sum(map(prod, shapes)) + (_bytes_of_weights(base) if base and is_folder(base) else 0)
    return 0


def _bytes_of_weights(weight: Path) -> int:
    patterns = ("*.bin", "*.safetensors", "*model_states.pt")
    files = [file for pattern in patterns for file in weight.rglob(pattern)] if is_folder(weight) else [weight]
    return sum(file.stat().st_size for file in files if is_file(file))


def join_weights(stored: StoredState) -> dict[str, Tensor]:
    """What a step holds itself: trained weights in float32, others as they were."""
    kinds = {FROZEN: stored.weights["frozen"], MASTER: stored.weights["trained"]}
    return {name: stored.read(kind, name) for kind, names in kinds.items() for name in names}


def _step_of(weight: Path) -> Path:
    """The step that is meant, known to be whole."""
    step = meant_step(weight)
    if step is None:
        found = ", ".join(step_names(weight)) or "no step at all"
        raise InputError(f"{weight / LATEST} names no step of the folder, which holds {found}; give one of them")
    if damage := damage_of(step):
        others = [step.parent / name for name in step_names(step.parent) if name != step.name]
        whole = next((other for other in reversed(others) if not damage_of(other)), None)
        advice = f"give --weight {whole}, which is whole" if whole else "copy it again"
        raise InputError(f"checkpoint {step} is damaged: {damage}; {advice}")
    return step


def _from_base(folder: Path, record: WeightRecord, *, version: str, vision_tower: str) -> dict[str, Tensor]:
    """The weights that a step leaves to its base.

    Args:
        folder: the step, or the run directory that describes it.
    """
    if not record["base"]:
        return {}
    description = RunDescription(folder)
    run = description.read_flags()
    config, _ = description.read_model()

    def read(bases: tuple[str, str], towers: tuple[str, str]) -> dict[str, Tensor]:
        base, tower = find_moved(*bases, flag="--version"), towers[0]
        if not (run.init_from and holds_tower(resolve_folder(base))):
            tower = find_moved(*towers, flag="--vision-tower")
        start = read_start(replace(run, vision_tower=tower), config, resolve_folder(base))
        return take_from_base(record, start, step=folder, base=f"{base} with {tower}")

    try:
        return read((record["base_place"], version), (config.vision_tower, vision_tower))
    except InputError:
        with suppress(InputError):  # there may be other weights now where the run found its base
            return read((version, record["base_place"]), (vision_tower, config.vision_tower))
        raise


def find_moved(place: str, given: str, *, flag: str) -> str:
    """Where a base or tower is: where the run found it, or where the user says that it is now.

    A folder that is still there comes first, and a download of what the run took from the hub last.

    Args:
        given: by the user; empty if nothing was.
    Raises:
        InputError: if it is at neither place.
    """
    is_there = is_folder(Path(place).expanduser())
    for name in filter(None, (place, given) if is_there else (given, place)):
        with suppress(InputError):
            resolve_folder(name, flag=flag)
            return name
    raise InputError(f"the run started from {place}, which is not found; say where it is now with {flag}")
