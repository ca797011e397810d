"""A folder in the release's layout (flat config, .bin shards, no tower) loads strictly and behaves as the release."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.configuration import PixelLMConfig
from model.errors import InputError
from model.files import read_object
from model.image import CLIP_MEAN, CLIP_STD, RELEASED_MEAN, RELEASED_STD
from model.PixelLM import PixelLMForCausalLM
from model.predictor import PixelLMPredictor
from model.text.tokenizer import decode_released
from model.text.tokens import IMAGE_TOKEN_ID
from tests.support.published import CONSTANTS, write_published


@pytest.fixture
def published(world, tmp_path) -> Path:
    """Its tower lies beside it, as its config says."""
    folder = world.llava.parent / "hf_model"
    write_published(folder, world, scales=2, tokens=3)
    return folder


@pytest.mark.parametrize(
    ("scales", "tokens", "pad", "separate"),
    [(2, 3, True, True), (1, 1, True, False), (1, 2, False, True), (3, 1, False, False)],
)
def test_every_weight_and_every_choice(world, scales, tokens, pad, separate):
    folder = world.llava.parent / "hf_model"
    expected = write_published(folder, world, scales=scales, tokens=tokens, pad=pad, separate=separate)
    model = PixelLMForCausalLM.from_pretrained(folder)
    tokenizer, report = model.processor.tokenizer, model.load_report
    state = expected.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert set(report.constant) == set(CONSTANTS)
    assert report.initialized == []
    assert report.ignored == ["model.layers.0.self_attn.rotary_emb.inv_freq"]
    config = replace(expected.config, vision_tower=world.clip.name, recipe=model.config.recipe)
    assert model.config == config
    assert tokenizer.convert_tokens_to_ids("<im_end>") == len(tokenizer) - 1
    mean, std = (RELEASED_MEAN, RELEASED_STD) if pad else (CLIP_MEAN, CLIP_STD)
    assert (config.preprocessor.mean, config.preprocessor.std) == (mean, std)


def test_from_pretrained_says_what_was_loaded(published, caplog):
    with caplog.at_level("INFO", logger="model"):
        model = PixelLMForCausalLM.from_pretrained(published)
    (message,) = [record.message for record in caplog.records if "tensors loaded" in record.message]
    assert message.startswith(f"{published}: {len(model.state_dict()) - 2} tensors loaded; at the released constants: ")
    assert message.endswith("; not used: 1 (e.g. model.layers.0.self_attn.rotary_emb.inv_freq)")


def test_the_json_of_an_image_processor_is_not_read(published):
    """Padded images are normalized by ImageNet's numbers, whatever such a file in the folder says."""
    (published / "preprocessor_config.json").write_text(json.dumps({"image_mean": CLIP_MEAN, "image_std": CLIP_STD}))
    config = PixelLMForCausalLM.from_pretrained(published).config
    assert (config.preprocessor.mean, config.preprocessor.std) == (RELEASED_MEAN, RELEASED_STD)


def test_the_template_is_for_the_user_to_say(published, parrot):
    """The release does not record it; a folder of ours does."""
    for conv_type, answer in ((None, "llava_v1"), ("llava_v1", "llava_v1"), ("llava_llama_2", "llava_llama_2")):
        predictor = PixelLMPredictor.from_pretrained(published, device="cpu", conv_type=conv_type)
        assert predictor.model.config.conv_type == answer
        ids = [token for token in predictor.processor.prompt_ids("What?") if token != IMAGE_TOKEN_ID]
        words = decode_released(predictor.processor.tokenizer, ids)
        assert words.startswith("<s>[INST]") == (answer == "llava_llama_2")
    ours = PixelLMPredictor.from_pretrained(parrot, device="cpu", conv_type="llava_llama_2")
    assert ours.model.config.conv_type == "llava_v1"


@pytest.mark.parametrize("with_tower", [False, True])
def test_saved_again_it_is_one_of_ours(published, tmp_path, with_tower):
    """Bit for bit, and with everything recorded that a published folder leaves to the reader."""
    model = PixelLMForCausalLM.from_pretrained(published)
    if not with_tower:
        model.config.vision_tower = str(published.parent / "clip-tiny")
    folder = tmp_path / "ours"
    model.save_pretrained(folder, save_vision_tower=with_tower)
    again = PixelLMForCausalLM.from_pretrained(folder)
    words, report = again.processor.tokenizer, again.load_report
    assert report.initialized == report.constant == report.ignored == []
    assert again.config == model.config == PixelLMConfig.from_dict(read_object(folder / "config.json"))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert words.get_vocab() == model.processor.tokenizer.get_vocab()


def edit_added(folder: Path, change) -> None:
    file = folder / "added_tokens.json"
    added = json.loads(file.read_text())
    change(added)
    file.write_text(json.dumps(added))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda added: added.clear(), r"its tokenizer has 0 \[SEG\] tokens for 2 scales; copy added_tokens\.json"),
        (lambda added: added.pop("[SEG0]"), r"added_tokens\.json gives \[SEG1\] the id 361, but it is read as 360"),
        (lambda added: added.update({"[SEG6]": 368}), r"its tokenizer has 7 \[SEG\] tokens for 2 scales"),
        (
            lambda added: added.update({f"[more{number}]": 368 + number for number in range(40)}),
            r"\[more39\] has id 407 but config\.json says vocab_size 400",
        ),
    ],
)
def test_a_tokenizer_that_does_not_belong_is_refused(published, change, message):
    edit_added(published, change)
    with pytest.raises(InputError, match=rf"{published}.*{message}"):
        PixelLMForCausalLM.from_pretrained(published)


def test_a_shard_that_is_lost(published):
    (published / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(InputError, match=r"lacks 1 of 2 shards, first pytorch_model-00002-of-00002\.bin"):
        PixelLMForCausalLM.from_pretrained(published)
