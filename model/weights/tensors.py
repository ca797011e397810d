"""Files of tensors, read without ever running code."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.errors import InputError
from model.files import is_file, read_shard_names
from model.values import shorten

# What transformers writes for a model of one file, or of several.
_SAVED_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of one file, or of all shards of a folder. Files are never allowed to run code.

    The tensors lie in the files until they are computed with, so several processes share one copy.

    Args:
        path: a .safetensors or .bin file, or a folder with one file, or shards and their index.
    Raises:
        InputError: if a file is missing, damaged, or holds anything but tensors.
    """
    files = [path] if is_file(path) else _weight_files(path)
    state: dict[str, Tensor] = {}
    for file in files:
        state |= _read_file(file)
    return state


class StoredTensors(Mapping[str, Path]):
    """The weights of a folder by their names, each with the file it is in; tensors are read one at a time.

    Only the file that was read last stays open. Ask in the order of iteration, which goes file by file.

    Raises:
        InputError: as ``read_weights``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: tuple[Path, dict[str, Tensor]] | None = None
        self._meta: dict[str, tuple[Path, Tensor]] = {}
        for file in _weight_files(folder):
            self._meta |= {name: (file, tensor.to("meta")) for name, tensor in self._tensors(file).items()}

    def __getitem__(self, name: str) -> Path:
        return self._meta[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._meta)

    def __len__(self) -> int:
        return len(self._meta)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._meta[name][1].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._meta[name][1].dtype

    def read(self, name: str) -> Tensor:
        """A tensor; it lies in the file until it is computed with."""
        return self._tensors(self[name])[name]

    def _tensors(self, file: Path) -> dict[str, Tensor]:
        if self._open is None or self._open[0] != file:
            self._open = None  # let go of it before the next one is opened
            self._open = file, _read_file(file)
        return self._open[1]


def _read_file(file: Path) -> dict[str, Tensor]:
    """Tensors of one file, mapped into memory; old .bin files, which cannot be mapped, are read."""
    try:
        if not is_file(file):
            raise FileNotFoundError("it is not a file")
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
        return _check_content(content)
    except Exception as err:  # damaged, not a file of tensors, or not only tensors
        raise _unreadable(file, err) from err


def _check_content(content: Any) -> dict[str, Tensor]:
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
        if is_file(index):
            names = read_shard_names(index)
            beside = os.listdir(folder)  # a name with a path in it is none of them
            missing = [name for name in names if name not in beside]
            if missing:
                raise InputError(
                    f"{folder} lacks {len(missing)} of {len(names)} shards, first {missing[0][:200]}; copy them"
                )
            return [folder / name for name in names]
        if is_file(folder / f"{stem}.{suffix}"):
            return [folder / f"{stem}.{suffix}"]
    raise InputError(
        f"no weights in {folder}: expected model.safetensors or pytorch_model.bin (or their shards with an index)"
    )


def is_saved_weights(name: str) -> bool:
    """Whether a ``save_pretrained`` writes weights, or the index of several files, under this name.

    What an earlier one left must not stay beside those of another number of files: an index is read first.
    """
    return _SAVED_WEIGHTS.fullmatch(name) is not None


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
