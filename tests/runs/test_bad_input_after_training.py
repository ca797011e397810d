"""Bad input to merge, chat and evaluation: exit code 2, one line, and no output that looks whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import chat
import merge_lora_weights_and_save_hf_model as merge
from model.weights.tensors import read_weights
from scripts import evaluate
from tests.support.bad_input import edit_json, refused
from tests.support.launch import TRAIN_FLAGS
from tests.support.tiny_data import IMAGES, draw_photo
from tests.support.tiny_world import TinyWorld, write_tower
from utils.cli.args import parse
from utils.cli.config import RunConfig
from utils.training.start import build_for_training


@pytest.fixture(scope="module")
def weights(tiny_world: TinyWorld, tmp_path_factory) -> Path:
    """What zero_to_fp32.py gives, alone in a folder, as published checkpoints come."""
    run = parse(RunConfig, [*tiny_world.arguments, *TRAIN_FLAGS], "").config
    path = tmp_path_factory.mktemp("weights") / "pytorch_model.bin"
    torch.save(build_for_training(run).wrapped.state_dict(), path)
    return path


@pytest.fixture
def refuses_to_merge(weights, world, tmp_path, capsys):
    """Merging with these changes is refused, and nothing is saved."""

    def check(*says: str, **changes: str | Path) -> None:
        flags = {"version": world.llava, "vision-tower": world.clip, "weight": weights, **changes}
        save_path = tmp_path / "out/hf_model"
        arguments = [f"--{name}={value}" for name, value in flags.items() if value != ""]
        refused(merge.main, [*arguments, f"--save_path={save_path}"], capsys, *says)
        assert not save_path.exists()
        assert not save_path.parent.exists() or not list(save_path.parent.iterdir())

    return check


def test_the_weights_merge_when_nothing_is_wrong(weights, tiny_world, tmp_path):
    flags = [f"--version={tiny_world.llava}", f"--vision-tower={tiny_world.clip}", f"--weight={weights}"]
    assert merge.main([*flags, f"--save_path={tmp_path / 'hf'}"]) == 0
    assert (tmp_path / "hf/model.safetensors").is_file()


def test_merge_without_weights(refuses_to_merge):
    refuses_to_merge("--weight is missing", "ckpt_model", weight="")


def test_merge_with_weights_that_are_not_there(refuses_to_merge):
    refuses_to_merge("--weight /nowhere.bin does not exist", weight="/nowhere.bin")


def test_merge_with_an_empty_folder(refuses_to_merge, tmp_path):
    (tmp_path / "empty").mkdir()
    refuses_to_merge(f"no weights in {tmp_path / 'empty'}", weight=tmp_path / "empty")


def test_merge_with_a_damaged_file(refuses_to_merge, weights, tmp_path):
    (tmp_path / "cut.bin").write_bytes(weights.read_bytes()[:9000])
    refuses_to_merge(f"weights {tmp_path / 'cut.bin'} cannot be read", weight=tmp_path / "cut.bin")


def test_merge_with_weights_of_something_else(refuses_to_merge, world):
    refuses_to_merge("lacks", "expected the weights of a PixelLM run", weight=world.llava / "pytorch_model.bin")


def test_merge_without_a_weight(refuses_to_merge, weights, tmp_path):
    state = read_weights(weights)
    del state["base_model.model.model.norm.weight"]
    torch.save(state, tmp_path / "w.bin")
    refuses_to_merge("weights missing: 1, first model.norm.weight", weight=tmp_path / "w.bin")


def test_merge_with_another_base(refuses_to_merge, world):
    """The release adds tokens to whatever base it is given: the rows of the codebook would be other words."""
    tokens = {f"word{number}": 360 + number for number in range(5)}
    (world.llava / "added_tokens.json").write_text(json.dumps(tokens))
    refuses_to_merge("codebook tokens cannot be", "Give the LLaVA base that the run used")


def test_merge_with_another_tower(refuses_to_merge, world):
    write_tower(world.clip, seed=5)
    refuses_to_merge("trained with another vision tower than", str(world.clip), "--save_vision_tower")


def test_merge_with_a_missing_base_or_tower(refuses_to_merge):
    refuses_to_merge("--version /nowhere/llava: no such folder", version="/nowhere/llava")
    refuses_to_merge("--vision-tower /nowhere/clip: no such folder", **{"vision-tower": "/nowhere/clip"})


def test_a_model_that_is_there_survives_a_refused_merge(weights, world, parrot, tmp_path, capsys):
    write_tower(world.clip, seed=5)
    folder = Path(shutil.copytree(parrot, tmp_path / "hf"))
    before = (folder / "model.safetensors").read_bytes()
    flags = [f"--version={world.llava}", f"--vision-tower={world.clip}", f"--weight={weights}"]
    refused(merge.main, [*flags, f"--save_path={folder}"], capsys, "another vision tower")
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.glob("*hf*")] == ["hf"]


@pytest.fixture
def folder(parrot, tmp_path) -> Path:
    """A merged model of one's own, to damage."""
    return Path(shutil.copytree(parrot, tmp_path / "hf_model"))


@pytest.fixture
def refuses_to_chat(folder, tmp_path, capsys):
    draw_photo(tmp_path / "photo.png")

    def check(*says: str | Path, **changes: str | Path) -> None:
        own = {
            "version": folder,
            "image": tmp_path / "photo.png",
            "prompt": "What?",
            "output_json": tmp_path / "a.json",
        }
        flags = {**own, "vis_save_path": tmp_path / "vis", **changes}
        refused(chat.main, [f"--{name}={value}" for name, value in flags.items()], capsys, *says)
        assert not (tmp_path / "a.json").exists()
        assert not (tmp_path / "vis").exists()

    return check


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": "/nowhere/hf"}, "/nowhere/hf: no such folder"),
        ({"image": "/nowhere.jpg"}, "image /nowhere.jpg does not exist"),
        ({"image": "", "output_json": ""}, "--image and --prompt belong together"),
        ({"prompt": "", "output_json": ""}, "--image and --prompt belong together"),
        ({"image": "", "prompt": ""}, "--output_json needs --image and --prompt"),
        ({"prompt": "thing " * 2000}, "shorten it"),
    ],
)
def test_chat_with_wrong_flags(refuses_to_chat, changes, says):
    refuses_to_chat(says, **changes)


def test_chat_about_a_file_that_is_no_image(refuses_to_chat, tmp_path):
    (tmp_path / "photo.png").write_text("not a picture")
    refuses_to_chat(f"image {tmp_path / 'photo.png'} cannot be decoded")


def test_chat_about_a_folder(refuses_to_chat, tmp_path):
    refuses_to_chat(f"image {tmp_path} ", image=tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_chat_with_damaged_files(refuses_to_chat, folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    refuses_to_chat(folder, "again")


def test_chat_with_colliding_tokens(refuses_to_chat, folder):
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {token["content"]: token for token in content["added_tokens"]}
    ids["[SEG1]"]["id"] = ids["[SEG0]"]["id"]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    refuses_to_chat(f"tokenizer {folder}: tokenizer.json gives [SEG0] the id 360", "collide")


def test_chat_with_another_token_count(refuses_to_chat, folder):
    edit_json(folder / "config.json", seg_token_num=3)
    refuses_to_chat("2 codebook ids for 1 scales x 3 tokens")


def test_chat_with_weights_of_another_model(refuses_to_chat, folder):
    edit_json(folder / "config.json", out_dim=64)
    refuses_to_chat(f"{folder} does not fit the model", "found", "expected")


@pytest.fixture
def refuses_to_evaluate(parrot, world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def check(*says: str | Path, **changes: str | Path) -> None:
        own = {"version": parrot, "dataset_dir": world.dataset, "val_dataset": "MultiReasonSeg|val"}
        flags = {**own, "output_dir": tmp_path / "eval", "max_new_tokens": 9, **changes}
        refused(evaluate.main, [f"--{name}={value}" for name, value in flags.items()], capsys, *says)
        assert not (tmp_path / "eval").exists()

    return check


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": ""}, "--version is missing"),
        ({"output_dir": ""}, "--output_dir is empty"),
        ({"version": "/nowhere/hf"}, "/nowhere/hf: no such folder"),
        ({"dataset_dir": "/nowhere"}, "--dataset_dir /nowhere is not a folder"),
        ({"val_dataset": "refcoko"}, "--benchmark: 'refcoko' is unknown"),
        ({"val_dataset": "ReasonSeg|val"}, "ReasonSeg/val does not exist, but --val_dataset ReasonSeg|val needs it"),
        ({"limit": "-1"}, "--limit is -1"),
    ],
)
def test_evaluation_with_wrong_flags(refuses_to_evaluate, changes, says):
    refuses_to_evaluate(says, **changes)


def test_evaluation_never_skips_a_missing_photo(refuses_to_evaluate, world):
    missing = world.dataset / IMAGES / "train2017/12.jpg"
    missing.unlink()
    refuses_to_evaluate("MultiReasonSeg|val/1/12.jpg: image", missing, "does not exist")


def test_evaluation_names_the_object_of_a_bad_polygon(refuses_to_evaluate, world):
    path = world.dataset / "muse/muse_val.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    records[0]["answers"][0][0]["segmentation"] = [[5, 5, 5, 5, 5, 5]]
    path.write_text(json.dumps(records), encoding="utf-8")
    refuses_to_evaluate("MultiReasonSeg|val/0/11.jpg (the cup): a polygon of 3 points encloses no area")


def test_evaluation_with_photos_of_another_size(refuses_to_evaluate, world):
    draw_photo(world.dataset / IMAGES / "train2017/11.jpg", (30, 30))
    refuses_to_evaluate("MultiReasonSeg|val/0/11.jpg: its masks are", "(30, 30)")
