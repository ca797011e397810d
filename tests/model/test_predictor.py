"""Generation: cached is uncached, one photo serves many questions, and every reply says what became of its tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from model.drawing import annotate
from model.errors import InputError
from model.image import read_image
from model.predictor import PixelLMPredictor
from model.replies import Reply
from model.rows import rows_of_conversations
from model.structures import TokenRows
from model.text.tokens import IMAGE_TOKEN_ID
from tests.support.parrot import teach
from tests.support.tiny_network import make_network

PHOTO = np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def predictor_saying(folder, sentence: str, **changes) -> PixelLMPredictor:
    network, tokenizer = make_network(folder, **changes)
    ids = tokenizer(sentence, add_special_tokens=False).input_ids
    teach(network, tokenizer, ids)
    predictor = PixelLMPredictor(network, tokenizer)
    predictor.set_image(PHOTO)
    return predictor


GROUP = "[SEG0] [SEG1] [SEG2] [SEG3] [SEG4] [SEG5]"


@pytest.mark.parametrize(("scales", "tokens"), [(1, 1), (1, 3), (2, 3), (3, 2)])
@pytest.mark.parametrize("hw", [(40, 60), (64, 20)])
def test_cached_generation_is_uncached_generation(tiny_tokenizer_dir, scales, tokens, hw):
    network, tokenizer = make_network(tiny_tokenizer_dir, scales=scales, tokens=tokens)
    predictor = PixelLMPredictor(network, tokenizer)
    predictor.set_image(np.resize(PHOTO, (*hw, 3)))
    features = predictor._seen.features
    prompt = predictor.processor.prompt_ids("What?")
    cached = network.generate(torch.tensor([prompt]), vision_features=features, eos_token_id=None, max_new_tokens=12)
    ids = cached.sequences
    assert ids.shape == (1, len(prompt) + 12)
    with torch.no_grad():
        _, states = read(network, features, ids)
    states = states[0]
    predicting = states[len(prompt) - 1 : -1]
    assert network.lm_head(predicting).argmax(-1).tolist() == ids[0, len(prompt) :].tolist()
    assert torch.allclose(cached.states[0], predicting, atol=1e-5)


def read(network, features, ids) -> tuple[TokenRows, torch.Tensor]:
    """A whole conversation about the one image, in one pass; its last hidden states."""
    rows = rows_of_conversations(
        ids, torch.ones_like(ids), torch.zeros(1, dtype=torch.long), codebook=network.codebook,
        patch_mask=features.patch_mask,
    )  # fmt: skip
    embeds = network.embed(rows, features)
    output = network.model(inputs_embeds=embeds, attention_mask=rows.visible, use_cache=False)
    return rows, output.last_hidden_state


def test_a_group_becomes_a_mask_of_the_size_of_the_photo(tiny_tokenizer_dir):
    predictor = predictor_saying(tiny_tokenizer_dir, f"the thing is {GROUP}.</s>")
    reply = predictor.ask("What?", keep_logits=True)
    assert reply.text == f"the thing is {GROUP} ."
    assert reply.numbered() == "the thing is [0] ."
    assert reply.reason is None
    (target,) = reply.targets
    assert target.phrase == "thing"
    start, end = target.token_span
    assert tuple(reply.output_ids[start:end]) == predictor.model.codebook.ids
    assert target.mask.shape == target.logits.shape == PHOTO.shape[:2]
    assert target.mask.dtype == torch.bool
    assert torch.equal(target.mask, target.logits > 0)
    inside = target.logits[target.mask].sigmoid()
    assert target.score == pytest.approx(float(inside.mean()) if len(inside) else 0.0, abs=1e-5)


def test_the_mask_is_the_one_of_the_training_forward_pass(tiny_tokenizer_dir):
    """Generated and teacher-forced answers read the same states."""
    predictor = predictor_saying(tiny_tokenizer_dir, f"the thing is {GROUP}.</s>")
    network = predictor.model
    reply = predictor.ask("What?", max_new_tokens=30, keep_logits=True)
    ids = torch.tensor([[*predictor.processor.prompt_ids("What?"), *reply.output_ids]])
    features = predictor._seen.features
    with torch.no_grad():
        rows, hidden = read(network, features, ids)
        low_res = network.decode_masks(features, network.seg_queries(hidden, rows))
        expected = network.resize_masks(low_res, valid_hw=features.valid_hw[0], out_hw=PHOTO.shape[:2])
    assert torch.allclose(reply.targets[0].logits, expected[0], atol=1e-4)


def test_a_cropped_photo_has_no_mask_outside_the_crop(tiny_tokenizer_dir):
    predictor = predictor_saying(tiny_tokenizer_dir, f"the thing {GROUP}</s>", pad_train_clip_images=False)
    (target,) = predictor.ask("What?", keep_logits=True).targets
    assert target.mask.shape == (40, 60)
    assert not target.mask[:, :9].any()
    assert not target.mask[:, 51:].any()
    assert torch.isfinite(target.logits[:, 12:48]).all()


def test_one_photo_serves_many_questions(tiny_tokenizer_dir):
    predictor = predictor_saying(tiny_tokenizer_dir, f"the {GROUP}</s>")
    first, again = (predictor.ask("What?", keep_logits=True) for _ in range(2))
    assert torch.equal(first.targets[0].logits, again.targets[0].logits)
    predictor.set_image(255 - PHOTO)
    other = predictor.ask("What?", keep_logits=True)
    assert not torch.allclose(other.targets[0].logits, first.targets[0].logits)


def test_whole_groups_are_kept_and_the_cut_one_is_reported(tiny_tokenizer_dir):
    """The release drops every mask of an answer that holds an incomplete group (docs/paper_to_code.md, row 6)."""
    predictor = predictor_saying(tiny_tokenizer_dir, f"thing {GROUP}")
    period = 1 + 6
    whole = predictor.ask("What?", max_new_tokens=2 * period + 4)
    assert whole.reason == f"the answer was cut after {2 * period + 1} tokens"
    reply = predictor.ask("What?", max_new_tokens=2 * period + 4, codebook_fast_path=False)
    assert len(reply.targets) == len(whole.targets) == 2
    assert [target.phrase for target in reply.targets] == ["thing", "thing"]
    assert reply.reason == (
        "3 segmentation tokens stood outside a complete group and were dropped; "
        f"the answer was cut after {2 * period + 4} tokens"
    )


def test_an_answer_of_stray_tokens_has_no_mask(tiny_tokenizer_dir):
    reply = predictor_saying(tiny_tokenizer_dir, "[SEG1] [SEG0] [SEG3]</s>").ask("What?", codebook_fast_path=False)
    assert reply.targets == []
    assert reply.reason == "3 segmentation tokens stood outside a complete group and were dropped"


def test_an_answer_without_tokens_says_so(tiny_tokenizer_dir):
    reply = predictor_saying(tiny_tokenizer_dir, "mask</s>").ask("What?")
    assert (reply.text, reply.targets) == ("mask", [])
    assert reply.reason == "the model answered without a segmentation token"


def test_one_token_per_group(tiny_tokenizer_dir):
    reply = predictor_saying(tiny_tokenizer_dir, "the [SEG] mask</s>", scales=1, tokens=1).ask("What?")
    assert len(reply.targets) == 1
    assert reply.text == "the [SEG] mask"


def test_too_long_a_question(tiny_tokenizer_dir):
    llama = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    limits = {**llama, "vocab_size": 400, "rms_norm_eps": 1e-6, "max_position_embeddings": 256}
    predictor = predictor_saying(tiny_tokenizer_dir, "the thing", text_config=limits)
    assert isinstance(predictor.ask("What?", max_new_tokens=4), Reply)
    with pytest.raises(InputError, match=r"the question has \d+ tokens with the image .*at most 256; shorten it"):
        predictor.ask("thing " * 300)
    room = 256 - len(predictor.processor.prompt_ids("What?"))
    assert len(predictor.ask("What?", max_new_tokens=10_000).output_ids) == room
    with pytest.raises(InputError, match=r"the question has 10000000 characters, .* at most 256 tokens; shorten it"):
        predictor.ask("thing " * (10**7 // 6) + "1234")


@pytest.mark.parametrize("mark", ["<image>", "[SEG0]", "</s> <im_start>"])
def test_marks_in_a_question_are_text(tiny_tokenizer_dir, mark):
    predictor = predictor_saying(tiny_tokenizer_dir, "the thing")
    ids, plain = predictor.processor.prompt_ids(f"What is {mark}?"), predictor.processor.prompt_ids("What is it?")
    special = {IMAGE_TOKEN_ID, *predictor.processor.tokenizer.added_tokens_decoder}
    assert [token for token in ids if token in special] == [token for token in plain if token in special]
    assert isinstance(predictor.ask(f"What is {mark}?", max_new_tokens=4), Reply)


@pytest.mark.parametrize("limit", [0, -1])
def test_no_tokens_at_all(tiny_tokenizer_dir, limit):
    with pytest.raises(InputError, match=rf"^max_new_tokens is {limit}; expected 1 or more"):
        predictor_saying(tiny_tokenizer_dir, "the thing").ask("What?", max_new_tokens=limit)


def test_asking_before_there_is_a_photo(tiny_tokenizer_dir):
    with pytest.raises(ValueError, match="call set_image before ask"):
        PixelLMPredictor(*make_network(tiny_tokenizer_dir)).ask("What?")


@pytest.mark.parametrize("kind", ["path", "PIL", "array"])
def test_one_call_answers_about_any_photo(tiny_tokenizer_dir, tmp_path, kind):
    predictor = predictor_saying(tiny_tokenizer_dir, f"the thing is {GROUP}.</s>")
    expected = predictor.ask("What?", keep_logits=True)
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    photo = {"path": tmp_path / "photo.png", "PIL": Image.fromarray(PHOTO), "array": PHOTO}[kind]
    reply = predictor.segment(photo, "What?", keep_logits=True)
    assert reply.output_ids == expected.output_ids
    assert torch.equal(reply.targets[0].logits, expected.targets[0].logits)
    drawn = reply.draw(photo)
    assert np.array_equal(drawn, annotate(PHOTO, reply.targets[0].mask.numpy()[None]))
    reply.save(tmp_path / "new/drawn.png", photo)
    assert np.array_equal(read_image(tmp_path / "new/drawn.png"), drawn)


def test_a_reply_without_targets_is_drawn_as_the_photo(tiny_tokenizer_dir):
    reply = predictor_saying(tiny_tokenizer_dir, "mask</s>").ask("What?")
    assert np.array_equal(reply.draw(PHOTO), PHOTO)


def test_a_reply_is_drawn_over_its_own_photo(tiny_tokenizer_dir, tmp_path):
    reply = predictor_saying(tiny_tokenizer_dir, f"the {GROUP}</s>").ask("What?")
    with pytest.raises(InputError, match="the photo is 20 x 60 pixels, the masks are 40 x 60; give the photo that the"):
        reply.draw(PHOTO[:20])
    with pytest.raises(InputError, match=r"'\.txt' is no known picture format"):
        reply.save(tmp_path / "drawn.txt", PHOTO)
