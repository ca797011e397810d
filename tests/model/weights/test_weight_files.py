"""Files and folders of weights: never run, named when damaged, written whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from model.errors import InputError
from model.files import atomic_folder
from model.weights.tensors import read_weights


def test_a_missing_shard_is_named(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one", "b": "two"}}))
    with pytest.raises(InputError, match=r"lacks 2 of 2 shards, first one"):
        read_weights(tmp_path)


class Attack:
    """Unpickling it would make a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_weights_never_run_code(tmp_path, write):
    made = tmp_path / "made"
    write({"a": Attack(made)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin cannot be read .*expected tensors only"):
        read_weights(tmp_path)
    assert not made.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"damaged", b"PK\x03\x04 half a zip"])
def test_damaged_weights_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"weights {tmp_path / name} cannot be read.*Copy the file again"):
        read_weights(tmp_path)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(
        InputError, match=rf"no weights in {tmp_path}: expected model\.safetensors or pytorch_model\.bin"
    ):
        read_weights(tmp_path)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "target"
    with atomic_folder(target) as partial:
        (partial / "file").write_text("old")

    def fail() -> None:
        with atomic_folder(target) as partial:
            (partial / "file").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (target / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target], "nothing half-written is left"
    with atomic_folder(target) as partial:
        (partial / "other").write_text("new")
    assert [path.name for path in target.iterdir()] == ["other"]
    assert list(tmp_path.iterdir()) == [target]
