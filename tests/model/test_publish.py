"""Uploads of a model, and of a processor alone, read back whole; the card is test_hub.py's."""

from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub import constants

from model.PixelLM import PixelLMForCausalLM
from tests.model.test_hub import set_endpoint
from tests.support.hub import serve_hub

NAME = "somebody/model"
FILES = {
    "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
    "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve_hub({}) as served:
        set_endpoint(monkeypatch, served.address)
        yield served


@pytest.fixture(scope="module")
def model(parrot) -> PixelLMForCausalLM:
    return PixelLMForCausalLM.from_pretrained(parrot)


def test_a_pushed_model_is_whole(hub, model):
    model.push_to_hub(NAME, token="hf_none", commit_message="mine")
    assert set(hub.repositories[NAME]) >= FILES
    found = PixelLMForCausalLM.from_pretrained(NAME)
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert found.processor.to_dict() == model.processor.to_dict()


def test_a_pushed_processor_leaves_the_card_alone(hub, model):
    hub.repositories[NAME] = {"README.md": b"# Mine\n"}
    model.processor.push_to_hub(NAME, token="hf_none")
    assert hub.repositories[NAME]["README.md"] == b"# Mine\n"
    assert set(hub.repositories[NAME]) == FILES - {"config.json", "generation_config.json", "model.safetensors"}
    content = json.loads(hub.repositories[NAME]["processor_config.json"])
    assert content == json.loads(json.dumps(model.processor.to_dict()))
