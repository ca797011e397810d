"""Towers and flags of their size that users mix up."""

from __future__ import annotations

import pytest

from model.configuration import PixelLMConfig
from model.text.tokens import SegCodebook
from tests.support.tiny_world import CLIP, LLAMA
from utils.cli.args import parse
from utils.cli.config import RunConfig
from utils.training.tower_guard import unusual_tower

LARGE = {"patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
         "num_attention_heads": 16}  # fmt: skip
L14_336, L14_224 = {**LARGE, "image_size": 336}, {**LARGE, "image_size": 224}
B32 = {"patch_size": 32, "image_size": 224, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
       "num_attention_heads": 12}  # fmt: skip
BASE_WIDTH = 1024


def found(flags: list[str], tower: dict[str, int], *, base_width: int | None = BASE_WIDTH) -> str:
    run = parse(RunConfig, flags, "").config
    config = PixelLMConfig.assemble(
        {**LLAMA, "vocab_size": 400},
        {**CLIP, **tower},
        SegCodebook(scales=1, tokens=1, ids=(399,)),
        vision_tower=run.vision_tower,
        image_size=run.resize_vision_tower_size if run.resize_vision_tower else tower["image_size"],
    )
    return str(unusual_tower(run, config, base_width=base_width) or "")


def preset(repository, name: str, *more: str) -> list[str]:
    return ["--config", str(repository / "configs" / name), *more]


@pytest.mark.parametrize("name", ["pixellm_7b.json", "pixellm_13b.json"])
def test_the_presets_mean_this_tower(repository, name):
    assert found(preset(repository, name), L14_336) == ""


@pytest.mark.parametrize(
    ("flags", "tower"),
    [
        ([], L14_224),
        ([], L14_336),
        (["--resize_vision_tower", "--resize_vision_tower_size=512"], L14_336),
    ],
)
def test_sizes_of_the_release(flags, tower):
    assert found(flags, tower) == ""


def test_a_tower_of_another_width_is_meant_with_a_fresh_projector():
    tiny = {**CLIP, "image_size": 168}
    assert found([], tiny, base_width=CLIP["hidden_size"]) == ""
    assert found(["--projector_init=fresh"], tiny) == ""
    assert found([], tiny, base_width=None) == "", "a base that does not say, or a merged model"


def test_the_tower_of_224_px_in_the_place_of_336(repository):
    text = found(preset(repository, "pixellm_7b.json", "--vision-tower=openai/clip-vit-large-patch14"), L14_224)
    assert "openai/clip-vit-large-patch14 is of another size" in text
    assert "learned at 224 px and are interpolated to 448 px" in text
    assert "start again with --vision-tower openai/clip-vit-large-patch14-336" in text


def test_the_tower_of_224_px_of_a_merged_model():
    flags = ["--init_from=PixelLM-7B", "--resize_vision_tower", "--resize_vision_tower_size=448"]
    assert "learned at 224 px" in found(flags, L14_224, base_width=None)


def test_a_size_without_its_switch():
    text = found(["--resize_vision_tower_size=448"], L14_336)
    assert "--resize_vision_tower_size 448 has no effect without --resize_vision_tower: the input is 336 px" in text
    assert "start again with --resize_vision_tower," in text


def test_patches_of_32_px(repository):
    text = found(preset(repository, "pixellm_7b.json"), B32)
    assert "patches are 32 px wide, so masks are drawn on a grid of 14 x 14" in text
    assert "it has 768 channels, but the projector of --version" in text
    assert "reads 1024" in text


def test_a_photo_much_smaller_than_the_tower_learned():
    assert "learned at 336 px and are interpolated to 112 px" in found(
        ["--resize_vision_tower", "--resize_vision_tower_size=112"], L14_336
    )
