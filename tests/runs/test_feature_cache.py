"""A run that keeps the features of the tower learns what one without them learns."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.support.launch import TRAIN_FLAGS


def logged(run: Path) -> list[dict[str, float]]:
    """What each update says of losses and data, not of time and memory."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = ("update", "lr", "masks", "tokens", "total", "ce", "bce", "dice", "refine", "gradient_norm", "drawn")
    return [{name: line[name] for name in kept} for line in lines]


def saved(run: Path) -> dict[str, torch.Tensor]:
    """Weights and moments of the last step, and the random states of each process."""
    folder = run / "ckpt_model/global_step3"
    return {
        f"{file.name}: {name}": tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def test_what_is_learned_with_kept_features_is_equal_bit_for_bit(tiny_world, forks, tmp_path):
    flags = [*TRAIN_FLAGS, *tiny_world.arguments, f"--log_base_dir={tmp_path}", "--steps_per_epoch=3", "--epochs=1"]
    flags += ["--batch_size=2", "--workers=0", "--no_eval"]
    kept = f"--cache_vision_features={tmp_path / 'kept'}"
    for name, more in (("without", []), ("with", [kept])):
        finished = forks.python("train_ds.py", *flags, f"--exp_name={name}", *more)
        assert finished.code == 0, finished.text
    assert len(list((tmp_path / "kept").glob("*/??/*.safetensors"))) > 1
    assert not list((tmp_path / "kept").glob("*/unfinished/*"))
    assert logged(tmp_path / "with") == logged(tmp_path / "without")
    expected, found = saved(tmp_path / "without"), saved(tmp_path / "with")
    assert expected
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
