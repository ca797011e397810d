"""Both templates write, tokenize and label conversations as the release does (recorded in ../shared/golden)."""

from __future__ import annotations

import json

import pytest

from model.errors import InputError
from model.text.conversation import CONVERSATIONS, IMAGE, OURS, SEG_MARK, Rendered, get_conversation
from model.text.tokenizer import add_codebook, load_tokenizer
from model.text.tokens import IGNORE_INDEX, IMAGE_TOKEN_ID, encode_conversation, seg_strings, seg_text

GROUP = seg_text(2, 3)


def answers(rendered: Rendered) -> list[str]:
    return [rendered.marked[start:end].replace(OURS, "") for start, end in rendered.answer_spans]


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
        turns = [
            (question.removeprefix("<image>\n"), answer.replace(GROUP, SEG_MARK)) for question, answer in case["turns"]
        ]
        rendered = get_conversation(case["conv_type"]).render(turns, image=IMAGE, group=seg_strings(2, 3))
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
    rendered = get_conversation("llava_v1").render([("What?", "A."), ("B?", "C."), ("D?", None)], image=IMAGE)
    assert rendered.text == (
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions. "
        "USER: <im_start><image><im_end>\nWhat? ASSISTANT: A.</s>USER: B? ASSISTANT: C.</s>USER: D? ASSISTANT:"
    )
    assert answers(rendered) == [" A.</s>", " C.</s>"]


def test_llava_llama_2_in_full():
    rendered = get_conversation("llava_llama_2").render([("What?", "A."), ("B?", "C.")], image=IMAGE)
    assert rendered.text == (
        "[INST] <<SYS>>\nYou are a helpful language and vision assistant. "
        "You are able to understand the visual content that the user provides, "
        "and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n"
        "<im_start><image><im_end>\nWhat? [/INST] A. </s><s>[INST] B? [/INST] C. </s>"
    )
    assert answers(rendered) == [" A. </s>", " C. </s>"]


MARKS = ["<image>", "<im_start>", "[SEG0]", "{seg}", "</s>", "<s>", "<unk>", f"{OURS}<image>", GROUP, "<image></s>"]


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_marks_in_what_somebody_says_are_text(tokenizer, name, mark):
    """One image, one token group, and every mark of the user as characters that read back the same."""
    template, group = get_conversation(name), seg_strings(2, 3)
    said = "no mark" if mark == SEG_MARK else mark  # which means a group in an answer
    turns = [(f"a {mark} in{mark}side", f"It is {SEG_MARK}, or {said}."), (mark, "C.")]
    ids, labels = encode_conversation(tokenizer, template.render(turns, image=IMAGE, group=group), num_image_tokens=3)
    plain = template.render([("a", f"It is {SEG_MARK}."), ("b", "C.")], image=IMAGE, group=group)
    expected, _ = encode_conversation(tokenizer, plain, num_image_tokens=3)
    special = {IMAGE_TOKEN_ID, *tokenizer.added_tokens_decoder}
    assert [token for token in ids if token in special] == [token for token in expected if token in special]
    letters = "".join(mark.replace(OURS, "\N{REPLACEMENT CHARACTER}").split())
    text = "".join(tokenizer.decode([token for token in ids if token not in special]).split())
    assert text.count(letters) == (3 if mark == SEG_MARK else 4)
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(ids, labels, strict=True))


def test_text_without_marks_gets_the_ids_of_the_tokenizer(tokenizer):
    """Marks by structure or found in the text: for everything that has no marks of its own it is the same."""
    rendered = get_conversation("llava_v1").render([("Ähm, 3 < 4 [x]\n {a}?", f"So: {SEG_MARK}!")], group=GROUP.split())
    ids, _ = encode_conversation(tokenizer, rendered, num_image_tokens=1)
    assert ids[1:] == tokenizer(rendered.text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("text", ["\ud83d", "what \udcff is this"])
def test_text_that_is_not_utf8_is_refused(tokenizer, text):
    with pytest.raises(InputError, match=r"not UTF-8 at .*in UTF-8"):
        encode_conversation(tokenizer, get_conversation("llava_v1").render([(text, None)]), num_image_tokens=1)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_only_the_last_turn_may_be_open(name):
    with pytest.raises(ValueError, match="turn 0 of 2 has no answer"):
        get_conversation(name).render([("A?", ""), ("B?", "C.")])


def test_an_unknown_template_names_the_known_ones():
    with pytest.raises(InputError, match=r"conv_type 'vicuna' is unknown; expected one of llava_v1, llava_llama_2"):
        get_conversation("vicuna")
