"""The tower is CLIP, at any input size, and blind to padding."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from model.vision_tower import VisionTower, resize_position_table
from tests.support.tiny_data import tiny_config

from .test_configuration import CODEBOOK


def clip_and_tower(*, size: int = 56) -> tuple[CLIPVisionModel, VisionTower]:
    config = tiny_config(CODEBOOK, image_size=size)
    torch.manual_seed(0)
    clip = CLIPVisionModel(CLIPVisionConfig(**{**config.vision_config.to_dict(), "image_size": size})).eval()
    tower = VisionTower(config).eval()
    state = {name.removeprefix("vision_model."): tensor for name, tensor in clip.state_dict().items()}
    tower.vision_tower["vision_model"].load_state_dict(
        {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
    )
    return clip, tower


@pytest.mark.parametrize("size", [56, 84])
def test_features_are_the_hidden_states_of_clip(size):
    clip, tower = clip_and_tower(size=size)
    pixels = torch.randn(2, 3, size, size)
    found = tower(pixels, torch.full((2, 2), size))
    with torch.no_grad():
        expected = clip(pixels, output_hidden_states=True).hidden_states
    for scale, layer in enumerate((-2, -3)):
        assert torch.allclose(found[scale], expected[layer][:, 1:], atol=1e-5)


def test_what_stands_in_the_padding_does_not_matter():
    _, tower = clip_and_tower()
    pixels = torch.randn(1, 3, 56, 56)
    other = pixels.clone()
    other[:, :, 28:] = torch.randn(1, 3, 28, 56)
    valid_hw = torch.tensor([[28, 56]])
    found, again = tower(pixels, valid_hw), tower(other, valid_hw)
    shown = 2 * 4  # two rows of four patches
    assert torch.allclose(found[:, :, :shown], again[:, :, :shown], atol=1e-6)
    assert not torch.allclose(found[:, :, shown:], again[:, :, shown:], atol=1e-3)


def test_padding_of_one_image_leaves_the_others_alone():
    _, tower = clip_and_tower()
    pixels = torch.randn(2, 3, 56, 56)
    together = tower(pixels, torch.tensor([[56, 56], [56, 20]]))
    alone = tower(pixels[:1], torch.tensor([[56, 56]]))
    assert torch.allclose(together[:, :1], alone, atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 2])
def test_images_are_encoded_alike_in_any_parts(monkeypatch, at_once):
    pixels, valid_hw = torch.randn(3, 3, 56, 56), torch.tensor([[56, 56], [56, 20], [30, 56]])
    whole = clip_and_tower()[1](pixels, valid_hw)
    monkeypatch.setattr(
        "model.vision_tower._NUMBERS_ON_CPU", at_once * 17 * tiny_config(CODEBOOK).vision_config.intermediate_size
    )
    _, tower = clip_and_tower()
    assert tower._at_once_on_cpu == at_once
    assert torch.allclose(tower(pixels, valid_hw), whole, atol=1e-6)


def test_nothing_is_trained_in_the_tower():
    _, tower = clip_and_tower()
    assert not tower(torch.randn(1, 3, 56, 56), torch.tensor([[56, 56]])).requires_grad


def table(native: int, width: int = 3) -> torch.Tensor:
    """Row r holds r in every column."""
    return torch.arange(native**2 + 1.0)[:, None].expand(-1, width).clone()


@pytest.mark.parametrize("rule", ["correct", "released"])
def test_the_native_size_is_left_alone(rule):
    original = table(4)
    assert resize_position_table(original, grid=4, rule=rule) is original


@pytest.mark.parametrize("grid", [2, 6, 8])
def test_correct_keeps_the_first_row_and_interpolates_the_others(grid):
    original = table(4)
    resized = resize_position_table(original, grid=grid, rule="correct")
    assert resized.shape == (grid**2 + 1, 3)
    assert resized[0].tolist() == original[0].tolist()
    patches = resized[1:, 0].view(grid, grid)
    # The old rows hold 1 + 4 * row + column; bilinear interpolation keeps a plane a plane, up to the clamped border.
    center = ((torch.arange(grid) + 0.5) * 4 / grid - 0.5).clamp(0, 3)
    assert torch.allclose(patches, 1 + 4 * center[:, None] + center[None], atol=1e-4)


@pytest.mark.parametrize("grid", [2, 6, 8])
def test_released_takes_the_last_row_for_the_class_token(grid):
    """Published weights were trained with every patch one row off."""
    original = table(4)
    resized = resize_position_table(original, grid=grid, rule="released")
    assert resized.shape == (grid**2 + 1, 3)
    assert resized[-1].tolist() == original[-1].tolist()
    center = ((torch.arange(grid) + 0.5) * 4 / grid - 0.5).clamp(0, 3)
    assert torch.allclose(resized[:-1, 0].view(grid, grid), 4 * center[:, None] + center[None], atol=1e-4)


def test_the_precision_of_the_table_is_kept():
    assert resize_position_table(table(4).half(), grid=8, rule="correct").dtype == torch.float16
