"""``--optimizer muon``: which parameters it moves, and two processes that train with it."""

from __future__ import annotations

import json
import os

import pytest

from tests.support.launch import NUM_PROCESSES, TRAIN_FLAGS
from tests.support.tiny_network import make_network
from tests.support.tiny_world import TinyWorld
from utils.cli.config import RunConfig
from utils.training.lora import set_trained, wrap_lora


def test_muon_moves_the_linear_layers_of_the_mask_side_and_nothing_else(tiny_tokenizer_dir):
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from utils.training.optimizer import make_muon

    network, _ = make_network(tiny_tokenizer_dir)
    wrapped = wrap_lora(network, rank=4, alpha=8, dropout=0.0, names=["q_proj", "v_proj"])
    set_trained(wrapped)
    adam, muon = make_muon(RunConfig(lr=0.003, muon_lr=0.02), wrapped).param_groups
    assert (muon["use_muon"], muon["lr"]) == (True, 0.02)
    assert (adam["use_muon"], adam["lr"]) == (False, 0.003)
    names = {parameter: name for name, parameter in wrapped.named_parameters()}
    trained = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    by_muon, by_adam = ({names[parameter] for parameter in group["params"]} for group in (muon, adam))
    assert by_muon | by_adam == trained
    assert not by_muon & by_adam
    assert all(parameter.ndim == 2 for parameter in muon["params"])
    for part in ("mask_decoder.transformer", "text_hidden_fcs"):
        assert any(part in name for name in by_muon), part
    pretrained, tables = ("lora_A", "lora_B", ".mm_projector"), ("embed_tokens", "lm_head", "mask_tokens", "iou_token")
    for part in (*pretrained, *tables, "level_embed", "image_feature_neck"):
        assert any(part in name for name in by_adam), part
        assert not any(part in name for name in by_muon), part


@pytest.mark.long
@pytest.mark.skipif(NUM_PROCESSES < 2, reason="two processes or more")
def test_two_processes_train_with_muon(tiny_world: TinyWorld, forks, tmp_path):
    flags = [*tiny_world.arguments, *TRAIN_FLAGS, f"--log_base_dir={tmp_path}", "--exp_name=run"]
    own = ["--optimizer=muon", "--lr=0.003", "--no_eval", "--epochs=1", "--steps_per_epoch=12"]
    finished = forks.python("train_ds.py", *flags, *own, processes=2)
    assert finished.code == 0, finished.text
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["update"] for record in log] == list(range(1, 13))
    first, last = (sum(record["total"] for record in part) for part in (log[:3], log[-3:]))
    assert last < 0.9 * first
