"""Both templates write, tokenize and label conversations as the release does (recorded in ../shared/golden)."""

from __future__ import annotations

import json

import pytest

from model.errors import InputError
from model.text.conversation import CONVERSATIONS, get_conversation
from model.text.tokenizer import add_codebook, load_tokenizer
from model.text.tokens import IMAGE_TOKEN_ID, encode_conversation


@pytest.fixture(scope="module")
def recorded(shared):
    return json.loads((shared / "golden/conversations.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer(shared):
    tokenizer = load_tokenizer(shared / "golden/llava-tiny")
    add_codebook(tokenizer, scales=2, tokens=3)
    return tokenizer


def test_recorded_conversations(recorded, tokenizer):
    templates, labeled = set(), 0
    for case in recorded:
        rendered = get_conversation(case["conv_type"]).render(case["turns"])
        assert rendered.text == case["rendered_with_image_marks"]
        ids, labels = encode_conversation(tokenizer, rendered, num_image_tokens=1)
        assert ids == case["input_ids"]
        assert ids.count(IMAGE_TOKEN_ID) == 1
        if "labels" in case:
            assert labels == case["labels"]
            labeled += 1
        templates.add((case["conv_type"], len(case["turns"]), bool(case["turns"][-1][1])))
    assert len(templates) == 2 * 3, "both templates: one round, two rounds, an open question"
    assert labeled == 2


def test_llava_v1_in_full():
    """Needs no recording: what the published models were trained on."""
    rendered = get_conversation("llava_v1").render([("<image>\nWhat?", "A."), ("B?", "C."), ("D?", None)])
    assert rendered.text == (
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions. "
        "USER: <im_start><image><im_end>\nWhat? ASSISTANT: A.</s>USER: B? ASSISTANT: C.</s>USER: D? ASSISTANT:"
    )
    assert [rendered.text[start:end] for start, end in rendered.answer_spans] == [" A.</s>", " C.</s>"]


def test_llava_llama_2_in_full():
    rendered = get_conversation("llava_llama_2").render([("<image>\nWhat?", "A."), ("B?", "C.")])
    assert rendered.text == (
        "[INST] <<SYS>>\nYou are a helpful language and vision assistant. "
        "You are able to understand the visual content that the user provides, "
        "and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n"
        "<im_start><image><im_end>\nWhat? [/INST] A. </s><s>[INST] B? [/INST] C. </s>"
    )
    assert [rendered.text[start:end] for start, end in rendered.answer_spans] == [" A. </s>", " C. </s>"]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_only_the_first_image_mark_is_an_image(name):
    rendered = get_conversation(name).render([("<image>\nWhat?", "A."), ("B?", "C.")])
    assert rendered.text.count("<im_start><image><im_end>") == 1


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_only_the_last_turn_may_be_open(name):
    with pytest.raises(ValueError, match="turn 0 of 2 has no answer"):
        get_conversation(name).render([("A?", ""), ("B?", "C.")])


def test_an_unknown_template_names_the_known_ones():
    with pytest.raises(InputError, match=r"conv_type 'vicuna' is unknown; expected one of llava_v1, llava_llama_2"):
        get_conversation("vicuna")
