"""``generate``: a batch answers as each question alone, and every mask is that of the finished sequence."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, TextStreamer

from model.errors import InputError
from model.PixelLM import PixelLMForCausalLM
from model.structures import PixelLMGenerateOutput, VisionFeatures
from model.text.tokens import IMAGE_TOKEN_ID
from tests.support.parrot import teach
from tests.support.tiny_network import make_network

RNG = np.random.default_rng(11)
PHOTOS = [RNG.integers(0, 256, (*hw, 3), dtype=np.uint8) for hw in ((40, 60), (60, 30), (56, 56))]
QUESTIONS = ["What?", "Where is the thing that is in the image?", "Why is it?"]
SCALES, TOKENS = 1, 2
GROUP = "[SEG0] [SEG1]"


@pytest.fixture(scope="module")
def network(tiny_tokenizer_dir) -> PixelLMForCausalLM:
    """Random, but quick to say its tokens in a row: answers differ by question and photo, and many hold groups."""
    network, _ = make_network(tiny_tokenizer_dir, scales=SCALES, tokens=TOKENS)
    first, second = network.codebook.ids
    with torch.no_grad():
        network.lm_head.weight[first] *= 3
        table = network.model.embed_tokens.weight
        network.lm_head.weight[second] += 1.5 * table[first] / table[first].norm()
        network.model.embed_tokens.weight[first] *= 2
    network.generation_config.eos_token_id = None  # every answer has the same length
    return network


@pytest.fixture(scope="module")
def parrot(tiny_tokenizer_dir) -> PixelLMForCausalLM:
    network, tokenizer = make_network(tiny_tokenizer_dir, scales=SCALES, tokens=TOKENS)
    teach(network, tokenizer, tokenizer(f"the thing is {GROUP} </s>", add_special_tokens=False).input_ids)
    return network


def groups(network: PixelLMForCausalLM, sequences: torch.Tensor, length: int) -> list[int]:
    """How many complete groups each answer has."""
    rows, _ = network.codebook.find_groups(sequences[:, length:])
    return [int((rows == row).sum()) for row in range(len(sequences))]


@torch.no_grad()
def teacher_forced(network, sequences, inputs, copies: int = 1) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """States that predict the new tokens, and masks, of one pass over the finished sequences without a cache."""
    length = inputs["input_ids"].shape[1]
    mask = inputs["attention_mask"].repeat_interleave(copies, 0)
    mask = torch.cat([mask, torch.ones_like(sequences[:, length:])], 1)
    index = inputs["image_index"].repeat_interleave(copies)
    output = network(
        input_ids=sequences, attention_mask=mask, pixel_values=inputs["pixel_values"], valid_hw=inputs["valid_hw"],
        image_index=index,
    )  # fmt: skip
    masks = torch.cat(output["mask_logits"])  # images in order, as query_index
    of_rows = [masks[output["query_index"] == row] for row in range(len(sequences))]
    return output["last_hidden_state"][:, length - 1 : -1], of_rows


def assert_is_teacher_forced(network, output: PixelLMGenerateOutput, inputs, copies: int = 1) -> None:
    states, masks = teacher_forced(network, output.sequences, inputs, copies)
    written = output.states.any(-1)  # a row that has ended has none
    assert torch.allclose(output.states[written], states[written], atol=1e-4)
    for found, expected in zip(output.mask_logits, masks, strict=True):
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("photos", [PHOTOS, PHOTOS[:1]], ids=["a photo for each question", "one photo for all"])
def test_a_batch_answers_as_each_question_alone(network, photos):
    inputs = network.processor(images=photos, text=QUESTIONS)
    length = inputs["input_ids"].shape[1]
    assert not inputs["attention_mask"].all(), "some rows are padded"
    batch = network.generate(**inputs, max_new_tokens=24)
    assert sum(groups(network, batch.sequences, length)) >= 2
    for row, question in enumerate(QUESTIONS):
        alone_inputs = network.processor(images=photos[row % len(photos)], text=question)
        alone = network.generate(**alone_inputs, max_new_tokens=24)
        ids = alone.sequences[0, alone_inputs["input_ids"].shape[1] :]
        assert batch.sequences[row, length:].tolist() == ids.tolist()
        assert torch.allclose(batch.states[row], alone.states[0], atol=1e-4)
        assert torch.allclose(batch.mask_logits[row], alone.mask_logits[0], atol=1e-4)
    assert_is_teacher_forced(network, batch, inputs)


def test_answers_of_text_alone(network):
    inputs = network.processor(text=QUESTIONS)
    batch = network.generate(**inputs, max_new_tokens=12)
    assert batch.mask_logits is None
    for row, question in enumerate(QUESTIONS):
        alone_inputs = network.processor(text=question)
        alone = network.generate(**alone_inputs, max_new_tokens=12).sequences[0]
        assert batch.sequences[row, -12:].tolist() == alone[-12:].tolist()


def test_questions_without_a_photo_in_a_batch_with_one(parrot):
    """They get no mask, whatever they say."""
    processor = parrot.processor
    messages = [[{"role": "user", "content": [{"type": "text", "text": "What?"}]}] for _ in range(2)]
    messages[1][0]["content"].append({"type": "image", "image": PHOTOS[0]})
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    output = parrot.generate(**inputs)
    assert [len(masks) for masks in output.mask_logits] == [0, 1]
    without, shown = processor.replies(output, [(0, 0), (40, 60)], prompt_length=inputs["input_ids"].shape[1])
    assert without.text == shown.text == f"the thing is {GROUP}"
    assert (without.targets, len(shown.targets)) == ([], 1)
    only_text = processor(text="What?")
    reply = processor.replies(parrot.generate(**only_text), [(0, 0)], prompt_length=only_text["input_ids"].shape[1])[0]
    assert reply.targets == []
    assert reply.reason == "the question was about no image, so there are no masks"


def test_sampled_answers_have_their_own_masks(network):
    inputs = network.processor(images=PHOTOS, text=QUESTIONS)
    torch.manual_seed(0)
    output = network.generate(**inputs, do_sample=True, num_return_sequences=2, temperature=0.5, max_new_tokens=24)
    assert len(output.sequences) == len(output.mask_logits) == 6
    assert len({tuple(row) for row in output.sequences.tolist()}) == 6
    assert sum(map(len, output.mask_logits)) >= 2
    assert_is_teacher_forced(network, output, inputs, copies=2)


@pytest.mark.parametrize(("beams", "returned"), [(3, 1), (4, 2)])
@pytest.mark.parametrize("sample", [False, True])
def test_beams_have_the_masks_of_the_finished_sequences(network, beams, returned, sample):
    """A beam that wins may come from several beams before: states are gathered along its way."""
    inputs = network.processor(images=PHOTOS[:2], text=QUESTIONS[:2])
    torch.manual_seed(0)
    output = network.generate(
        **inputs, num_beams=beams, num_return_sequences=returned, do_sample=sample, max_new_tokens=24
    )
    assert len(output.sequences) == 2 * returned
    assert any(len(set(row)) > 1 for row in output.others["beam_indices"].tolist()), "beams change on the way"
    assert sum(map(len, output.mask_logits)) >= 1
    assert_is_teacher_forced(network, output, inputs, copies=returned)


def test_beams_that_end_early(parrot):
    inputs = parrot.processor(images=PHOTOS[:2], text=QUESTIONS[:2])
    expected = parrot.generate(**inputs)
    output = parrot.generate(**inputs, num_beams=3, max_new_tokens=24)
    assert parrot.processor.batch_decode(output.sequences) == parrot.processor.batch_decode(expected.sequences)
    assert [len(masks) for masks in output.mask_logits] == [1, 1]
    for found, wanted in zip(output.mask_logits, expected.mask_logits, strict=True):
        assert torch.allclose(found, wanted, atol=1e-4)


def test_answers_end_at_the_end_mark(parrot):
    processor = parrot.processor
    inputs = processor(images=PHOTOS[0], text="What?")
    length = inputs["input_ids"].shape[1]
    whole = parrot.generate(**inputs)
    assert whole.sequences[0, -1] == processor.tokenizer.eos_token_id
    assert processor.decode(whole.sequences[0, length:]) == f"the thing is {GROUP}"
    cut = parrot.generate(**inputs, max_new_tokens=4)
    assert cut.sequences[0].tolist() == whole.sequences[0, : length + 3].tolist(), "no group is begun without room"
    torn = parrot.generate(**inputs, max_new_tokens=4, codebook_fast_path=False)
    assert torn.sequences[0].tolist() == whole.sequences[0, : length + 4].tolist()
    assert len(cut.mask_logits[0]) == len(torn.mask_logits[0]) == 0, "the group is not complete"


def test_end_and_padding_can_be_others(parrot):
    """One row ends at a token of one's own, and is padded with another until the last one ends."""
    processor, tokenizer = parrot.processor, parrot.processor.tokenizer
    (stop,) = tokenizer.convert_tokens_to_ids(["[SEG1]"])
    inputs = processor(images=PHOTOS[0], text=["What?", "Where?"])
    output = parrot.generate(**inputs, eos_token_id=[stop, tokenizer.eos_token_id], pad_token_id=5)
    assert output.sequences[:, -1].tolist() == [stop, stop]
    assert [len(masks) for masks in output.mask_logits] == [1, 1]
    short = inputs["input_ids"].shape[1] + 3
    forced = parrot.generate(
        **inputs, eos_token_id=[*tokenizer.convert_tokens_to_ids(["[SEG0]"])], pad_token_id=5, max_new_tokens=9
    )
    assert forced.sequences.shape[1] <= short + 1


@pytest.mark.parametrize("padding", [None, 0, 5])
def test_replies_end_where_the_answer_does(parrot, padding):
    """Of two answers with ends of their own, the shorter one is padded with whatever the caller says."""
    processor, tokenizer = parrot.processor, parrot.processor.tokenizer
    inputs = processor(images=PHOTOS[0], text=["What?", "Where?"])
    length = inputs["input_ids"].shape[1]
    (stop,) = tokenizer.convert_tokens_to_ids(["[SEG1]"])
    settings = {"eos_token_id": [stop], **({} if padding is None else {"pad_token_id": padding})}
    output = parrot.generate(**inputs, **settings)
    padded = torch.full((2, 3), tokenizer.eos_token_id if padding is None else padding)
    output["sequences"] = torch.cat([output.sequences, padded], 1)  # as if a third answer were longer
    for reply in processor.replies(output, [(40, 60)] * 2, prompt_length=length):
        assert (reply.text, reply.reason, len(reply.targets)) == (f"the thing is {GROUP}", None, 1)
        assert reply.output_ids[-1] == stop
    options = {"generation_config": GenerationConfig(eos_token_id=stop, pad_token_id=5, max_new_tokens=3)}
    (cut, _) = processor.replies(parrot.generate(**inputs, **options), [(40, 60)] * 2, prompt_length=length)
    assert "the answer was cut after 3 tokens" in cut.reason


def test_what_was_encoded_can_be_asked_again(network):
    inputs = network.processor(images=PHOTOS[:2], text=QUESTIONS[:2])
    with torch.no_grad():
        features = network.encode_images(inputs["pixel_values"], inputs["valid_hw"])
    assert isinstance(features, VisionFeatures)
    expected = network.generate(**inputs, max_new_tokens=12)
    words = {name: inputs[name] for name in ("input_ids", "attention_mask", "image_index")}
    found = network.generate(**words, vision_features=features, max_new_tokens=12)
    assert torch.equal(found.sequences, expected.sequences)
    assert all(torch.equal(*pair) for pair in zip(found.mask_logits, expected.mask_logits, strict=True))


def test_a_static_cache_gives_the_same(network):
    inputs = network.processor(images=PHOTOS, text=QUESTIONS)
    expected = network.generate(**inputs, max_new_tokens=24)
    found = network.generate(**inputs, max_new_tokens=24, cache_implementation="static")
    assert torch.equal(found.sequences, expected.sequences)
    for static, dynamic in zip(found.mask_logits, expected.mask_logits, strict=True):
        assert torch.allclose(static, dynamic, atol=1e-4)


def test_penalties_see_words_only(network):
    """Placeholders have no row in the vocabulary."""
    inputs = network.processor(images=PHOTOS, text=QUESTIONS)
    output = network.generate(**inputs, repetition_penalty=1.3, no_repeat_ngram_size=4, max_new_tokens=12)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(output.sequences[:, :length], inputs["input_ids"])
    assert (output.sequences[:, length:] >= 0).all()
    assert_is_teacher_forced(network, output, inputs)


def test_a_streamer_gets_every_token(parrot):
    inputs = parrot.processor(images=PHOTOS[0], text="What?")
    written = io.StringIO()
    with redirect_stdout(written):
        parrot.generate(**inputs, streamer=TextStreamer(parrot.processor))
        parrot.generate(**inputs, streamer=TextStreamer(parrot.processor, skip_prompt=True))
    assert " ".join(written.getvalue().split()).endswith(f"ASSISTANT: the thing is {GROUP} the thing is {GROUP}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prompt_lookup_num_tokens": 3},
            "^assisted generation gives no masks.*greedy search, sampling or beam search",
        ),
        ({"assistant_model": "itself"}, "^assisted generation gives no masks"),
        ({"prefill_chunk_size": 16}, "^prefill_chunk_size: a prompt with an image in it is read at once"),
    ],
)
def test_ways_of_decoding_without_a_state_for_each_token_are_refused(parrot, options, message):
    inputs = parrot.processor(images=PHOTOS[0], text="What?")
    given = {name: parrot if value == "itself" else value for name, value in options.items()}
    with pytest.raises(InputError, match=message):
        parrot.generate(**inputs, **given)


def test_one_state_of_each_token_is_kept(network):
    inputs = network.processor(images=PHOTOS[0], text="What?")
    output = network.generate(**inputs, max_new_tokens=12)
    assert output.states.shape == (1, 12, network.config.text_config.hidden_size)
    assert not output.others
    asked = network.generate(**inputs, max_new_tokens=12, output_hidden_states=True, output_scores=True)
    assert len(asked.others["hidden_states"]) == len(asked.others["scores"]) == 12
    assert torch.equal(asked.others["hidden_states"][3][-1][:, -1], asked.states[:, 3])
    assert torch.allclose(asked.states, output.states, atol=1e-5)


def test_a_kept_state_does_not_keep_its_whole_prompt(network):
    """A view of one position would hold the states of all positions in memory."""
    kept = []
    update = network._update_model_kwargs_for_generation

    def look(outputs, model_kwargs, **options):
        found = update(outputs, model_kwargs, **options)
        kept.append(found["new_states"][-1])
        return found

    network._update_model_kwargs_for_generation = look
    try:
        network.generate(**network.processor(images=PHOTOS[0], text="What?"), max_new_tokens=3)
    finally:
        del network._update_model_kwargs_for_generation
    assert [state.untyped_storage().nbytes() for state in kept] == [state.nbytes for state in kept]


def test_the_forward_pass_takes_what_the_processor_gives(parrot):
    processor = parrot.processor
    inputs = processor(images=PHOTOS[:2], text=QUESTIONS[:2])
    with torch.no_grad():
        output = parrot(**inputs)
    assert output["logits"].shape == (*inputs["input_ids"].shape, parrot.config.text_config.vocab_size)
    assert [len(masks) for masks in output["mask_logits"]] == [0, 0], "a question has no group"
    answered = [{"role": "user", "content": [{"type": "image", "image": PHOTOS[0]}, {"type": "text", "text": "What?"}]},
                {"role": "assistant", "content": "It {seg} and {seg}."}]  # fmt: skip
    inputs = processor.apply_chat_template(answered, tokenize=True, return_dict=True)
    with torch.no_grad():
        output = parrot(**inputs)
    (masks,) = processor.post_process_masks(output["mask_logits"], [PHOTOS[0].shape[:2]])
    assert masks.shape == (2, 40, 60)


def test_placeholders_without_photos(parrot):
    inputs = parrot.processor(images=PHOTOS[0], text="What?")
    assert (inputs["input_ids"] == IMAGE_TOKEN_ID).any()
    with pytest.raises(ValueError, match="input_ids has image placeholders, but no images were given"):
        parrot.generate(inputs["input_ids"])


def test_the_sequences_alone_where_a_pipeline_asks_for_them(network):
    inputs = network.processor(images=PHOTOS[0], text="What?")
    whole = network.generate(**inputs, max_new_tokens=5)
    assert torch.equal(network.generate(**inputs, max_new_tokens=5, return_dict_in_generate=False), whole.sequences)


def test_image_placeholders_are_no_labels(network):
    inputs = network.processor(images=PHOTOS[0], text="What?")
    ids = inputs["input_ids"]
    found = network(**inputs, labels=ids).loss
    assert torch.equal(found, network(**inputs, labels=ids.masked_fill(ids == IMAGE_TOKEN_ID, -100)).loss)
