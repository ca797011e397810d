"""What a run starts from: a LLaVA base with rows for the new tokens, and a CLIP tower."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from model.errors import InputError
from model.files import read_object
from model.part_configs import clip_config, llama_config
from model.projector import build_projector
from model.weights.bases import read_base, read_tower
from model.weights.tensors import read_weights
from tests.model.test_configuration import CODEBOOK
from tests.support.tiny_data import tiny_config
from tests.support.tiny_world import CLIP, LLAMA


@pytest.fixture(scope="module")
def base_config(tiny_world):
    """Eight more rows than the tiny LLaVA has."""
    vision = clip_config(read_object(tiny_world.clip / "config.json"))
    return tiny_config(CODEBOOK, text_config=llama_config({**LLAMA, "vocab_size": 368}), vision_config=vision)


def test_a_base_grows_rows_for_the_new_tokens(tiny_world, base_config):
    torch.manual_seed(0)
    state, unused = read_base(tiny_world.llava, base_config)
    stored = read_weights(tiny_world.llava)
    assert unused == ["model.mm_projector.weight", "model.mm_projector.bias"]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(state[name][:360], stored[name])
        new = state[name][360:]
        assert new.shape == (8, LLAMA["hidden_size"])
        assert new.std() < 0.1
        assert len({tuple(row.tolist()) for row in new}) == 8, "new tokens must differ from each other"


def test_a_base_keeps_what_its_projector_computes(tiny_world, base_config):
    state, _ = read_base(tiny_world.llava, base_config)
    stored = read_weights(tiny_world.llava)
    built = build_projector(CLIP["hidden_size"], 2 * LLAMA["hidden_size"], LLAMA["hidden_size"])
    prefix = "model.mm_projector."
    built.load_state_dict({name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)})
    features = torch.randn(4, CLIP["hidden_size"])
    linear = torch.nn.functional.linear(features, stored[f"{prefix}weight"], stored[f"{prefix}bias"])
    assert torch.allclose(built(features), linear, atol=1e-5)


def test_delta_weights_are_refused(tiny_world, base_config, tmp_path):
    """They load without an error and answer with noise."""
    folder = Path(shutil.copytree(tiny_world.llava, tmp_path / "llava"))
    state = read_weights(folder)
    state["model.norm.weight"] *= 0.001
    (folder / "pytorch_model.bin").unlink()  # the weights still lie in the old file
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=rf"{folder} holds delta weights.*scripts/apply_delta\.py --base LLAMA"):
        read_base(folder, base_config)


def test_a_model_is_no_delta_whatever_its_folder_is_called(tiny_world, base_config, tmp_path):
    folder = Path(shutil.copytree(tiny_world.llava, tmp_path / "llava-delta-applied"))
    assert read_base(folder, base_config)[0]["model.norm.weight"].mean() == 1


def test_a_tower_that_is_no_tower(tiny_world, base_config):
    with pytest.raises(InputError, match=rf"vision tower {tiny_world.llava}: no embeddings.position_embedding"):
        read_tower(tiny_world.llava, base_config)


def test_a_tower_with_bare_names(tiny_world, base_config, tmp_path):
    """transformers 5 saves a CLIPVisionModel without the released prefix."""
    state = {name.removeprefix("vision_model."): t for name, t in read_weights(tiny_world.clip).items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    expected, found = read_tower(tiny_world.clip, base_config), read_tower(tmp_path, base_config)
    assert set(expected) == set(found)
    assert len(expected) > 5 + 16 * (CLIP["num_hidden_layers"] - 1)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
