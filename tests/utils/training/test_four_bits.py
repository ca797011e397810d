"""``--load_in_4bit``: gradients go through a 4-bit base to LoRA, and what is kept is that of the 16-bit base."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import bitsandbytes
import pytest
import torch
from torch import Tensor

from model.errors import InputError
from model.losses import LossWeights, pixellm_loss
from model.weights.quantization import bytes_of_scales, quantized_weights
from tests.support.launch import TRAIN_FLAGS
from tests.support.tiny_network import make_batch
from utils.cli.args import parse
from utils.cli.config import RunConfig
from utils.training.base_weights import fingerprint, read_start, take_from_base
from utils.training.checkpoints import Contents
from utils.training.deepspeed_config import deepspeed_settings
from utils.training.lora import plain_name, trained_names
from utils.training.memory import MemoryNeed
from utils.training.run_description import refuse_changes
from utils.training.start import TrainingModel, build_for_training, set_checkpointing
from utils.training.stored import WeightRecord

TALKS = [(0, "Which thing?", "The thing is {seg}."), (1, "What is it?", "It is human {seg}.")]
LAYERS = 7  # linear layers of a block


def flags_of(world, *more: str) -> RunConfig:
    return parse(RunConfig, [*world.arguments, *TRAIN_FLAGS, "--load_in_4bit", *more], "").config


@pytest.fixture(scope="module")
def run(tiny_world) -> RunConfig:
    return flags_of(tiny_world)


@pytest.fixture(scope="module")
def training(run) -> TrainingModel:
    """With LoRA that does something, as after an update."""
    training = build_for_training(run)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in training.wrapped.named_parameters():
        if ".lora_B." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return training


def gradients(training: TrainingModel, *, recomputed: bool) -> dict[str, Tensor]:
    """Of every trained parameter, for one batch."""
    set_checkpointing(training.network.model, enabled=recomputed)
    batch = make_batch(training.network, training.tokenizer, TALKS)
    training.wrapped.train()
    training.wrapped.zero_grad(set_to_none=True)
    output = training.wrapped(**batch.inputs())
    pixellm_loss(output.loss, output.photo_logits, batch.masks, batch.image_index, LossWeights()).total.backward()
    return {name: p.grad for name, p in training.wrapped.named_parameters() if p.grad is not None}


def test_the_blocks_of_the_language_model_have_4_bits_and_the_rest_that_of_training(tiny_world):
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        training = build_for_training(flags_of(tiny_world, f"--precision={precision}"))
        quantized = quantized_weights(training.wrapped)
        assert len(quantized) == LAYERS * training.network.config.text_config.num_hidden_layers
        assert all(".layers." in name and "mask_decoder" not in name for name in quantized)
        for name, parameter in training.wrapped.named_parameters():
            if "lora_" not in name:  # peft's are of float32, until DeepSpeed casts them
                assert parameter.dtype == (torch.uint8 if name in quantized else dtype), name
        layer = training.network.model.layers[0].mlp.up_proj
        assert (layer.compute_dtype, layer.weight.quant_type, layer.quant_state.nested) == (dtype, "nf4", True)


def test_gradients_are_those_of_the_weights_that_4_bits_stand_for(run, training, tiny_world):
    """So they reach LoRA, tables and decoder through all blocks, also where activations are computed again."""
    kept, recomputed = (gradients(training, recomputed=again) for again in (False, True))
    plain = build_for_training(parse(RunConfig, [*tiny_world.arguments, *TRAIN_FLAGS], "").config)
    state = dict(training.wrapped.named_parameters())
    for name, parameter in plain.wrapped.named_parameters():
        own = state[name]
        if name in quantized_weights(training.wrapped):
            own = bitsandbytes.functional.dequantize_4bit(own.data, own.quant_state)
        parameter.data = own.detach().clone()
    expected = gradients(plain, recomputed=False)
    assert {name for name in expected if "lora_" in name} == {name for name in state if "lora_" in name}
    assert set(kept) == set(recomputed) == set(expected) <= trained_names(training.wrapped)
    for name, gradient in expected.items():
        scale = max(float(gradient.abs().max()), 1e-6)
        for found in (kept, recomputed):
            assert (found[name] - gradient).abs().max() < 1e-4 * scale, name


def test_each_start_rounds_the_base_alike(run, training):
    again = dict(build_for_training(run).wrapped.named_parameters())
    for name, parameter in training.wrapped.named_parameters():
        if name in quantized_weights(training.wrapped):
            assert torch.equal(parameter.data, again[name].data), name
            own, other = (p.quant_state.as_dict(packed=True) for p in (parameter, again[name]))
            assert all(torch.equal(own[key], other[key]) for key in own), name


def test_a_validation_leaves_the_weights_as_they_are(run, monkeypatch):
    """On some CPUs, bitsandbytes would lay them out anew for it, and round their scales."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    training = build_for_training(run)
    layers = [module for module in training.wrapped.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    before = [layer.weight.data.clone() for layer in layers]
    batch = make_batch(training.network, training.tokenizer, TALKS)
    with torch.no_grad():
        training.wrapped.eval()(**batch.inputs())
    for layer, weight in zip(layers, before, strict=True):
        assert layer.weight.shape == weight.shape
        assert torch.equal(layer.weight, weight)


def test_a_checkpoint_leaves_4_bit_weights_to_the_16_bit_base(run, training):
    start = read_start(run, training.config, training.base_folder)
    base = fingerprint(training.wrapped, start, dtype=torch.float32)
    quantized = quantized_weights(training.wrapped)
    assert quantized < set(base)
    contents = Contents.of(training.wrapped, base, base_place="base", precision="fp32")
    assert not [name for name in contents.frozen if ".layers." in name], "scales are made anew, too"
    assert contents.frozen | contents.base.keys() | trained_names(training.wrapped) >= {
        name for name, _ in training.wrapped.named_parameters()
    }
    record = WeightRecord(trained={}, frozen={}, base=base, base_place="base", precision="fp32")
    taken = take_from_base(record, start, step=Path("step"), base="base")
    assert all(torch.equal(taken[name], start[plain_name(name)]) for name in quantized)
    changed = {**start, (name := plain_name(min(quantized))): start[name] * 1.001}
    with pytest.raises(InputError, match=r"1 of .* weights differ"):
        take_from_base(record, changed, step=Path("step"), base="base")


def test_memory_counts_4_bits_and_their_scales(training):
    need = MemoryNeed.of(training.wrapped, {}, world_size=1, on_gpu=False)
    layers = [module for module in training.wrapped.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    numbers = sum(layer.in_features * layer.out_features for layer in layers)
    scales = sum(map(bytes_of_scales, layers))
    others = [p for n, p in training.wrapped.named_parameters() if n not in quantized_weights(training.wrapped)]
    assert scales > numbers / 64
    assert need.device["weights"] == numbers // 2 + scales + 4 * sum(p.numel() for p in others)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--load_in_8bit",), r"--load_in_8bit is for chat and evaluation; train with --load_in_4bit"),
        (("--save_frozen",), r"--save_frozen would save weights that --load_in_4bit has rounded; leave one of them"),
    ],
)
def test_what_does_not_go_with_4_bits(tiny_world, more, says):
    with pytest.raises(InputError, match=says):
        flags_of(tiny_world, *more)


def test_zero_3_is_refused(tiny_world, tmp_path):
    for stage in range(4):
        file = tmp_path / f"{stage}.json"
        file.write_text(json.dumps({"zero_optimization": {"stage": stage}}), encoding="utf-8")
        run = flags_of(tiny_world, f"--deepspeed_config={file}")
        if stage < 3:
            deepspeed_settings(run)
            continue
        with pytest.raises(InputError, match=r"--load_in_4bit does not go with ZeRO stage 3 of .*; give stage 0, 1"):
            deepspeed_settings(run)


def test_without_bitsandbytes_it_is_one_line(run, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name))
    with pytest.raises(InputError, match=r"need the package bitsandbytes: pip install -c constraints\.txt bits"):
        build_for_training(run)


def test_a_run_keeps_its_bits(tiny_world, run):
    """Its LoRA was fitted to the rounded weights."""
    sixteen = parse(RunConfig, [*tiny_world.arguments, *TRAIN_FLAGS], "").config
    for before, now, advice in ((run, sixteen, "--load_in_4bit"), (sixteen, run, "--no_load_in_4bit")):
        with pytest.raises(InputError, match=rf"and the checkpoint's contents depend on it; resume with {advice}, or"):
            refuse_changes(before, now, checkpoint=Path("ckpt_model"))


def test_the_model_card_says_so(training):
    assert training.config.recipe["base_bits"] == 4
