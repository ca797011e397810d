"""Files and folders of weights: never run, named when damaged, written whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from model.errors import InputError
from model.outputs import atomic_folder
from model.weights.tensors import read_weights


def test_a_missing_shard_is_named(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one", "b": "two"}}))
    with pytest.raises(InputError, match=r"lacks 2 of 2 shards, first one"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd", "a/b.bin", "", ".", "..", "x" * 5000, "nul\0"])
def test_shards_lie_in_their_folder(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save({"a": torch.ones(2)}, tmp_path / "secret.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InputError, match="lacks 1 of 1 shards, first"):
        read_weights(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "weight_map is missing"),
        ({"weight_map": ["x"]}, r"weight_map is \['x'\]; expected a JSON object"),
        ({"weight_map": {"a": 3}}, "weight_map.a is 3; expected text"),
        ([], "holds a list; expected a JSON object"),
    ],
)
def test_a_damaged_index_is_named(tmp_path, index, message):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=rf"{tmp_path}/model.safetensors.index.json:? {message}"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        torch.ones(2), [torch.ones(2)], 3, {"a": {"b": torch.ones(2)}}, {"a": 1.0}, {"a": "text"}, {3: torch.ones(2)},
        {"a": torch.eye(2).to_sparse()}, {"a": torch.ones(2, device="meta")}, None,
    ],
    ids=repr,
)  # fmt: skip
def test_a_bin_of_other_things_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin cannot be read .*expected tensors only"):
        read_weights(tmp_path)


def header(**entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(16)


ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "content",
    [
        (2**63).to_bytes(8, "little") + b"{}",
        (10**8).to_bytes(8, "little") + b"{}",
        header(a=ENTRY)[:20],
        header(a=ENTRY, b=ENTRY),
        header(a=ENTRY | {"data_offsets": [0, 2**40]}),
        header(a=ENTRY | {"data_offsets": [16, 0]}),
        header(a=ENTRY | {"shape": [2**40, 2**40]}),
        header(a=ENTRY | {"shape": [-1, 2]}),
        header(a=ENTRY | {"dtype": "F99"}),
        header(a=3),
        (8).to_bytes(8, "little") + b"\xff" * 8,
    ],
)
def test_hostile_headers_are_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
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
