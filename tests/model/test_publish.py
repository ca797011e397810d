"""Uploads: a repository gets the whole model and our card, and keeps a card of its own."""

from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub import constants

from model.PixelLM import PixelLMForCausalLM
from tests.model.test_hub import set_endpoint
from tests.support.hub import Hub, serve_hub

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


def assert_is_whole(hub: Hub, model: PixelLMForCausalLM) -> None:
    found = PixelLMForCausalLM.from_pretrained(NAME)
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert found.processor.to_dict() == model.processor.to_dict()


@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained"])
def test_a_pushed_model_is_whole(hub, model, tmp_path, way):
    if way == "push_to_hub":
        model.push_to_hub(NAME, token="hf_none", commit_message="mine")
    else:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/notes.txt").write_text("mine")
        (tmp_path / "out/.pixellm.json").write_text("{}")
        options = {"repo_id": NAME, "token": "hf_none", "commit_message": "mine", "private": True}
        model.save_pretrained(tmp_path / "out", push_to_hub=True, **options)
        assert {path.name for path in (tmp_path / "out").iterdir()} == {*FILES, "notes.txt", ".pixellm.json"}
        card = (tmp_path / "out/README.md").read_bytes()
        assert hub.repositories[NAME]["README.md"] == card, "not the card that transformers makes up"
    assert set(hub.repositories[NAME]) == FILES, "and nothing else of the folder"
    assert hub.commits == ["mine"]
    assert_is_whole(hub, model)


def test_a_card_of_the_repository_stays(hub, model):
    hub.repositories[NAME] = {"README.md": b"# Mine\n"}
    model.push_to_hub(NAME, token="hf_none")
    assert hub.repositories[NAME]["README.md"] == b"# Mine\n"
    assert set(hub.repositories[NAME]) == FILES


def test_a_pushed_processor_reads_back(hub, model):
    model.processor.push_to_hub(NAME, token="hf_none")
    of_model = {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    assert set(hub.repositories[NAME]) == FILES - of_model
    content = hub.repositories[NAME]["processor_config.json"]
    assert json.loads(content) == json.loads(json.dumps(model.processor.to_dict()))
