"""Files of tensors, read without ever running code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.errors import InputError
from model.files import read_object


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
            self._open = file, _read_file(file, in_place=True)
        return self._open[1]


def _read_file(file: Path, *, in_place: bool = False) -> dict[str, Tensor]:
    """Tensors of one file.

    Args:
        in_place: map the file into memory; old .bin files, which cannot be mapped, are read.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        mapped = in_place and is_zipfile(file)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
            raise TypeError("it holds more than tensors by their names")
    except Exception as err:  # damaged, not a file of tensors, or not only tensors
        raise _unreadable(file, err) from err
    return content


def _unreadable(file: Path, err: Exception) -> InputError:
    reason = str(err).splitlines()[0] if str(err) else type(err).__name__
    return InputError(f"weights {file} cannot be read ({reason}); expected tensors only. Copy the file again.")


def _weight_files(folder: Path) -> list[Path]:
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            names = sorted(set(read_object(index)["weight_map"].values()))
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise InputError(f"{folder} lacks {len(missing)} of {len(names)} shards, first {missing[0]}; copy them")
            return [folder / name for name in names]
        if (folder / f"{stem}.{suffix}").is_file():
            return [folder / f"{stem}.{suffix}"]
    raise InputError(
        f"no weights in {folder}: expected model.safetensors or pytorch_model.bin (or their shards with an index)"
    )


def own_storage(tensor: Tensor) -> Tensor:
    """safetensors refuses slices of a larger storage, which is what ``zero_to_fp32.py`` writes."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
