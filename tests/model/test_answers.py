"""Answers cost one pass for a word and one for a target, alone or in a batch, whole or piece by piece."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LogitsProcessorList

from model.errors import InputError
from model.predictor import PixelLMPredictor
from model.replies import Target
from model.text.tokens import IMAGE_TOKEN_ID
from tests.support.parrot import teach
from tests.support.talker import make_talker, same
from tests.support.tiny_network import make_network

RNG = np.random.default_rng(11)
PHOTOS = [RNG.integers(0, 256, (*hw, 3), dtype=np.uint8) for hw in ((40, 60), (60, 30), (56, 56), (30, 64))]
QUESTIONS = ["What?", "Where is the thing that is in the image?", "Why is it?", "Is it the image or is it the mask?"]
GROUP = "[SEG0] [SEG1]"


@pytest.fixture(scope="module")
def talker(tiny_tokenizer_dir) -> PixelLMPredictor:
    return make_talker(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def parrot(tiny_tokenizer_dir) -> PixelLMPredictor:
    network, tokenizer = make_network(tiny_tokenizer_dir, scales=1, tokens=2)
    teach(network, tokenizer, tokenizer(f"the thing is {GROUP} mask </s>", add_special_tokens=False).input_ids)
    return PixelLMPredictor(network, tokenizer)


@pytest.fixture
def widths(parrot):
    """Tokens that each pass of the language model reads."""
    seen: list[int] = []
    hook = parrot.model.model.register_forward_pre_hook(
        lambda module, args, options: seen.append(options["inputs_embeds"].shape[1]), with_kwargs=True
    )
    yield seen
    hook.remove()


def test_an_answer_takes_a_pass_for_each_word_and_one_for_each_target(parrot, widths):
    parrot.set_image(PHOTOS[0])
    reply = parrot.ask("What?")
    words = len(reply.output_ids) - 1 - 2  # without end mark and group
    assert len(reply.targets) == 1
    _, *answer = widths  # image and question
    assert answer == [1, 1, 1, 2] + [1] * (words - 3)


def test_a_further_question_reads_only_its_own_words(parrot, widths):
    parrot.set_image(PHOTOS[0])
    parrot.ask("What?")
    prompt = parrot.processor.prompt_ids("Where is the thing?")
    widths.clear()
    parrot.ask("Where is the thing?", max_new_tokens=1)
    assert widths == [len(prompt) - len(parrot.writer.prefix_ids)]
    assert widths[0] < len(prompt) / 4


def test_groups_in_one_pass_are_groups_token_by_token(talker):
    """Both ways agree where the model writes whole groups, which this processor sees to."""
    network = talker.model
    first, second = network.codebook.ids

    def whole_groups(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        begun = ids[:, -1] == first
        return torch.where(begun[:, None], torch.eye(scores.shape[1])[second].log(), scores)

    inputs = network.processor(images=PHOTOS, text=QUESTIONS)
    fast = network.generate(**inputs, max_new_tokens=24)
    slow = network.generate(
        **inputs, max_new_tokens=24, codebook_fast_path=False, logits_processor=LogitsProcessorList([whole_groups])
    )
    length = min(fast.sequences.shape[1], slow.sequences.shape[1])
    assert torch.equal(fast.sequences[:, : length - 1], slow.sequences[:, : length - 1])
    assert sum(map(len, fast.mask_logits)) >= 3
    for mine, theirs in zip(fast.mask_logits, slow.mask_logits, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_batch_of_any_mix_answers_as_each_question_alone(talker, batch_size):
    requests = [(photo, question) for question in QUESTIONS for photo in PHOTOS]
    RNG.shuffle(requests)
    replies = talker.ask_batch(requests, batch_size=batch_size, max_new_tokens=16, keep_logits=True)
    assert len({tuple(reply.output_ids) for reply in replies}) >= 8
    assert sum(len(reply.targets) for reply in replies) >= 8
    for (photo, question), reply in zip(requests, replies, strict=True):
        same(reply, talker.segment(photo, question, max_new_tokens=16, keep_logits=True))


def test_a_batch_reads_the_words_before_an_image_once(parrot, widths):
    parrot.ask_batch([(photo, "What?") for photo in PHOTOS], max_new_tokens=1)
    before = parrot.writer.prefix_ids.index(IMAGE_TOKEN_ID)
    assert widths[0] == before
    assert sum(widths[1:]) <= len(PHOTOS) * (len(parrot.processor.prompt_ids("What?")) - before)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gaps_of_a_batch_change_no_answer(talker, attention):
    requests = list(zip(PHOTOS, QUESTIONS, strict=True))
    alone = [talker.segment(*request, max_new_tokens=16, keep_logits=True) for request in requests]
    network = talker.model
    try:
        network.set_attn_implementation(attention)
        together = talker.ask_batch(requests, max_new_tokens=16, keep_logits=True)
        assert network.model.config._attn_implementation == attention
    finally:
        network.set_attn_implementation("sdpa")
    assert any(reply.targets for reply in together)
    for mine, expected in zip(together, alone, strict=True):
        same(mine, expected)


def test_gaps_of_a_batch_are_not_multiplied(talker):
    """All blocks but attention read the tokens of unlike questions and answers, and nothing beside them."""
    read: list[int] = []
    mlp = talker.model.model.layers[0].mlp
    hook = mlp.register_forward_pre_hook(lambda module, args: read.append(args[0].shape[:2].numel()))
    requests = list(zip(PHOTOS, QUESTIONS, strict=True))
    replies = [talker.segment(*request, max_new_tokens=16) for request in requests]
    alone = sum(read)
    read.clear()
    together = talker.ask_batch(requests, max_new_tokens=16)
    hook.remove()
    assert [reply.output_ids for reply in together] == [reply.output_ids for reply in replies]
    once = talker.writer.prefix_ids.index(IMAGE_TOKEN_ID)
    assert sum(read) == alone - (len(requests) - 1) * once


def test_a_group_that_has_no_room_is_not_begun(tiny_tokenizer_dir):
    network, tokenizer = make_network(tiny_tokenizer_dir, scales=1, tokens=2)
    teach(network, tokenizer, tokenizer(f"{GROUP} mask </s>", add_special_tokens=False).input_ids)
    predictor = PixelLMPredictor(network, tokenizer)
    reply = predictor.segment(PHOTOS[0], "What?", max_new_tokens=1)
    assert (reply.output_ids, reply.targets) == ([], [])
    assert reply.reason == "the answer was cut after 0 tokens; the model answered without a segmentation token"
    assert len(predictor.ask("What?", max_new_tokens=2).targets) == 1


def test_a_question_that_is_refused_leaves_the_dialogue_as_it_was(talker):
    talker.set_image(PHOTOS[0])
    replies = []
    for refused in (False, True):
        talker.ask("What?", max_new_tokens=6)
        if refused:
            with pytest.raises(InputError, match="shorten it"):
                talker.ask("thing " * 5000, follows=True)
        replies.append(talker.ask("Why?", follows=True, max_new_tokens=6))
    assert replies[0].output_ids == replies[1].output_ids


def test_answers_of_unlike_lengths_end_by_themselves(parrot):
    replies = parrot.ask_batch([(PHOTOS[0], "What?"), (PHOTOS[1], "Where?")], max_new_tokens=64)
    assert [reply.reason for reply in replies] == [None, None]
    assert parrot.ask_batch([]) == []


def test_a_stream_is_the_reply_in_pieces(parrot, talker):
    for predictor in (parrot, talker):
        predictor.set_image(PHOTOS[0])
        *pieces, reply = predictor.stream("What?", max_new_tokens=24, keep_logits=True)
        same(reply, predictor.ask("What?", max_new_tokens=24, keep_logits=True))
        texts = [piece for piece in pieces if isinstance(piece, str)]
        assert "".join(texts) == reply.numbered()
        assert len(texts) > 3
        targets = [piece for piece in pieces if isinstance(piece, Target)]
        for mine, theirs in zip(targets, reply.targets, strict=True):
            assert torch.allclose(mine.logits, theirs.logits, atol=1e-4)


def test_a_stream_decodes_each_mask_once(parrot, monkeypatch):
    counts: list[int] = []
    decode = parrot.model.decode_masks

    def counted(features, queries):
        counts.append(len(queries.embeds))
        return decode(features, queries)

    monkeypatch.setattr(parrot.model, "decode_masks", counted)
    parrot.set_image(PHOTOS[0])
    *_, reply = parrot.stream("What?", max_new_tokens=40)
    assert sum(counts) == len(reply.targets)
    counts.clear()
    assert not parrot.ask("What?", max_new_tokens=2).targets
    assert not counts, "where no mask is asked for, none is decoded"


def test_a_dialogue_goes_on_from_what_was_said(talker):
    """What follows is answered as if the whole dialogue had been read at once."""
    processor = talker.processor
    for limit in (8, 9, 10):  # the answer ends in a word or in a group
        talker.set_image(PHOTOS[1])
        first = talker.ask("What?", max_new_tokens=limit)
        second = talker.ask("Where is it?", follows=True, max_new_tokens=6)
        third = talker.ask("Why?", follows=True, max_new_tokens=6)
        end = [processor.tokenizer.eos_token_id]
        ids = processor.prompt_ids("What?")
        for reply, question in ((first, "Where is it?"), (second, "Why?")):
            said = reply.output_ids
            ids += said + end * (said[-1:] != end) + processor.follow_up_ids(question)
        inputs = processor(images=PHOTOS[1], text="What?")
        whole = talker.model.generate(
            torch.tensor([ids]), pixel_values=inputs["pixel_values"], valid_hw=inputs["valid_hw"], max_new_tokens=6
        )
        assert whole.sequences[0, len(ids) :].tolist() == third.output_ids
    assert talker.ask("What?", max_new_tokens=limit).output_ids == first.output_ids, "a dialogue begins anew"


def test_an_answer_that_was_written_elsewhere_has_the_same_masks(talker):
    talker.set_image(PHOTOS[3])
    expected = talker.ask("What?", max_new_tokens=24, keep_logits=True)
    assert expected.targets
    found = talker.masks_for(PHOTOS[3], "What?", expected.output_ids, keep_logits=True)
    for mine, theirs in zip(found.targets, expected.targets, strict=True):
        assert torch.allclose(mine.logits, theirs.logits, atol=1e-4)
    with pytest.raises(InputError, match="output_ids has 400; expected ids of the model's vocabulary, 0 to"):
        talker.masks_for(PHOTOS[3], "What?", [1, 400])


def test_named_things_have_a_mask_each_in_one_pass(parrot, widths):
    names = ["the cat", "a red cup", "the cat"]
    reply = parrot.segment(PHOTOS[0], names, keep_logits=True)
    assert len(widths) == 1, "image, question and answer"
    assert [target.phrase for target in reply.targets] == names
    assert reply.text == f"the cat {GROUP} , a red cup {GROUP} , the cat {GROUP} ."
    again = parrot.segment(Image.fromarray(PHOTOS[0]), names, keep_logits=True)
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(reply.targets, again.targets, strict=True))
    for wrong in ([], ["the cat", " "], ["{seg}"]):
        with pytest.raises(InputError, match="expected one or more, such as"):
            parrot.segment(PHOTOS[0], wrong)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_batch_of_given_answers_has_the_masks_of_each_alone(talker, batch_size):
    answers = ["It is {seg}.", "The image is {seg} and the mask is {seg}.", "There is no such thing."]
    requests = [(photo, QUESTIONS[place % 4], answers[place % 3]) for place, photo in enumerate(PHOTOS * 2)]
    replies = talker.masks_batch(requests, batch_size=batch_size, keep_logits=True)
    assert [len(reply.targets) for reply in replies] == [answer.count("{seg}") for _, _, answer in requests]
    for (photo, question, _), reply in zip(requests, replies, strict=True):
        same(reply, talker.masks_for(photo, question, reply.output_ids, keep_logits=True))


@pytest.mark.parametrize("batch_size", [1, 16])
def test_a_batch_of_named_things_has_the_masks_of_each_alone(talker, batch_size):
    named = [["the cat"], ["a red cup", "the image", "it"], ["the thing"]]
    requests = [(photo, named[place % 3]) for place, photo in enumerate(PHOTOS * 2)]
    replies = talker.segment_batch(requests, batch_size=batch_size, keep_logits=True)
    for (photo, names), reply in zip(requests, replies, strict=True):
        same(reply, talker.segment(photo, names, keep_logits=True))


def test_a_cap_on_targets_lets_the_answer_go_on_in_words(talker):
    talker.set_image(PHOTOS[0])
    free = talker.ask("What?", max_new_tokens=24)
    assert len(free.targets) >= 2
    for cap in (0, 1):
        capped = talker.ask("What?", max_new_tokens=24, max_targets=cap)
        assert len(capped.targets) == cap
        assert len(capped.output_ids) >= len(free.output_ids) - 1


def test_rules_of_an_answer(talker, parrot):
    parrot.set_image(PHOTOS[0])
    stopped = parrot.ask("What?", stop=["thing"])
    assert (stopped.text, stopped.reason) == ("the thing", "the model answered without a segmentation token")
    talker.set_image(PHOTOS[0])
    greedy = talker.ask("What?", max_new_tokens=16)
    drawn = set()
    for seed in range(4):
        torch.manual_seed(seed)
        drawn.add(tuple(talker.ask("What?", max_new_tokens=16, temperature=2.0, top_p=0.9).output_ids))
    assert len(drawn) == 4
    torch.manual_seed(0)
    assert talker.ask("What?", max_new_tokens=16, temperature=1e-3).output_ids == greedy.output_ids
    penalized = talker.ask("What?", max_new_tokens=16, repetition_penalty=1e6).output_ids
    words = [token for token in penalized if token not in talker.model.codebook.ids]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected 1 or more"),
        ({"max_targets": -1}, "max_targets is -1; expected 0 or more, or None"),
        ({"temperature": -0.5}, r"temperature is -0.5; expected 0 or more"),
        ({"top_p": 0}, "top_p is 0; expected more than 0, and 1 at most"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; expected more than 0"),
        ({"stop": "thing"}, "stop is 'thing'; expected a list of texts"),
        *(
            ({"mask_threshold": wrong}, f"mask_threshold is {wrong}; expected more than 0 and less than 1")
            for wrong in (0, 1, -0.5, float("nan"))
        ),
    ],
)
def test_options_that_cannot_be_met(parrot, option, message):
    parrot.set_image(PHOTOS[0])
    with pytest.raises(InputError, match=message):
        parrot.ask("What?", **option)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_every_way_to_ask_cuts_masks_at_the_threshold(parrot, threshold):
    options = {"mask_threshold": threshold, "keep_logits": True}
    parrot.set_image(PHOTOS[0])
    first = parrot.ask("What?", **options)
    streamed = [piece for piece in parrot.stream("What?", **options) if isinstance(piece, Target)]
    others = [
        *parrot.ask_batch([(PHOTOS[0], "What?")], **options),
        parrot.masks_for(PHOTOS[0], "What?", first.output_ids, **options),
        parrot.segment(PHOTOS[0], ["the cat"], **options),
    ]
    inputs = parrot.processor(images=PHOTOS[0], text="What?")
    output, length = parrot.model.generate(**inputs), inputs["input_ids"].shape[1]
    others += parrot.processor.replies(output, [PHOTOS[0].shape[:2]], prompt_length=length, **options)
    for target in [*first.targets, *streamed, *(reply.targets[0] for reply in others)]:
        inside = target.logits.double().sigmoid()
        assert torch.equal(target.mask, inside > threshold)
        assert target.score == pytest.approx(float(inside[target.mask].mean()) if target.mask.any() else 0, abs=1e-5)


def test_logits_are_kept_only_where_they_are_asked_for(parrot):
    parrot.set_image(PHOTOS[0])
    *pieces, reply = parrot.stream("What?")
    assert [target.logits for target in (*reply.targets, *pieces) if isinstance(target, Target)] == [None, None]


def test_where_no_words_are_generated_their_options_are_refused(parrot, widths):
    message = "max_targets, temperature cannot matter where no words are generated; expected mask_threshold or keep_lo"
    for call in (
        lambda **options: parrot.segment(PHOTOS[0], ["the cat"], **options),
        lambda **options: parrot.masks_for(PHOTOS[0], "What?", [1], **options),
    ):
        with pytest.raises(InputError, match=message):
            call(temperature=1.0, max_targets=1, keep_logits=True)
        with pytest.raises(InputError, match="mask_threshold is 2; expected"):
            call(mask_threshold=2)
    assert not widths, "nothing was computed"
