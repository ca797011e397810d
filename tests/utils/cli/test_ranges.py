"""Every number that a flag takes has a range: nonsense ends in one line before anything is read."""

from __future__ import annotations

import dataclasses
import importlib
import math
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pydantic
import pytest

from model.errors import InputError
from utils.cli.args import parse
from utils.cli.config import ChatConfig, MergeConfig, RunConfig
from utils.evaluation.flags import EvaluateConfig

ROOT = Path(__file__).resolve().parents[3]
HUGE = 10**22


def settings_classes() -> list[type]:
    """Every class of flags in the repository, found where ``@settings`` is written."""
    found = []
    for folder in ("utils", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "\n@settings\n" in path.read_text(encoding="utf-8"):
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                module = importlib.import_module(name)
                found += [
                    value
                    for value in vars(module).values()
                    if isinstance(value, type) and value.__module__ == name and dataclasses.is_dataclass(value)
                ]
    return found


def numbers(hint: Any) -> list[type]:
    kinds = get_args(hint) if get_origin(hint) not in (None, Annotated) else (hint,)
    bases = [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds]
    return [base for base in bases if base in (int, float)]


NUMERIC = [
    pytest.param(hint, id=f"{cls.__name__}.{name}")
    for cls in settings_classes()
    for name, hint in get_type_hints(cls, include_extras=True).items()
    if numbers(hint)
]


def test_the_walk_finds_the_flags():
    assert {"RunConfig", "ChatConfig", "EvaluateConfig", "ToyWorldConfig", "DataOptions"} <= {
        cls.__name__ for cls in settings_classes()
    }
    assert len(NUMERIC) > 150


@pytest.mark.parametrize("hint", NUMERIC)
def test_no_flag_takes_any_number(hint):
    kind = pydantic.TypeAdapter(hint)
    nonsense = [-HUGE, HUGE] if numbers(hint) == [int] else [-1e30, math.nan, math.inf, -math.inf]
    for value in nonsense:
        with pytest.raises(pydantic.ValidationError):
            kind.validate_python(value, strict=True)


@pytest.mark.parametrize(
    ("config_type", "flag", "expected"),
    [
        (RunConfig, "--lr nan", "lr is nan; expected"),
        (RunConfig, "--lr inf", "lr is inf; expected a finite number"),
        (RunConfig, "--muon_lr nan", "muon_lr is nan; expected"),
        (RunConfig, "--lora_dropout 2", "lora_dropout is 2.0; expected less than 1"),
        (RunConfig, "--lora_dropout -1", "lora_dropout is -1.0; expected 0.0 or more"),
        (RunConfig, "--lora_alpha 0", "lora_alpha is 0; expected 1 or more"),
        (RunConfig, "--lora_r 100000", "lora_r is 100000; expected 65536 or less"),
        (RunConfig, "--out_dim 0", "out_dim is 0; expected 16 or more"),
        (RunConfig, "--out_dim -16", "out_dim is -16; expected 16 or more"),
        (RunConfig, "--image_token_grid 0", "image_token_grid is 0; expected 1 or more"),
        (RunConfig, "--image_token_grid -1", "image_token_grid is -1; expected 1 or more"),
        (RunConfig, f"--seed {HUGE}", "seed is 10000000000000000000000; expected less than 4294967296"),
        (RunConfig, "--resize_vision_tower_size 100000", "resize_vision_tower_size is 100000; expected 4096 or less"),
        (RunConfig, "--workers 1000000000", "workers is 1000000000; expected 1024 or less"),
        (RunConfig, "--beta1 2", "beta1 is 2.0; expected less than 1"),
        (RunConfig, "--beta2 -1", "beta2 is -1.0; expected 0.0 or more"),
        (RunConfig, "--warmup_steps -5", "warmup_steps is -5; expected 0 or more"),
        (RunConfig, "--bce_loss_weight=-1e30", "bce_loss_weight is -1e+30; expected 0.0 or more"),
        (RunConfig, "--seg_token_num 100000", "seg_token_num is 100000; expected 1000 or less"),
        (RunConfig, "--explanatory 7", "explanatory is 7.0; expected a share from 0 to 1, or -1"),
        (ChatConfig, "--max_new_tokens 0", "max_new_tokens is 0; expected 1 or more"),
        (ChatConfig, "--max_new_tokens -1", "max_new_tokens is -1; expected 1 or more"),
        (EvaluateConfig, "--limit -1", "limit is -1; expected 0 or more"),
        (EvaluateConfig, "--seed -1", "seed is -1; expected 0 or more"),
        (MergeConfig, "--lora_alpha 0", "lora_alpha is 0; expected 1 or more"),
    ],
)
def test_values_that_once_ran_or_ended_in_a_traceback(config_type, flag, expected):
    required = ["--version", "x"] if config_type is EvaluateConfig else []
    with pytest.raises(InputError) as caught:
        parse(config_type, [*required, *flag.split()], "")
    assert f"--{expected}" in str(caught.value)
