"""transformers' options of from_pretrained: where weights go, in which type, and what memory that takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.PixelLM import PixelLMForCausalLM
from model.weights.tensors import read_weights
from tests.support.tiny_network import make_batch, make_network

TALKS = [(0, "Which thing?", "The thing is {seg}."), (1, "What is it?", "It is human {seg}.")]


@pytest.fixture(scope="module")
def saved(tiny_tokenizer_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    make_network(tiny_tokenizer_dir)[0].save_pretrained(folder)
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_are_taken_over_without_a_copy(saved, tmp_path, suffix):
    """They lie in the file, so several processes share one copy of a model, and none of them holds two."""
    file = saved / "model.safetensors"
    if suffix == "bin":
        file = tmp_path / "pytorch_model.bin"
        torch.save(read_weights(saved), file)
    state = read_weights(file)
    config = PixelLMForCausalLM.from_pretrained(saved).config
    network = PixelLMForCausalLM.from_state(config, state, source="test")
    for name, parameter in network.named_parameters():
        assert parameter.data_ptr() == state[name].data_ptr(), name


def test_the_type_is_that_of_the_folder_unless_one_is_given(saved, tmp_path):
    network = PixelLMForCausalLM.from_pretrained(saved)
    assert network.dtype == torch.float32
    network.to(torch.bfloat16).save_pretrained(tmp_path)
    again = PixelLMForCausalLM.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    assert PixelLMForCausalLM.from_pretrained(tmp_path, dtype=torch.float16).dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_tables_keep_their_precision(saved, dtype):
    network = PixelLMForCausalLM.from_pretrained(saved, dtype=dtype)
    assert network.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize(
    "placed",
    [
        pytest.param({"device_map": "auto"}, id="auto"),
        pytest.param({"device_map": "cpu"}, id="cpu"),
        pytest.param({"device_map": "auto", "max_memory": {"cpu": 10**5}}, id="what does not fit lies on the disk"),
    ],
)
def test_where_weights_lie_changes_nothing(saved, tiny_tokenizer_dir, tmp_path, placed):
    here = PixelLMForCausalLM.from_pretrained(saved)
    placed_network = PixelLMForCausalLM.from_pretrained(saved, **placed, offload_folder=tmp_path)
    if "max_memory" in placed:
        assert "disk" in placed_network.hf_device_map.values()
    inputs = make_batch(here, here.processor.tokenizer, TALKS).inputs()
    with torch.no_grad():
        expected, found = here(**inputs), placed_network(**inputs)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    for masks, reference in zip(found.photo_logits, expected.photo_logits, strict=True):
        assert torch.equal(masks, reference)


def test_what_was_read_can_be_asked_for(saved):
    network, info = PixelLMForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert info == {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
    assert network.load_report.loaded == len(network.state_dict())
    assert not network.training
