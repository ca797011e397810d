"""Files of tensors, read without ever running code."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
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
        try:
            if file.suffix == ".safetensors":
                state |= load_file(file)
            else:
                state |= torch.load(file, map_location="cpu", weights_only=True)
        except (SafetensorError, RuntimeError, EOFError, TypeError, ValueError, OSError, KeyError) as err:
            raise _unreadable(file, err) from err
        except Exception as err:  # pickle.UnpicklingError and its relatives: not tensors, or not only tensors
            raise _unreadable(file, err) from err
    return state


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
