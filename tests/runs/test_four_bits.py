"""QLoRA by the real command lines: ``--load_in_4bit`` trains, goes on bit for bit, and merges into the 16-bit base."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import merge_lora_weights_and_save_hf_model as merge
from model.weights.tensors import read_weights
from tests.support.fork_server import ForkServer
from tests.support.launch import NUM_PROCESSES, TRAIN_FLAGS, Finished
from tests.support.tiny_world import TinyWorld
from utils.training.run_weights import read_training_weights

STATE = "ckpt_model/global_step2/state-00001-of-00001.safetensors"


class Trainings:
    """Starts runs of two updates, with a checkpoint after each."""

    def __init__(self, world: TinyWorld, forks: ForkServer, runs: Path) -> None:
        self.runs, self._world, self._forks = runs, world, forks

    def start(self, name: str, *flags: str) -> Finished:
        own = ["--epochs=2", "--steps_per_epoch=1", "--workers=0", "--lora_dropout=0.1", "--lr=0.01"]
        where = [f"--log_base_dir={self.runs}", f"--exp_name={name}"]
        return self._forks.python("train_ds.py", *self._world.arguments, *TRAIN_FLAGS, *own, *where, *flags)


@pytest.fixture(scope="module")
def trainings(tiny_world, forks, tmp_path_factory) -> Trainings:
    """With a run ``whole``, which was validated after each update."""
    trainings = Trainings(tiny_world, forks, tmp_path_factory.mktemp("runs"))
    finished = trainings.start("whole", "--load_in_4bit")
    assert finished.code == 0, finished.text
    return trainings


def test_a_run_that_is_stopped_goes_on_bit_for_bit(trainings):
    again = shutil.copytree(trainings.runs / "whole", trainings.runs / "again")
    shutil.rmtree(again / "ckpt_model/global_step2")
    (again / "ckpt_model/latest").write_text("global_step1\n", encoding="utf-8")
    finished = trainings.start("again", "--load_in_4bit")
    assert finished.code == 0, finished.text
    assert "after update 1" in finished.text
    whole, resumed = (load_file(trainings.runs / name / STATE) for name in ("whole", "again"))
    assert set(whole) == set(resumed)
    assert not [name for name in whole if ".layers." in name and "lora_" not in name and "mask_decoder" not in name]
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_it_does_not_go_on_in_16_bits(trainings):
    finished = trainings.start("whole")
    assert finished.code == 2
    (error,) = finished.errors
    assert "--load_in_4bit is False, but" in error
    assert "resume with --load_in_4bit" in error


def test_lora_is_merged_into_the_16_bit_base(trainings, tiny_world, tmp_path, capsys):
    """What LoRA is not on is the base's, bit for bit. The distance to what was trained is told."""
    weight = trainings.runs / "whole/ckpt_model"
    assert merge.main([f"--weight={weight}", f"--save_path={tmp_path / 'hf_model'}", "--precision=fp32"]) == 0
    merged, base = read_weights(tmp_path / "hf_model"), read_weights(tiny_world.llava)
    trained = read_training_weights(weight)
    for layer in ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"):
        down, up = (trained[f"base_model.model.{layer}.lora_{side}.default.weight"] for side in "AB")
        assert up.any()
        expected = base[f"{layer}.weight"] + 16 / 8 * up @ down
        assert torch.allclose(merged[f"{layer}.weight"], expected, rtol=0, atol=1e-6)
    for name in ("model.layers.0.self_attn.o_proj.weight", "model.layers.1.mlp.up_proj.weight"):
        assert torch.equal(merged[name], base[name]), name
    text = capsys.readouterr().err
    told = re.search(r"LoRA is merged into the 16-bit one: this moves logits by (\S+) and masks by (\S+) of", text)
    assert told, text
    assert all(0 < float(distance) < 0.3 for distance in told.groups())
    verified = re.findall(r"reloaded \w+ differ from the unmerged model by (\S+) ", text)
    assert len(verified) == 2
    assert all(float(difference) < 1e-4 for difference in verified)


@pytest.mark.skipif(NUM_PROCESSES < 2, reason="two processes or more")
def test_two_processes_train_on_4_bits_at_zero_0_1_and_2(tiny_world, forks, tmp_path):
    program = ("--module", "tests.support.four_bit_stages", tmp_path, *tiny_world.arguments, *TRAIN_FLAGS)
    finished = forks.python(*program, processes=2)
    assert finished.code == 0, finished.text
    assert "passed: 3 stages in 2 precisions" in finished.text
