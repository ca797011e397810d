"""What DeepSpeed is told beside the file of ``--deepspeed_config``, and what is refused before a weight is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.errors import InputError
from utils.cli.config import RunConfig
from utils.training.deepspeed_config import deepspeed_settings

OFFLOAD = {"offload_optimizer": {"device": "cpu"}}


def settings(folder: Path, zero: dict[str, Any], *, sums: str = "bf16", **flags: Any) -> dict[str, Any]:
    file = folder / "zero.json"
    content = {"gradient_clipping": 1.0, "zero_optimization": zero, "data_types": {"grad_accum_dtype": sums}}
    file.write_text(json.dumps(content), encoding="utf-8")
    return deepspeed_settings(RunConfig(deepspeed_config=str(file), **flags))


@pytest.mark.parametrize("zero", [OFFLOAD, {"cpu_offload": True}], ids=["section", "old spelling"])
def test_offload_takes_the_optimizer_of_the_run(tmp_path, zero):
    assert settings(tmp_path, {"stage": 2, **zero})["zero_force_ds_cpu_optimizer"] is False


@pytest.mark.parametrize("zero", [{}, {"offload_optimizer": {"device": "none"}}, {"offload_optimizer": None}])
def test_without_offload_nothing_is_said_about_it(tmp_path, zero):
    assert "zero_force_ds_cpu_optimizer" not in settings(tmp_path, {"stage": 2, **zero}, optimizer="muon")


def test_muon_gets_whole_gradients_at_stage_3(tmp_path):
    told = settings(tmp_path, {"stage": 3, "reduce_scatter": True}, optimizer="muon")
    assert told["zero_optimization"]["reduce_scatter"] is False
    assert told["gradient_clipping"] == 0.0
    for stage, optimizer in ((3, "adamw"), (2, "muon")):
        told = settings(tmp_path, {"stage": stage, "reduce_scatter": True}, optimizer=optimizer)
        assert told["zero_optimization"]["reduce_scatter"] is True


def test_sums_in_float32_are_muons_at_other_stages_and_adamws(tmp_path):
    for stage, optimizer, precision in ((2, "muon", "bf16"), (1, "adamw", "bf16"), (1, "muon", "fp32")):
        settings(tmp_path, {"stage": stage}, sums="fp32", optimizer=optimizer, precision=precision)


@pytest.mark.parametrize(
    ("zero", "flags", "says"),
    [
        ({"stage": 2, **OFFLOAD}, {"optimizer": "muon"}, "--optimizer muon .* offloaded .*zero.json.*; use"),
        ({"stage": 0, **OFFLOAD}, {}, "zero.json offloads the optimizer at ZeRO stage 0.*; set stage 1, 2 or 3"),
        (OFFLOAD, {}, "at ZeRO stage 0"),
        ({"stage": 1}, {"optimizer": "muon", "precision": "bf16", "sums": "fp32"}, "would train with plain gradients"),
        ({"stage": 4}, {}, "zero.json: zero_optimization.stage is 4; expected"),
        ({"stage": "2"}, {}, "zero.json: zero_optimization.stage is '2'; expected"),
        ({"stage": 2, "offload_optimizer": {"device": "disk"}}, {}, "device is 'disk'; expected"),
        ([], {}, "zero_optimization is .*; expected"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_in_one_line(tmp_path, zero, flags, says):
    with pytest.raises(InputError, match=says) as refused:
        settings(tmp_path, zero, **flags)
    assert "\n" not in str(refused.value)


def test_every_shipped_file_is_taken(repository):
    files = sorted((repository / "configs").glob("ds_*.json"))
    stages = {
        file.stem: deepspeed_settings(RunConfig(deepspeed_config=str(file)))["zero_optimization"]["stage"]
        for file in files
    }
    assert stages == {"ds_one_gpu": 2, "ds_zero2": 2, "ds_zero2_offload": 2, "ds_zero3": 3}
