"""Files of tensors, read without ever running code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import TypedDict

from model.errors import InputError
from model.files import read_object
from model.values import Schema, shorten


class ShardIndex(TypedDict):
    """What is read of an ``*.index.json``."""

    weight_map: dict[str, str]


_INDEX = Schema(ShardIndex)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of one file, or of all shards of a folder. Files are never allowed to run code.

    Args:
        path: a .safetensors or .bin file, or a folder with one file, or shards and their index.
    Raises:
        InputError: if a file is missing, damaged, or holds anything but tensors.
    """
    files = [path] if path.is_file() else _weight_files(path)
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                state |= load_file(file)
            else:
                state |= _tensors(torch.load(file, map_location="cpu", weights_only=True))
        except (SafetensorError, RuntimeError, EOFError, TypeError, ValueError, OSError, KeyError) as err:
            raise _unreadable(file, err) from err
        except Exception as err:  # pickle.UnpicklingError and its relatives: not tensors, or not only tensors
            raise _unreadable(file, err) from err
    return state


def _tensors(content: Any) -> dict[str, Tensor]:
    """What a .bin holds, known to be tensors by name.

    Raises:
        TypeError: if it is anything else.
    """
    if not isinstance(content, dict):
        raise TypeError(f"it holds a {type(content).__name__}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TypeError(f"it holds a {type(tensor).__name__} under {shorten(name)}")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise TypeError(f"{shorten(name)} has no plain numbers")
    return content


def _unreadable(file: Path, err: Exception) -> InputError:
    reason = str(err).splitlines()[0] if str(err) else type(err).__name__
    return InputError(f"weights {file} cannot be read ({reason}); expected tensors only. Copy the file again.")


def _weight_files(folder: Path) -> list[Path]:
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            found = _INDEX.check(read_object(index), where=str(index), remedy="Copy it again from its source")
            names = sorted(set(found["weight_map"].values()))
            beside = os.listdir(folder)  # a name with a path in it is none of them
            missing = [name for name in names if name not in beside]
            if missing:
                raise InputError(
                    f"{folder} lacks {len(missing)} of {len(names)} shards, first {missing[0][:200]}; copy them"
                )
            return [folder / name for name in names]
        if (folder / f"{stem}.{suffix}").is_file():
            return [folder / f"{stem}.{suffix}"]
    raise InputError(
        f"no weights in {folder}: expected model.safetensors or pytorch_model.bin (or their shards with an index)"
    )


def check_matrix(state: dict[str, Tensor], name: str, *, where: str, columns: int | None = None) -> None:
    """Hold one weight to (rows, ``columns``) floating-point numbers.

    Raises:
        InputError: if it is missing, or anything else.
    """
    if name not in state:
        raise InputError(f"{where}: no {name} in its weights")
    shape, dtype = tuple(state[name].shape), state[name].dtype
    if len(shape) != 2 or 0 in shape or not dtype.is_floating_point or columns not in (None, shape[1]):
        raise InputError(
            f"{where}: {name} is {dtype} of shape {shape}; expected floating-point numbers of shape (rows, "
            f"{columns or 'columns'})"
        )


def own_storage(tensor: Tensor) -> Tensor:
    """safetensors refuses slices of a larger storage, which is what ``zero_to_fp32.py`` writes."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
