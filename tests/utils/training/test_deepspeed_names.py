"""What this code uses of DeepSpeed and torch beside their public names is there.

Most of it is looked for with ``hasattr``: where a name is given up, another branch would be taken in silence.
tests/runs/test_shards.py and tests/runs/test_gradients.py hold what these names mean.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import pytest
import torch

from utils.training import gradients, optimizer, parts, shards

# Attributes that instances have, by class.
OF_INSTANCES = {
    "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer": {
        "single_partition_of_fp32_groups", "params_in_partition", "_lazy_init_hp_params_optimizer_state",
        "optimizer", "loss_scaler", "overflow", "check_grad_overflow",
    },
    "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3": {
        "fp32_partitioned_groups_flat", "sub_group_to_group_id", "checkpoint_event_prologue",
        "checkpoint_event_epilogue", "optimizer", "loss_scaler", "overflow",
    },
    "deepspeed.runtime.bf16_optimizer.BF16_Optimizer": {
        "fp32_groups_flat_partition", "_lazy_init_hp_params_optimizer_state", "optimizer",
    },
    "deepspeed.runtime.fp16.unfused_optimizer.FP16_UnfusedOptimizer": {
        "fp16_groups", "fp32_groups", "loss_scale_config", "optimizer", "overflow",
    },
    "deepspeed.utils.tensor_fragment.tensor_fragment": {"lp_fragment_address", "hp_fragment", "optim_fragment"},
}  # fmt: skip
# Attributes that DeepSpeed gives to parameters, by the module that does.
OF_PARAMETERS = {
    "deepspeed.utils.mixed_precision_linkage": {"_hp_mapping"},
    "deepspeed.runtime.zero.partition_parameters": {"ds_tensor", "ds_numel", "ds_shape"},
}
OF_MODULES = {
    "deepspeed.ops": {"__compatible_ops__"},
    "deepspeed.runtime.zero.muon.original_muon": {"ns_compute_dtype"},
    "deepspeed.runtime.zero.muon.muon_optimizer": {"MuonWithAuxAdam"},
    "deepspeed.utils": {
        "safe_get_local_fp32_param", "safe_get_local_optimizer_state", "safe_set_local_fp32_param",
        "safe_set_local_optimizer_state",
    },
}  # fmt: skip
# What the same variables are asked for that is torch's, or ours.
PUBLIC = {"step", "zero_grad", "param_groups", "state"}


@pytest.mark.parametrize("name", OF_INSTANCES)
def test_instances_have_the_attributes(name):
    module, _, of_class = name.rpartition(".")
    found = getattr(importlib.import_module(module), of_class)
    bases = [base for base in found.__mro__ if base.__module__.startswith("deepspeed.")]
    source = "\n".join(inspect.getsource(base) for base in bases)
    is_there = {
        name for name in OF_INSTANCES[name] if hasattr(found, name) or re.search(rf"\b(self\.)?{name}\b *[:=]", source)
    }
    assert OF_INSTANCES[name] - is_there == set()


@pytest.mark.parametrize("name", OF_PARAMETERS)
def test_parameters_are_given_the_attributes(name):
    source = inspect.getsource(importlib.import_module(name))
    assert {name for name in OF_PARAMETERS[name] if not re.search(rf"\.{name} *=", source)} == set()


@pytest.mark.parametrize("name", OF_MODULES)
def test_modules_have_the_names(name):
    module = importlib.import_module(name)
    # One is made when it is first asked for, by starting compilers.
    made = set(re.findall(r'if name == "(\w+)"', inspect.getsource(module)))
    assert OF_MODULES[name] - set(vars(module)) - made == set()


def test_a_loss_scale_that_cannot_fall_any_more_is_told_in_these_words():
    from deepspeed.runtime.fp16 import loss_scaler

    assert gradients._LOWEST_SCALE in inspect.getsource(loss_scaler).replace("'\n", "")


def test_muons_zero_looks_for_the_mark():
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    for module in (stage3, stage_1_and_2):
        assert optimizer.MUON_MARK in inspect.getsource(module)


def test_muon_asks_for_the_type_that_is_replaced():
    from deepspeed.runtime.zero.muon import original_muon

    assert len(re.findall(r"\bns_compute_dtype\(", inspect.getsource(original_muon))) > 1, "defined, and called"


def test_torch_has_what_is_measured_with():
    assert callable(torch._foreach_norm)
    assert callable(torch.autograd.Variable._execution_engine.queue_callback)
    assert isinstance(torch._foreach_norm([torch.ones(2)], float("inf")), (list, tuple))


@pytest.mark.parametrize("ours", [parts, shards, gradients], ids=lambda module: module.__name__)
def test_every_name_that_is_used_is_held(ours: Any):
    source = inspect.getsource(ours)
    variables = r"(?:zero|optimizer|mapping|parameter|tensor|scaler)"
    used = set(re.findall(rf"\b{variables}\.((?:ds_)?\w+)", source))
    used |= set(re.findall(rf"(?:has|get)attr\((?:\w+\.)?{variables}, \"(\w+)\"", source))
    used |= set(re.findall(r"for name in \(([^)]*)\):\n +if hasattr", source))
    used = {name for names in used for name in re.findall(r"\w+", names)}
    of_torch = {name for name in used if hasattr(torch.nn.Parameter(torch.ones(1)), name)}
    held = set.union(*OF_INSTANCES.values(), *OF_PARAMETERS.values())
    assert used & held, "the names were looked for in the wrong place"
    assert used - held - of_torch - PUBLIC == set()
