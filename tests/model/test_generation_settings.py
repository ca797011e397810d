"""How a model is to answer is stored with it: ``generate`` and the predictor go by it where the caller says nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, GenerationConfig

import model.hf  # noqa: F401
from model.asking import AnswerOptions
from model.errors import InputError
from model.PixelLM import PixelLMForCausalLM
from model.predictor import PixelLMPredictor
from tests.support.parrot import teach
from tests.support.tiny_network import make_network

PHOTO = np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8)
SETTINGS = {
    "max_new_tokens": 11,
    "max_targets": 2,
    "do_sample": True,
    "temperature": 0.5,
    "top_p": 0.9,
    "repetition_penalty": 1.1,
    "stop_strings": ["human", "mask"],
    "codebook_fast_path": False,
}


@pytest.fixture
def chatterbox(tiny_tokenizer_dir) -> PixelLMForCausalLM:
    """Says "the thing is [SEG0] [SEG1] mask" again and again."""
    network, tokenizer = make_network(tiny_tokenizer_dir, scales=1, tokens=2)
    teach(network, tokenizer, tokenizer("the thing is [SEG0] [SEG1] mask", add_special_tokens=False).input_ids)
    return network


def saved(network: PixelLMForCausalLM, folder, **settings) -> PixelLMForCausalLM:
    """The network as it is read again, with settings that were stored."""
    for name, value in settings.items():
        setattr(network.generation_config, name, value)
    network.save_pretrained(folder)
    return PixelLMForCausalLM.from_pretrained(folder)


def answers(network: PixelLMForCausalLM, **options) -> tuple[int, int]:
    """Tokens and groups of an answer by ``generate``."""
    inputs = network.processor(images=PHOTO, text="What?")
    length = inputs["input_ids"].shape[1]
    new_ids = network.generate(**inputs, **options).sequences[:, length:]
    return new_ids.shape[1], len(network.codebook.find_groups(new_ids)[0])


def test_settings_come_back_as_they_were_saved(chatterbox, tmp_path):
    again = saved(chatterbox, tmp_path, **SETTINGS)
    assert {name: getattr(again.generation_config, name) for name in SETTINGS} == SETTINGS
    assert AnswerOptions.of(again.generation_config) == AnswerOptions(
        max_new_tokens=11, max_targets=2, temperature=0.5, top_p=0.9, repetition_penalty=1.1,
        stop=["human", "mask"], codebook_fast_path=False,
    )  # fmt: skip
    by_name = AutoModelForImageTextToText.from_pretrained(tmp_path).generation_config
    assert {name: getattr(by_name, name) for name in SETTINGS} == SETTINGS


def test_both_ways_to_ask_go_by_what_is_stored(chatterbox, tmp_path):
    again = saved(chatterbox, tmp_path, max_new_tokens=42, max_targets=2)
    assert answers(again) == (42, 2)
    assert answers(again, max_targets=3, max_new_tokens=50) == (50, 3)
    assert answers(again, generation_config=GenerationConfig(max_targets=1, max_new_tokens=20)) == (20, 1)
    predictor = PixelLMPredictor(again, again.processor.tokenizer)
    for options, expected in (({}, 2), ({"max_targets": 3}, 3), ({"max_targets": None}, 7)):
        reply = predictor.segment(PHOTO, "What?", **options)
        assert (len(reply.output_ids), len(reply.targets)) == (42, expected)


def test_stop_strings_end_an_answer_in_both_ways(chatterbox, tmp_path):
    again = saved(chatterbox, tmp_path, stop_strings=["mask"])
    reply = PixelLMPredictor(again, again.processor.tokenizer).segment(PHOTO, "What?")
    assert reply.text == "the thing is [SEG0] [SEG1] mask"
    assert answers(again) == (len(reply.output_ids), 1)


def test_whether_groups_are_read_in_one_pass_is_stored(chatterbox, tmp_path):
    again = saved(chatterbox, tmp_path, max_new_tokens=7, codebook_fast_path=False)
    passes = []
    again.model.register_forward_hook(lambda *_: passes.append(1))
    for options, expected in (({}, 7), ({"codebook_fast_path": True}, 6)):
        passes.clear()
        answers(again, **options)
        assert len(passes) == expected


def test_a_folder_without_settings_answers_as_ever(chatterbox, tmp_path):
    chatterbox.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    again = PixelLMForCausalLM.from_pretrained(tmp_path)
    assert AnswerOptions.of(again.generation_config) == AnswerOptions()
    assert AnswerOptions().max_new_tokens == 512


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_targets", -1, "max_targets is -1; expected 0 or more"),
        ("max_targets", True, "max_targets is True; expected a whole number"),
        ("codebook_fast_path", "no", "codebook_fast_path is 'no'; expected true or false"),
        ("temperature", 0, "temperature is 0; expected more than 0.0"),
        ("top_p", 1.5, "top_p is 1.5; expected 1.0 or less"),
        ("repetition_penalty", -2.0, "repetition_penalty is -2.0; expected more than 0.0"),
        ("do_sample", "yes", "do_sample is 'yes'; expected true or false"),
        ("stop_strings", [""], "stop_strings[0] is ''; expected text of 1 characters or more"),
    ],
)
def test_a_damaged_setting_is_one_line_when_read_and_when_saved(chatterbox, tmp_path, name, value, expected):
    folder = tmp_path / "model"
    chatterbox.save_pretrained(folder)
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, name: value}))
    with pytest.raises(InputError) as read:
        PixelLMForCausalLM.from_pretrained(folder)
    setattr(chatterbox.generation_config, name, value)
    with pytest.raises(InputError) as written:
        chatterbox.save_pretrained(tmp_path / "other")
    for caught in (read, written):
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
    assert str(file) in str(read.value)
    assert not (tmp_path / "other").exists()


def test_a_setting_without_effect_is_told_when_saved(chatterbox, tmp_path):
    chatterbox.generation_config.temperature = 0.5
    with pytest.raises(InputError, match="do_sample"):
        chatterbox.save_pretrained(tmp_path / "model")


def test_stored_sampling_draws_from_the_random_state(chatterbox, tmp_path):
    again = saved(chatterbox, tmp_path, do_sample=True, temperature=50.0, max_new_tokens=16)
    predictor = PixelLMPredictor(again, again.processor.tokenizer)
    unused = torch.arange(len(again.processor.tokenizer), again.lm_head.out_features)  # they stand for no word
    again.lm_head.register_forward_hook(lambda module, args, logits: logits.index_fill(-1, unused, -torch.inf))
    said = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        said.append(predictor.segment(PHOTO, "What?").output_ids)
    assert said[0] == said[1] != said[2]
    assert predictor.ask("What?", temperature=0.0).text.startswith("the thing is [SEG0] [SEG1]")
