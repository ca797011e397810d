"""A configuration that cannot work is refused by name, and a saved one reads back the same."""

from __future__ import annotations

import json

import pytest

from model.configuration import CHOICES, PixelLMConfig, feature_layers
from model.errors import InputError
from model.image import CLIP_MEAN, CLIP_STD, RELEASED_MEAN, RELEASED_STD
from model.part_configs import llama_keys, vision_keys
from model.recipe import RECIPE_OF_PUBLISHED_WEIGHTS
from model.text.tokenizer import add_codebook, load_tokenizer
from model.text.tokens import SegCodebook
from model.weights.released import released_config
from tests.support.tiny_data import LLAMA, TOWER, tiny_config

CODEBOOK = SegCodebook(2, 3, tuple(range(360, 366)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_feature_scale_num": 0}, r"^image_feature_scale_num is 0; expected 1 or more"),
        ({"image_feature_scale_num": 4}, r"^image_feature_scale_num is 4; expected 3 or less"),
        ({"seg_token_num": 10**6}, r"^seg_token_num is 1000000; expected 1000 or less"),
        ({"seg_token_ids": (1, 2, 3, 4, 5, 5)}, r"^seg_token_ids is \(1, 2, 3, 4, 5, 5\); expected every id once"),
        ({"seg_token_ids": (-1, 2, 3, 4, 5, 6)}, r"^seg_token_ids\[0\] is -1; expected 0 or more"),
        ({"image_size": 10**30}, r"^image_size is 10+; expected 4096 or less"),
        (
            {"image_size": 4096, "vision_config": {**TOWER, "patch_size": 4}},
            r"patches of 4 pixels; expected at most 512",
        ),
        ({"image_mean": 0.5}, r"^image_mean is 0.5; expected a list"),
        ({"image_std": (1.0, 1.0)}, r"^image_std\[2\] is missing"),
        ({"image_std": (1.0, 0.0, 1.0)}, r"^image_std\[1\] is 0.0; expected more than 0"),
        ({"image_mean": (float("nan"), 0.0, 0.0)}, r"^image_mean\[0\] is nan; expected a finite number"),
        ({"decoder_depth": 10**9}, r"^decoder_depth is 1000000000; expected 100 or less"),
        ({"decoder_mlp_ratio": "x"}, r"^decoder_mlp_ratio is 'x'; expected a whole number"),
        ({"decoder_heads": 0}, r"^decoder_heads is 0; expected 1 or more"),
        ({"mm_projector_hidden_dim": None}, r"^mm_projector_hidden_dim is None; expected a whole number"),
        ({"vision_feature_layers": (-2,)}, r"^vision_feature_layers has 1 entries for 2 scales"),
        ({"seg_token_num": 0}, r"^seg_token_num is 0; expected 1 or more"),
        ({"seg_token_num": 2}, r"6 codebook ids for 2 scales x 2 tokens"),
        ({"seg_token_ids": (1, 2, 3, 4, 5, 400)}, r"the codebook has id 400 but the vocabulary has 400 rows"),
        ({"image_size": 13}, r"^image_size is 13; expected at least .* 14"),
        ({"out_dim": 40}, r"^out_dim is 40; expected a multiple of 16"),
        ({"vision_position_resize": "new"}, r"vision_position_resize is 'new'; expected 'correct' or 'released'"),
        ({"vision_feature_layers": (-2, -6)}, r"vision feature layer -6 does not exist in a tower of 4 blocks"),
        ({"vision_feature_layers": (-2, 0)}, r"vision_feature_layers\[1\] is 0; expected -1 or less"),
        ({"conv_type": "vicuna"}, r"conv_type 'vicuna' is unknown"),
    ],
)
def test_impossible_values_name_the_field(changes, message):
    with pytest.raises(InputError, match=message):
        tiny_config(CODEBOOK, **changes)


def test_saved_and_read_back(tmp_path):
    config = tiny_config(CODEBOOK, out_dim=32, separate_mm_projector=False, conv_type="llava_llama_2")
    config.save_pretrained(tmp_path)
    flat = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    again = PixelLMConfig.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == flat
    assert again == config
    assert set(CHOICES) <= set(flat), "defaults are recorded, too: they may change"
    assert flat["text_config"].items() >= LLAMA.items()
    assert flat["vision_config"].items() >= TOWER.items()


def test_a_folder_of_before_there_was_a_text_config():
    """LLaMA's keys stood at the top, in merged models and in the checkpoints of runs."""
    config = tiny_config(CODEBOOK)
    saved = config.to_diff_dict()
    assert PixelLMConfig.from_dict({**saved.pop("text_config"), **saved, "model_type": "pixellm"}) == config


def test_overrides_win():
    config = tiny_config(CODEBOOK)
    assert PixelLMConfig.from_dict(config.to_diff_dict(), vision_tower="elsewhere").vision_tower == "elsewhere"
    with pytest.raises(InputError, match=r"out_dim is 40; expected a multiple of 16"):
        PixelLMConfig.from_dict(config.to_diff_dict(), out_dim=40)


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
    with pytest.raises(InputError, match=r"config\.json: vocab_size is missing.*LLaVA or LLaMA folder"):
        llama_keys({"hidden_size": 4})


def test_tower_keys_are_found_in_a_whole_clip_too():
    assert vision_keys({"vision_config": TOWER, "projection_dim": "x"}) == vision_keys(TOWER)
    assert vision_keys(TOWER)["num_hidden_layers"] == 4


def test_a_published_tower_says_no_more_than_this():
    """openai/clip-vit-large-patch14-336 leaves out what is the same in every CLIP."""
    section = {
        "dropout": 0.0, "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "num_attention_heads": 16,
        "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "model_type": "clip_vision_model",
    }  # fmt: skip
    found = vision_keys({"model_type": "clip", "projection_dim": 768, "vision_config": section})
    assert (found["hidden_size"], found["hidden_act"], found["layer_norm_eps"]) == (1024, "quick_gelu", 1e-5)


@pytest.mark.parametrize(
    "key", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"]
)
def test_a_tower_without_a_size_is_not_filled_with_that_of_another(key):
    rest = {name: value for name, value in TOWER.items() if name != key}
    with pytest.raises(InputError, match=rf"^T/config.json: {key} is missing"):
        vision_keys(rest, where="T/config.json")
    with pytest.raises(InputError, match=rf"^T/config.json, vision_config: {key} is missing"):
        vision_keys({**TOWER, "vision_config": rest}, where="T/config.json")


WRONG = ["x", None, [1], {"a": 1}, True, -1, 0, 10**30, 2.5, float("nan"), ""]


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize(
    "key",
    ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"],
)
def test_a_language_model_of_nonsense(key, value):
    with pytest.raises(InputError, match=rf"^F/config.json: {key} is "):
        llama_keys({**LLAMA, key: value}, where="F/config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "sillu"}, "hidden_act is 'sillu'; expected an activation"),
        ({"num_key_value_heads": -1}, "num_key_value_heads is -1; expected 1 or more"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 4; expected a divisor of num_attention_heads 2"),
        ({"attention_bias": "no"}, "attention_bias is 'no'; expected true or false"),
        ({"rope_scaling": {"type": "linear", "factor": "x"}}, "rope_scaling.factor is 'x'; expected a number"),
        ({"rope_scaling": {"type": "spiral", "factor": 2.0}}, "rope_scaling.type is 'spiral'; expected 'default'"),
        ({"rope_scaling": 3}, "rope_scaling is 3; expected a JSON object"),
        ({"max_position_embeddings": 2**40}, "max_position_embeddings is 1099511627776; expected less than"),
        ({"pad_token_id": "<unk>"}, "pad_token_id is '<unk>'; expected a whole number"),
    ],
)
def test_a_language_model_that_cannot_be_built(changes, message):
    with pytest.raises(InputError, match=rf"^config.json: {message}"):
        llama_keys({**LLAMA, **changes})


@pytest.mark.parametrize("key", CHOICES)
def test_a_folder_of_ours_says_everything(key):
    flat = tiny_config(CODEBOOK).to_diff_dict()
    del flat[key]
    with pytest.raises(InputError, match=rf"^M/config.json lacks {key}\. Copy"):
        PixelLMConfig.from_dict(flat, name_or_path="M")


def test_a_folder_of_ours_without_its_tower():
    flat = tiny_config(CODEBOOK).to_diff_dict()
    del flat["vision_config"]
    with pytest.raises(InputError, match=r"lacks vision_config"):
        PixelLMConfig.from_dict(flat)


def test_the_file_of_a_bad_value_is_named():
    flat = tiny_config(CODEBOOK).to_diff_dict() | {"conv_type": "vicuna"}
    with pytest.raises(InputError, match=r"^M/config.json: conv_type 'vicuna' is unknown"):
        PixelLMConfig.from_dict(flat, name_or_path="M")


def test_values_that_contradict_each_other():
    with pytest.raises(InputError, match=r"config\.json.*\(16\) is not a multiple of .*\(3\)"):
        vision_keys({**TOWER, "num_attention_heads": 3})
    with pytest.raises(InputError, match=r"config\.json.*not a multiple"):
        llama_keys({**LLAMA, "num_attention_heads": 3})


@pytest.fixture
def released(tiny_tokenizer_dir, tmp_path):
    """The configuration of a published folder whose tower has 12 blocks; other arguments change its config.json."""
    tower = {**TOWER, "num_hidden_layers": 12}
    (tmp_path / "config.json").write_text(json.dumps(tower), encoding="utf-8")
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    add_codebook(tokenizer, scales=2, tokens=3)

    def read(**changes) -> PixelLMConfig:
        flat = {**LLAMA, "vocab_size": 400, "image_feature_scale_num": 2, **changes}
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
