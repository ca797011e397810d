"""``--init_from``: a run goes on from a merged model, ours or a published one, and nothing that was trained is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from model.errors import InputError
from model.image import CLIP_MEAN, RELEASED_MEAN
from model.PixelLM import PixelLMForCausalLM
from tests.support.published import write_published
from utils.cli.args import parse
from utils.cli.config import RunConfig
from utils.training.lora import split_training_state
from utils.training.start import build_for_training, resolve_run_flags


def settle(folder: Path, *more: str) -> RunConfig:
    return resolve_run_flags(parse(RunConfig, [f"--init_from={folder}", "--precision=fp32", *more], ""))


def assert_nothing_is_new(run: RunConfig, folder: Path, **options) -> None:
    """Every weight of the folder is in the training model; LoRA is there and does nothing yet."""
    training = build_for_training(run)
    expected = PixelLMForCausalLM.from_pretrained(folder, **options)
    assert expected.load_report.initialized == []
    plain, lora = split_training_state(training.wrapped.state_dict())
    state = expected.state_dict()
    assert set(plain) == set(state)
    for name, tensor in state.items():
        assert torch.equal(plain[name], tensor), name
    ups = [tensor for name, tensor in lora.items() if ".lora_B." in name]
    assert ups
    assert not any(tensor.any() for tensor in ups)
    assert training.tokenizer.get_vocab() == expected.processor.tokenizer.get_vocab()
    assert training.config.seg_token_ids == expected.config.seg_token_ids


def test_our_own_folder(parrot):
    run = settle(parrot)
    assert (run.seg_token_num, run.image_feature_scale_num, run.out_dim) == (2, 1, 32)
    assert (run.resize_vision_tower, run.resize_vision_tower_size) == (True, 56)
    assert run.pad_train_clip_images
    assert_nothing_is_new(run, parrot)


def test_a_published_folder(shared):
    """It keeps the released behavior, although the flags of a new run say otherwise by default."""
    folder, tower = shared / "golden/pixellm-tiny/hf_model", shared / "golden/clip-vit-tiny-patch14-336"
    run = settle(folder, f"--vision-tower={tower}", "--seg_token_num=3", "--image_feature_scale_num=2")
    assert (run.resize_vision_tower_size, run.vision_position_resize) == (448, "released")
    assert (run.image_normalization, run.projector_init) == ("released", "fresh")
    assert (run.trained_set, run.refine_alpha) == ("paper", 2.0), "how to train on is for the flags to say"
    assert_nothing_is_new(run, folder, vision_tower=str(tower))
    training = build_for_training(run)
    assert training.config.image_mean == RELEASED_MEAN
    assert training.config.recipe["trained_set"] == "paper"
    assert training.config.vision_tower == str(tower.resolve())


def test_a_published_folder_and_the_release_recipe(shared):
    folder, tower = shared / "golden/pixellm-tiny/hf_model", shared / "golden/clip-vit-tiny-patch14-336"
    run = settle(folder, f"--vision-tower={tower}", "--release_recipe")
    assert (run.trained_set, run.refine_alpha, run.seg_token_num) == ("released", 1.0, 3)


def test_a_published_folder_without_padding(world):
    """It was normalized as its preprocessor file says; the recipe does not contradict that."""
    folder = world.llava.parent / "hf_model"
    write_published(folder, world, scales=1, tokens=1, pad=False)
    run = settle(folder, "--release_recipe")
    assert (run.pad_train_clip_images, run.seg_token_num) == (False, 1)
    assert run.vision_tower == str(world.clip)
    assert build_for_training(run).config.image_mean == CLIP_MEAN
    assert_nothing_is_new(run, folder)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--seg_token_num=3", r"--seg_token_num=3 contradicts --init_from .*, which was trained with seg_token_num 2"),
        ("--image_feature_scale_num=2", r"trained with image_feature_scale_num 1"),
        ("--resize_vision_tower_size=448", r"trained with resize_vision_tower_size 56"),
        ("--no_pad_train_clip_images", r"trained with pad_train_clip_images True"),
        ("--conv_type=llava_llama_2", r"trained with conv_type llava_v1"),
        ("--vision_position_resize=released", r"trained with vision_position_resize correct"),
        ("--release_recipe", r"=released contradicts .*, which was trained with vision_position_resize correct"),
    ],
)
def test_flags_that_contradict_the_model(parrot, given, message):
    with pytest.raises(InputError, match=rf"{message}; leave the flag out, or start from another model"):
        settle(parrot, given)


@pytest.mark.parametrize("place", ["model", "run/model"])
def test_a_tower_beside_the_folder_is_found(parrot, tmp_path, place):
    """Next to it, or one folder up."""
    folder = Path(shutil.copytree(parrot, tmp_path / place))
    flat = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**flat, "vision_tower": "clip", "mm_vision_tower": "clip"}))
    (tmp_path / "clip").mkdir()
    assert settle(folder).vision_tower == str(tmp_path / "clip")


def test_no_folder():
    with pytest.raises(InputError, match=r"--init_from /nowhere: no such folder"):
        settle(Path("/nowhere"))
