"""Which parameters are trained is data, pinned here; LoRA merged is LoRA applied."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from model.errors import InputError
from tests.support.tiny_network import make_batch, make_network
from utils.training.lora import (
    PEFT_PREFIX,
    load_lora,
    lora_module_names,
    lora_rank,
    lora_targets,
    set_trained,
    split_training_state,
    wrap_lora,
)

TRAINED = Path(__file__).with_name("trained_names.txt").read_text(encoding="utf-8").split()
FROZEN_IN_THE_RELEASE = {
    "model.image_feature_neck.0.weight",
    "model.image_feature_neck.1.weight",
    "model.image_feature_neck.1.bias",
    "model.image_feature_neck.2.weight",
    "model.image_feature_neck.3.weight",
    "model.image_feature_neck.3.bias",
    "model.prompt_encoder.no_mask_embed.weight",
    "model.token_fusion.weights",
    "model.mask_decoder.scale_weights",
}
TALKS = [(0, "Which thing?", "The thing is {seg}."), (1, "What is it?", "It is human {seg}.")]


@pytest.fixture
def tiny(tiny_tokenizer_dir):
    return make_network(tiny_tokenizer_dir)


def wrapped_with_noise(network, *, names=("q_proj", "v_proj")):
    """LoRA whose B is not zero any more, as after training."""
    wrapped = wrap_lora(network, rank=4, alpha=8, dropout=0.0, names=names).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return wrapped


def trained(wrapped) -> set[str]:
    return {name.removeprefix(PEFT_PREFIX) for name, p in wrapped.named_parameters() if p.requires_grad}


def test_trained_names(tiny):
    """The golden list: LoRA on q and v, vocabulary tables, projectors, codebook projection and pixel decoder."""
    wrapped = wrap_lora(tiny[0], rank=4, alpha=8, dropout=0.0, names=["q_proj", "v_proj"])
    counts = set_trained(wrapped)
    assert trained(wrapped) == set(TRAINED)
    assert len(TRAINED) == 244
    assert set(counts) == {
        "embed_tokens", "lora", "mm_projector", "out_mm_projector", "prompt_encoder", "mask_decoder",
        "image_feature_neck", "text_hidden_fcs", "token_fusion", "lm_head",
    }  # fmt: skip
    assert sum(counts.values()) == sum(p.numel() for p in wrapped.parameters() if p.requires_grad)


def test_what_the_release_leaves_frozen(tiny):
    wrapped = wrap_lora(tiny[0], rank=4, alpha=8, dropout=0.0, names=["q_proj", "v_proj"])
    set_trained(wrapped, released_set=True)
    assert trained(wrapped) == set(TRAINED) - FROZEN_IN_THE_RELEASE


def test_the_released_set_is_the_recorded_one(shared):
    """The recording lists gradients, and no loss reads the head that predicts IoUs."""
    recorded = json.loads((shared / "golden/pixellm-tiny/train_step.json").read_text(encoding="utf-8"))["grad_norms"]
    ours = set(TRAINED) - FROZEN_IN_THE_RELEASE
    unread = {name for name in ours if ".iou_prediction_head." in name}
    assert {name.removeprefix(PEFT_PREFIX) for name in recorded} == ours - unread
    assert len(unread) == 6


def test_no_train_mask_decoder(tiny):
    wrapped = wrap_lora(tiny[0], rank=4, alpha=8, dropout=0.0, names=["q_proj", "v_proj"])
    set_trained(wrapped, train_mask_decoder=False)
    assert trained(wrapped) == {name for name in TRAINED if ".mask_decoder." not in name}


def test_the_tower_and_the_base_weights_stay_frozen():
    assert not [name for name in TRAINED if "vision_tower" in name]
    layers = [name for name in TRAINED if ".layers." in name and "mask_decoder" not in name]
    assert len(layers) == 4 * 2 * 2
    assert all(".lora_" in name for name in layers)


def test_lora_is_on_the_language_model_only(tiny):
    """The pixel decoder and CLIP have layers called q_proj and v_proj too."""
    targets = lora_targets(tiny[0], ["q_proj", "v_proj"])
    assert targets == [f"model.layers.{i}.self_attn.{name}_proj" for i in range(4) for name in "qv"]


def test_an_unknown_layer_name_lists_the_known_ones(tiny):
    with pytest.raises(InputError, match=r"--lora_target_modules names query, .*q_proj, k_proj"):
        lora_targets(tiny[0], ["q_proj", "query"])


@pytest.mark.parametrize("names", [("q_proj", "v_proj"), ("q_proj", "k_proj", "o_proj", "gate_proj", "down_proj")])
def test_merged_is_unmerged(tiny, names):
    network, tokenizer = tiny
    plain = copy.deepcopy(network)
    batch = make_batch(network, tokenizer, TALKS)
    wrapped = wrapped_with_noise(network, names=names)
    with torch.no_grad():
        expected = network(**batch.inputs())
        merged = wrapped.merge_and_unload()
        found, without = merged(**batch.inputs()), plain(**batch.inputs())
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    assert torch.allclose(found.last_hidden_state, expected.last_hidden_state, atol=1e-5)
    for masks, reference in zip(found.mask_logits, expected.mask_logits, strict=True):
        assert torch.allclose(masks, reference, atol=1e-4)
    assert not torch.allclose(found.last_hidden_state, without.last_hidden_state, atol=1e-3), "the noise does something"


def test_training_weights_are_split_and_put_back(tiny, tiny_tokenizer_dir):
    wrapped = wrapped_with_noise(tiny[0])
    base, lora = split_training_state(wrapped.state_dict())
    fresh, _ = make_network(tiny_tokenizer_dir, seed=1)
    assert set(base) == set(fresh.state_dict())
    assert (lora_rank(lora), lora_module_names(lora)) == (4, ["q_proj", "v_proj"])
    fresh.load_state_dict(base)
    again = wrap_lora(fresh, rank=4, alpha=8, dropout=0.0, names=["q_proj", "v_proj"])
    load_lora(again, lora)
    for name, tensor in wrapped.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("prefix", ["", "module.", PEFT_PREFIX, f"module.{PEFT_PREFIX}"])
@pytest.mark.parametrize("infix", ["", ".base_layer"])
@pytest.mark.parametrize("adapter", ["", ".default"])
def test_names_of_any_peft_version(prefix, infix, adapter):
    layer = f"{prefix}model.layers.0.self_attn.q_proj"
    state = {f"{layer}{infix}.weight": torch.zeros(1), f"{layer}.lora_A{adapter}.weight": torch.zeros(1)}
    base, lora = split_training_state(state)
    assert set(base) == {"model.layers.0.self_attn.q_proj.weight"}
    assert set(lora) == {"model.layers.0.self_attn.q_proj.lora_A.weight"}


def test_lora_weights_of_another_model_are_refused(tiny):
    wrapped = wrapped_with_noise(tiny[0])
    _, lora = split_training_state(wrapped.state_dict())
    first, *_ = lora
    missing = {name: tensor for name, tensor in lora.items() if name != first}
    with pytest.raises(InputError, match="LoRA weights do not fit the model: 1 names differ"):
        load_lora(wrapped, missing)


def test_ranks_must_agree():
    lora = {"a.lora_A.weight": torch.zeros(4, 2), "b.lora_A.weight": torch.zeros(8, 2)}
    with pytest.raises(InputError, match=r"found ranks \[4, 8\]"):
        lora_rank(lora)
