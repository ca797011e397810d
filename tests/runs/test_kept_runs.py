"""Runs that earlier versions wrote, moved to another place: each goes on, is merged, and its model answers.

Where they were made (``tests/fixtures/make.py``) is no folder of a user's, so base, tower and data are named anew, as
by somebody who moved a run to another machine.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch

import chat
import merge_lora_weights_and_save_hf_model as merge
from model.weights.tensors import read_weights
from tests.support.bad_input import refused
from tests.support.launch import TRAIN_FLAGS, Finished
from tests.support.tiny_world import TinyWorld
from utils.masks.rle import decode_rles
from utils.training.steps import MANIFEST, damage_of, latest_step, step_names, write_manifest
from utils.training.stored import WEIGHTS, read_weight_record

# Names of runs -> the merged model that was kept of each, if any.
RUNS = {"before": "", "run": "merged"}
LAYERS_WITH_LORA = ("q_proj.weight", "v_proj.weight")


@pytest.fixture(scope="module")
def base(kept_runs) -> TinyWorld:
    """What the runs started from, and their data."""
    return TinyWorld(*(kept_runs / "base" / name for name in ("llava-tiny", "clip-tiny", "dataset")))


@pytest.fixture(scope="module", params=RUNS)
def kept(kept_runs, request) -> Path:
    """The folder of a run, to be read alone."""
    return kept_runs / request.param


@pytest.fixture(scope="module")
def resumed(kept, base, forks, tmp_path_factory) -> tuple[Path, Finished]:
    """A copy of the run after one epoch more, in one process; two processes with two passes each wrote it."""
    folder = Path(shutil.copytree(kept, tmp_path_factory.mktemp("moved") / kept.name))
    own = ["--grad_accumulation_steps=4", "--out_dim=16", "--no_eval", "--epochs=2"]
    where = [f"--log_base_dir={folder.parent}", f"--exp_name={folder.name}"]
    return folder, forks.python("train_ds.py", *base.arguments, *TRAIN_FLAGS, *own, *where)


def test_it_goes_on_where_it_ended(resumed):
    folder, finished = resumed
    assert finished.code == 0, finished.text
    assert "after update 2" in finished.text
    assert "images per update, was" not in finished.text
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["update"] for record in log] == [1, 2, 3, 4]
    assert all(math.isfinite(record[part]) for record in log for part in ("total", "ce", "bce", "dice"))
    assert log[2]["total"] < log[0]["total"], "weights of update 2, not those of the base"
    assert log[2]["lr"] == pytest.approx(2e-4), "the place in the longer schedule"


def test_it_is_saved_as_runs_of_today_are(resumed, base):
    folder, _ = resumed
    assert step_names(folder / "ckpt_model") == ["global_step2", "global_step4"]
    step = latest_step(folder / "ckpt_model")
    assert step is not None
    assert (step.name, damage_of(step)) == ("global_step4", "")
    record = read_weight_record(step)
    assert record["base_place"] == str(base.llava)
    assert record["base"], "what was frozen is left to the base"


def merge_run(weight: Path, target: Path, *where: str) -> Path:
    assert merge.main([f"--weight={weight}", f"--save_path={target}", "--precision=fp32", *where]) == 0
    return target


@pytest.fixture(scope="module")
def merged(kept, base, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("merged") / kept.name
    return merge_run(kept / "ckpt_model", target, f"--version={base.llava}", f"--vision-tower={base.clip}")


def test_it_is_merged_as_it_was_then(kept, merged, kept_runs):
    found = read_weights(merged)
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
    if name := RUNS[kept.name]:
        expected = read_weights(kept_runs / name)
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            if name.endswith(LAYERS_WITH_LORA):  # a product of matrices: the last digit is the processor's
                torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)
            else:
                assert torch.equal(found[name], tensor), name


@pytest.fixture
def nowhere(kept, tmp_path) -> Path:
    """The run on a machine on which not even the folder is that it was made in."""
    folder = Path(shutil.copytree(kept, tmp_path / kept.name))
    for file in [*folder.rglob("config.json"), *folder.rglob(WEIGHTS)]:
        file.write_text(re.sub(r'"[^"]*/base/', '"/nowhere/base/', file.read_text(encoding="utf-8")), encoding="utf-8")
    for step in (folder / "ckpt_model").glob("global_step*"):
        if (step / MANIFEST).exists():
            (step / MANIFEST).unlink()
            write_manifest(step, {})
    return folder


def test_a_merge_asks_for_what_is_no_longer_there(nowhere, base, tmp_path, capsys):
    """It downloads nothing that nobody named: the defaults of both flags are hub names."""
    flags = [f"--weight={nowhere / 'ckpt_model'}", f"--save_path={tmp_path / 'hf'}", "--precision=fp32"]
    asks = "the run started from /nowhere/base/{}, which is not found; say where it is now with {}"
    step = latest_step(nowhere / "ckpt_model")
    if step is not None and (step / WEIGHTS).exists():  # frozen weights are left to the base
        refused(merge.main, flags, capsys, asks.format("llava-tiny", "--version"))
    flags += [f"--version={base.llava}"]
    refused(merge.main, flags, capsys, asks.format("clip-tiny", "--vision-tower"))
    assert merge.main([*flags, f"--vision-tower={base.clip}"]) == 0


def test_what_went_on_is_merged_without_being_told_where_its_base_is(resumed, merged, tmp_path):
    folder, _ = resumed
    found, before = read_weights(merge_run(folder / "ckpt_model", tmp_path / "hf")), read_weights(merged)
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in before.items()}
    assert not torch.equal(found["lm_head.weight"], before["lm_head.weight"])
    assert torch.equal(found["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])


def ask(model: Path, base: TinyWorld, folder: Path, *flags: str) -> dict:
    """One question by the chat command; the answer's JSON."""
    photo = next(path for path in sorted(base.dataset.rglob("*.jpg")))
    own = [f"--image={photo}", "--prompt=What is the thing?", f"--output_json={folder / 'answer.json'}"]
    limits = [f"--vis_save_path={folder / 'vis'}", "--precision=fp32", "--max_new_tokens=20"]
    assert chat.main([f"--version={model}", *own, *limits, *flags]) == 0
    return json.loads((folder / "answer.json").read_text(encoding="utf-8"))


def test_its_model_answers(merged, base, tmp_path):
    reply = ask(merged, base, tmp_path)
    assert reply["prompt"] == "What is the thing?"
    assert reply["targets"] or reply["reason"]
    codes = [target["segmentation"] for target in reply["targets"]]
    assert len(list((tmp_path / "vis").glob("*_mask_*.jpg"))) == len(codes)
    if codes:
        assert len(decode_rles(codes, hw=tuple(codes[0]["size"]))) == len(codes)


@pytest.mark.parametrize("name", sorted(filter(None, RUNS.values())))
def test_a_model_that_was_merged_then_answers(kept_runs, base, tmp_path, name):
    reply = ask(kept_runs / name, base, tmp_path, f"--vision-tower={base.clip}")
    assert reply["targets"] or reply["reason"]
