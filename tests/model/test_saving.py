"""save_pretrained: into a used folder, into its own, and where it fails."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model.errors import InputError
from model.PixelLM import PixelLMForCausalLM
from model.processor import PixelLMProcessor
from tests.support.full_disk import no_file_above
from tests.support.snapshot import snapshot
from tests.support.tiny_network import make_network


@pytest.fixture(scope="module")
def saved(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saving") / "model"
    network, tokenizer = make_network(tiny_tokenizer_dir)
    network.processor = PixelLMProcessor.of(network.config, tokenizer)
    network.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes((tiny_tokenizer_dir / "tokenizer.model").read_bytes())
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def test_a_model_is_saved_into_the_folder_that_it_was_read_from(folder: Path, saved: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "pytorch_model.bin").write_text("of an earlier model")
    for size in ("20KB", "5GB"):
        PixelLMForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size=size)
        found = {path.name for path in folder.iterdir()}
        assert ("model.safetensors" in found) != ("model.safetensors.index.json" in found)
        assert {"notes.txt", "tokenizer.model", "pytorch_model.bin"} <= found, "safetensors are read first"
        assert not [name for name in found if "partial" in name]
    state, expected = (PixelLMForCausalLM.from_pretrained(path).state_dict() for path in (folder, saved))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    PixelLMProcessor.from_pretrained(folder).save_pretrained(folder)
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("limit", [100, 10_000])
def test_a_full_disk_leaves_the_folder_as_it_was(folder: Path, limit: int) -> None:
    network = PixelLMForCausalLM.from_pretrained(folder)
    before = snapshot(folder)
    with no_file_above(limit), pytest.raises(InputError, match="make room or give another folder"):
        network.save_pretrained(folder)
    assert snapshot(folder) == before


def test_a_place_that_is_no_folder_is_refused(folder: Path) -> None:
    network = PixelLMForCausalLM.from_pretrained(folder)
    for save in (network.save_pretrained, network.processor.save_pretrained):
        with pytest.raises(InputError, match="is a file; expected a folder"):
            save(folder / "config.json")


def test_a_process_that_is_not_the_main_one_writes_nothing(folder: Path, tmp_path: Path) -> None:
    PixelLMForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()


def test_options_that_mean_nothing_here_say_what_to_give(folder: Path) -> None:
    refused: list[dict[str, Any]] = [
        {"load_in_8bit": True}, {"load_in_4bit": True}, {"variant": "fp16"}, {"state_dict": {"a": 1}}
    ]  # fmt: skip
    for option in refused:
        with pytest.raises(InputError, match=f"{next(iter(option))}: no such option; give "):
            PixelLMForCausalLM.from_pretrained(folder, **option)
    assert PixelLMForCausalLM.from_pretrained(folder, load_in_8bit=False, variant=None).processor is not None
