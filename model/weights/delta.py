"""A LLaVA base from LLaMA and a delta: sums of weights, read and written a few at a time.

LLaVA's makers could not give LLaMA away, so they published differences: LLaVA = LLaMA + delta for weights of the same
name and shape. Vocabulary tables are added over the rows that LLaMA has; further rows, and weights that LLaMA has no
name for, are the delta's own.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from model.errors import InputError
from model.files import read_object, write_json
from model.outputs import MARK, check_output_folder, output_folder

from .bases import FINAL_NORM, is_difference
from .checkpoint import IGNORED_SUFFIXES
from .tensors import StoredTensors

VOCABULARY_TABLES = ("model.embed_tokens.weight", "lm_head.weight")
_LLAMA_PREFIXES = ("model.layers.", FINAL_NORM, *VOCABULARY_TABLES)
_KIND = "LLaVA base"
_SUMMED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_NOT_COPIED = (MARK, ".safetensors", ".bin", ".index.json", ".md")


@dataclass(frozen=True)
class _Sum:
    """What is added: both sides, with the names that the result gets."""

    base: StoredTensors
    delta: StoredTensors
    names: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return sum(math.prod(self.delta.shape(name)) * self.delta.dtype(name).itemsize for name in self.names)


def apply_delta(base: Path, delta: Path, folder: Path, *, shard_bytes: int = 2_000_000_000) -> None:
    """Write LLaMA plus delta, in the delta's precision, complete or not at all.

    It holds one shard of the result and the weights that are being added, no more.

    Args:
        base: a LLaMA folder; delta: what LLaVA's makers published.
        folder: to be made; of those that exist, an empty one, or an earlier result, which is replaced.
        shard_bytes: largest size of a file of the result.
    Raises:
        InputError: if the two do not belong together, are swapped, or the sum is no model.
    """
    check_output_folder(folder, kind=_KIND, flag="--out", inputs=[base, delta])
    _check_configs(base, delta)
    sides = _check_weights(StoredTensors(base), StoredTensors(delta))
    check_output_folder(folder, kind=_KIND, flag="--out", size=sides.size)
    with output_folder(folder, kind=_KIND) as partial:
        _write_shards(sides, partial, shard_bytes)
        for path in sorted(delta.iterdir()):
            if path.is_file() and not path.name.endswith(_NOT_COPIED):
                shutil.copyfile(path, partial / path.name)


def _check_configs(base: Path, delta: Path) -> None:
    for flag, folder, kind in (("--base", base, "llama"), ("--delta", delta, "llava")):
        found = str(read_object(folder / "config.json").get("model_type"))
        if found.lower() != kind:
            raise InputError(
                f"{flag} {folder}: its config.json says model_type {found}, expected {kind}; --base is the original "
                "LLaMA, --delta the delta of LLaVA that was made from it"
            )


def _check_weights(base: StoredTensors, delta: StoredTensors) -> _Sum:
    """Everything that names and shapes tell, before anything is written."""
    place = f"--base {base.folder} and --delta {delta.folder} do not belong together"
    base_names = {name for name in base if not name.endswith(IGNORED_SUFFIXES)}
    names = [name for name in delta if not name.endswith(IGNORED_SUFFIXES)]
    for flag, side in (("--base", base), ("--delta", delta)):
        if FINAL_NORM not in side:
            raise InputError(f"{flag} {side.folder} has no {FINAL_NORM}; expected the weights of a language model")
        _check_numbers(side, flag)
    unused = sorted(base_names - set(names))
    absent = [name for name in names if name.startswith(_LLAMA_PREFIXES) and name not in base_names]
    if unused or absent:
        side, name = ("delta", unused[0]) if unused else ("base", absent[0])
        raise InputError(f"{place}: the {side} has no {name}; take LLaMA of the delta's size")
    for name in base_names:
        ours, theirs = base.shape(name), delta.shape(name)
        grown = name in VOCABULARY_TABLES and theirs[1:] == ours[1:] and theirs[0] >= ours[0]
        if ours != theirs and not grown:
            raise InputError(f"{place}: {name} is {ours} in the base, {theirs} in the delta; take LLaMA of its size")
    if is_difference(base.read(FINAL_NORM)):
        raise InputError(f"--base {base.folder} holds delta weights; give the original LLaMA there")
    if not is_difference(delta.read(FINAL_NORM)):
        raise InputError(f"--delta {delta.folder} holds a whole model, no delta; it can be used as it is")
    return _Sum(base, delta, tuple(names))


def _check_numbers(side: StoredTensors, flag: str) -> None:
    """Sums of whole numbers, of one byte or of complex numbers would be cut without a word."""
    for name in side:
        shape, dtype = side.shape(name), side.dtype(name)
        is_flat = name in VOCABULARY_TABLES and len(shape) != 2
        if not name.endswith(IGNORED_SUFFIXES) and (dtype not in _SUMMED or not shape or 0 in shape or is_flat):
            raise InputError(
                f"{flag} {side.folder}: {name} is {dtype} of shape {shape}; expected floating-point numbers of 16 bits "
                "or more, and rows of them in a vocabulary table. Copy it again from its source"
            )


def _write_shards(sides: _Sum, folder: Path, shard_bytes: int) -> None:
    delta = sides.delta
    shapes = {name: torch.empty(delta.shape(name), dtype=delta.dtype(name), device="meta") for name in sides.names}
    plan = split_torch_state_dict_into_shards(shapes, max_shard_size=shard_bytes)
    for file, names in plan.filename_to_tensors.items():
        save_file(dict(_added(sides, names)), folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # written readable by their owner alone
    if plan.is_sharded:
        index: dict[str, Any] = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def _added(sides: _Sum, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Name and sum; computed in float32, as the precision of the delta cannot hold every intermediate sum."""
    for name in names:
        stored = sides.delta.read(name)
        total = stored.to(torch.float32, copy=True)  # never into the file
        if name in sides.base:
            added = sides.base.read(name).float()
            total[: len(added)] += added
        result = total.to(stored.dtype)
        if not bool(result.isfinite().all()):
            raise InputError(
                f"the sum of {name} is not finite; copy --base {sides.base.folder} and --delta {sides.delta.folder} "
                "again from their sources"
            )
        if name.endswith("norm.weight") and is_difference(result):
            raise InputError(
                f"the sum of {name} is no model's: its mean size is {float(result.float().abs().mean()):.3g}, expected "
                f"about 1. --base {sides.base.folder} is not the LLaMA that the delta was made from"
            )
        yield name, result
