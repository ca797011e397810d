"""A configuration that cannot work is refused by name, and a saved one reads back the same."""

from __future__ import annotations

import json

import pytest

from model.configuration import PixelLMConfig, feature_layers, llama_keys, vision_keys
from model.errors import InputError
from model.image import CLIP_MEAN, CLIP_STD, RELEASED_MEAN, RELEASED_STD
from model.recipe import RECIPE_OF_PUBLISHED_WEIGHTS
from model.text.tokenizer import add_codebook, load_tokenizer
from model.text.tokens import SegCodebook
from model.weights.released import released_config
from tests.support.tiny_data import tiny_config

CODEBOOK = SegCodebook(2, 3, tuple(range(360, 366)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_feature_scale_num": 0}, r"^image_feature_scale_num is 0; expected 1, 2 or 3"),
        ({"image_feature_scale_num": 4}, r"^image_feature_scale_num is 4"),
        ({"seg_token_num": 0}, r"^seg_token_num is 0; expected 1 or more"),
        ({"seg_token_num": 2}, r"6 codebook ids for 2 scales x 2 tokens"),
        ({"seg_token_ids": (1, 2, 3, 4, 5, 400)}, r"the codebook has id 400 but the vocabulary has 400 rows"),
        ({"image_size": 13}, r"^image_size is 13; expected at least .* 14"),
        ({"out_dim": 40}, r"^out_dim is 40; expected a multiple of 16"),
        ({"vision_position_resize": "new"}, r"vision_position_resize is 'new'; expected 'correct' or 'released'"),
        ({"vision_feature_layers": (-2, -6)}, r"vision feature layer -6 does not exist in a tower of 4 blocks"),
        ({"vision_feature_layers": (-2, 0)}, r"vision feature layer 0 does not exist"),
        ({"conv_type": "vicuna"}, r"conv_type 'vicuna' is unknown"),
    ],
)
def test_impossible_values_name_the_field(changes, message):
    with pytest.raises(InputError, match=message):
        tiny_config(CODEBOOK, **changes)


def test_saved_and_read_back(tmp_path):
    vision = vision_keys(tiny_config(CODEBOOK).vision)
    config = tiny_config(CODEBOOK, vision=vision, out_dim=32, separate_mm_projector=False, conv_type="llava_llama_2")
    config.save(tmp_path)
    flat = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    again = PixelLMConfig.from_dict(flat)
    again.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == flat
    assert again == config
    assert flat["architectures"] == ["PixelLMForCausalLM"]
    assert flat["hidden_size"] == config.llama["hidden_size"], "LLaMA's keys stand at the top, as the release has them"


def test_overrides_win():
    config = tiny_config(CODEBOOK)
    assert PixelLMConfig.from_dict(config.to_dict(), vision_tower="elsewhere").vision_tower == "elsewhere"


@pytest.mark.parametrize(
    ("scales", "depth", "expected"),
    [
        (1, 24, (-2,)),
        (2, 24, (-2, -11)),  # the release
        (3, 24, (-2, -11, -20)),
        (2, 12, (-2, -11)),
        (3, 12, (-2, -7, -12)),
        (3, 4, (-2, -3, -4)),
    ],
)
def test_layers_of_the_scales(scales, depth, expected):
    assert feature_layers(scales, depth=depth) == expected


def test_a_tower_too_shallow():
    with pytest.raises(InputError, match="a tower of 2 blocks is too shallow for 2 scales"):
        feature_layers(2, depth=2)


def test_a_folder_that_is_no_language_model():
    with pytest.raises(InputError, match=r"config\.json lacks vocab_size, .*expected a LLaMA or LLaVA folder"):
        llama_keys({"hidden_size": 4})


def test_tower_keys_are_found_in_a_whole_clip_too():
    vision = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "image_size": 56, "patch_size": 14}
    assert vision_keys({"vision_config": vision}) == vision_keys(vision)
    assert vision_keys(vision)["num_hidden_layers"] == 3


def test_values_that_contradict_each_other():
    with pytest.raises(InputError, match=r"vision tower.*config\.json.*\(16\) is not a multiple of .*\(3\)"):
        vision_keys({"hidden_size": 16, "num_attention_heads": 3})
    with pytest.raises(InputError, match=r"language model.*config\.json.*not a multiple"):
        tiny_config(CODEBOOK, llama={**tiny_config(CODEBOOK).llama, "num_attention_heads": 3}).llama_config()


@pytest.fixture
def released(tiny_tokenizer_dir, tmp_path):
    """The configuration of a published folder whose tower has 12 blocks; other arguments change its config.json."""
    tower = {**tiny_config(CODEBOOK).vision, "num_hidden_layers": 12}
    (tmp_path / "config.json").write_text(json.dumps(tower), encoding="utf-8")
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    add_codebook(tokenizer, scales=2, tokens=3)

    def read(**changes) -> PixelLMConfig:
        flat = {**tiny_config(CODEBOOK).llama, "vocab_size": 400, "image_feature_scale_num": 2, **changes}
        return released_config(flat, tokenizer, folder=tmp_path, tower=str(tmp_path), conv_type="llava_v1")

    return read


def test_published_folders_keep_the_released_behaviour(released):
    config = released(resize_vision_tower=True, resize_vision_tower_size=84, pad_train_clip_images=True)
    assert (config.image_size, config.seg_token_num) == (84, 3)
    assert config.vision_position_resize == "released"
    assert (config.image_mean, config.image_std) == (RELEASED_MEAN, RELEASED_STD)
    assert config.vision_feature_layers == (-2, -11)
    assert not config.separate_mm_projector
    assert config.recipe == RECIPE_OF_PUBLISHED_WEIGHTS


def test_published_folders_without_padding_use_clip_normalization(released):
    config = released()
    assert config.image_size == 56
    assert (config.image_mean, config.image_std) == (CLIP_MEAN, CLIP_STD)


@pytest.mark.parametrize(
    ("size", "patches", "llm"), [(56, 4, 4), (14, 1, 1), (224, 16, 16), (238, 17, 16), (448, 32, 16), (512, 36, 16)]
)
def test_image_tokens(size, patches, llm):
    config = tiny_config(CODEBOOK, image_size=size)
    assert (config.patch_grid, config.llm_grid, config.num_image_tokens) == (patches, llm, llm**2)
