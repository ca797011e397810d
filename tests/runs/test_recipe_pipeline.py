"""A run by the release's recipe, merged, and a second run that starts from it: by the real command lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import merge_lora_weights_and_save_hf_model as merge
from model.files import read_object
from model.PixelLM import PixelLMForCausalLM
from model.predictor import PixelLMPredictor
from model.recipe import RECIPE_OF_PUBLISHED_WEIGHTS
from model.weights.tensors import read_weights
from tests.support.fork_server import ForkServer
from tests.support.launch import TRAIN_FLAGS
from utils.training.run_description import RunDescription

FROZEN = ("model.image_feature_neck.", "model.prompt_encoder.no_mask_embed", "model.token_fusion.")


@dataclass(frozen=True)
class Stage:
    folder: Path
    merged: Path

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return read_weights(self.merged)


def run(start: list[str], name: str, *, forks: ForkServer, runs: Path) -> Stage:
    """One update, and its merge without the flags of the run."""
    flags = [*TRAIN_FLAGS, "--epochs=1", "--steps_per_epoch=1", "--no_eval", "--release_recipe"]
    finished = forks.python("train_ds.py", *flags, *start, f"--log_base_dir={runs}", f"--exp_name={name}")
    assert finished.code == 0, finished.text
    folder = runs / name
    arguments = [f"--weight={folder / 'ckpt_model'}", f"--save_path={folder / 'hf_model'}", "--precision=fp32"]
    assert merge.main([*arguments, "--save_vision_tower"]) == 0
    return Stage(folder, folder / "hf_model")


@pytest.fixture(scope="module")
def first(tiny_world, forks, tmp_path_factory) -> Stage:
    size = ["--resize_vision_tower", "--resize_vision_tower_size=84"]
    return run([*tiny_world.arguments, *size], "first", forks=forks, runs=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def second(first, tiny_world, forks) -> Stage:
    """From a model with its tower inside; where that came from is gone, for the run and for its merge."""
    config = first.merged / "config.json"
    config.write_text(json.dumps(read_object(config) | {"vision_tower": "gone"}))
    start = [f"--init_from={first.merged}", f"--dataset_dir={tiny_world.dataset}"]
    return run(start, "second", forks=forks, runs=first.folder.parent)


def test_run_and_merged_model_record_the_choices(first, second):
    for stage in (first, second):
        flags = RunDescription(stage.folder).read_flags()
        assert (flags.release_recipe, flags.refine_alpha, flags.trained_set) == (True, 1.0, "released")
        for folder in (stage.folder / "model_config", stage.merged):
            flat = read_object(folder / "config.json")
            assert flat["vision_position_resize"] == "released"
            assert flat["image_mean"] == pytest.approx([0.485, 0.456, 0.406])
            assert flat["recipe"].items() >= {"release_recipe": True, **RECIPE_OF_PUBLISHED_WEIGHTS}.items()


def test_a_merge_records_what_was_trained(first, second):
    before, after = (read_object(stage.merged / "config.json")["recipe"] for stage in (first, second))
    assert (before["base"], before["updates"], before["epochs"]) == ("llava-tiny", 1, 1)
    assert (after["init_from"], after["updates"], after["earlier"]) == ("first", 1, [before])
    for stage in (first, second):
        card = (stage.merged / "README.md").read_text()
        assert "llava-tiny" in card
        assert str(first.folder.parent) not in card


def test_a_merged_model_behaves_by_the_recorded_choices(first):
    config = PixelLMPredictor.from_pretrained(first.merged, device="cpu").model.config
    assert (config.image_size, config.vision_position_resize) == (84, "released")
    assert config.preprocessor.mean == pytest.approx((0.485, 0.456, 0.406))


def test_the_second_run_goes_on_where_the_first_ended(first, second):
    """What the release leaves frozen is the same in both; what is trained has moved, and by one update only."""
    before, after = first.weights, second.weights
    assert set(before) == set(after)
    frozen = [name for name in before if name.startswith(FROZEN)]
    assert len(frozen) == 8
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    for name in ("model.mask_decoder.level_embed.weight", "model.text_hidden_fcs.0.2.weight"):
        moved = (before[name] - after[name]).abs().max()
        assert 0 < moved < 1e-2, name


def test_the_second_run_keeps_the_tokens(first, second):
    before, after = (PixelLMForCausalLM.from_pretrained(stage.merged) for stage in (first, second))
    assert before.processor.tokenizer.get_vocab() == after.processor.tokenizer.get_vocab()
    assert after.load_report.initialized == after.load_report.constant == []


def test_a_merged_model_is_validated_as_it_is(first, tiny_world, forks, tmp_path):
    """Teacher-forced, by the flags of training; nothing is trained and no checkpoint is needed."""
    start = [f"--init_from={first.merged}", f"--dataset_dir={tiny_world.dataset}", "--precision=fp32", "--eval_only"]
    sets = ["--val_dataset=refcoco|unc|val", f"--log_base_dir={tmp_path}", "--exp_name=x"]
    finished = forks.python("train_ds.py", *start, *sets)
    assert finished.code == 0, finished.text
    assert "refcoco|unc|val (teacher-forced): gIoU 0." in finished.text
    assert not (tmp_path / "x/ckpt_model").exists()
