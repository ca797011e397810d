"""Encoding and collating: counts agree by construction, and nothing is cut in two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.errors import InputError
from model.text.tokenizer import add_codebook
from model.text.tokens import IGNORE_INDEX, IMAGE_TOKEN_ID, seg_text
from tests.support.tiny_data import H, W, draw_photo
from utils.data.collate import Collator, collate
from utils.data.records import RawSample, Turn

NUM_IMAGE_TOKENS = 16


def masks_of(count: int) -> np.ndarray:
    """Mask i has i + 1 pixels."""
    masks = np.zeros((count, H * W), dtype=bool)
    for index in range(count):
        masks[index, : index + 1] = True
    return masks.reshape(count, H, W)


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    draw_photo(path)
    return path


def make_sample(photo, conversations, count=5) -> RawSample:
    turns = tuple(tuple(Turn(*turn) for turn in conversation) for conversation in conversations)
    return RawSample("tiny/photo", photo, turns, masks_of(count))


words = st.text(alphabet="abc xyz,.{}?é", max_size=25)


@st.composite
def turns(draw):
    targets = draw(st.lists(st.integers(0, 4), max_size=4))
    parts = [draw(words).replace("{seg}", "") + " {seg}" for _ in targets]
    answer = draw(st.sampled_from(["", ", ", " and "])).join(parts) + draw(st.sampled_from([".", "", " done."]))
    return Turn(draw(words), answer if answer.strip() else "Nothing.", tuple(targets))


conversations = st.lists(st.lists(turns(), min_size=1, max_size=3), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conversations, st.integers(120, 400), st.sampled_from([(1, 1), (1, 3), (2, 3)]))
def test_counts_agree_by_construction(make_encoder, photo, conversations, budget, shape):
    """Whatever is said, and whatever is dropped: one mask per complete group, in reading order."""
    encoder = make_encoder(*shape, model_max_length=budget)
    raw = RawSample("tiny/photo", photo, tuple(map(tuple, conversations)), masks_of(5))
    try:
        sample = encoder(raw)
    except InputError as err:
        assert "--model_max_length" in str(err)  # noqa: PT017
        return
    batch = collate([sample, sample], encoder.codebook, encoder.tokenizer.pad_token_id)

    assert encoder.codebook.count_stray(batch.input_ids) == 0, "no group is cut"
    query_index, _ = encoder.codebook.find_groups(batch.input_ids)
    assert len(query_index) == sum(map(len, batch.masks))
    assert max(map(len, sample.input_ids)) <= budget
    assert all((ids == IMAGE_TOKEN_ID).sum() == NUM_IMAGE_TOKENS for ids in sample.input_ids)

    dropped = sum(map(len, conversations)) - sample.num_dropped_turns
    assert 0 < dropped <= sum(map(len, conversations))
    kept = longest_fits(make_encoder(*shape, model_max_length=10_000), raw, budget)
    named = [target + 1 for turns in kept for turn in turns for target in turn.targets]
    assert sample.masks.sum(dim=(1, 2)).tolist() == named


def longest_fits(roomy, raw, budget):
    """The longest run of first turns that fits, of each conversation that has one, by brute force.

    Args:
        roomy: an encoder that drops no turn.
    """
    for turns in raw.conversations:
        for count in range(len(turns), 0, -1):
            (ids,) = roomy(replace(raw, conversations=(turns[:count],))).input_ids
            if len(ids) <= budget:
                yield turns[:count]
                break


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conversations, st.sampled_from(["llava_v1", "llava_llama_2"]), st.booleans())
def test_labels_spell_the_answers_and_nothing_else(make_encoder, photo, conversations, conv_type, with_photo):
    """Whatever is said: supervised are the answers of the kept turns, each with its end mark, token by token."""
    encoder = make_encoder(conv_type=conv_type, model_max_length=4000)
    raw = RawSample("tiny/photo", photo, tuple(map(tuple, conversations)), masks_of(5))
    if not with_photo:
        silent = [[replace(turn, answer=turn.answer.replace("{seg}", "it"), targets=()) for turn in turns]
                  for turns in conversations]  # fmt: skip
        raw = RawSample("tiny/text", None, tuple(map(tuple, silent)), np.zeros((0, 0, 0), dtype=bool))
    sample = encoder(raw)
    tokenizer, group = encoder.tokenizer, seg_text(encoder.codebook.scales, encoder.codebook.tokens)
    for turns, ids, labels in zip(raw.conversations, sample.input_ids, sample.labels, strict=True):
        said = labels != IGNORE_INDEX
        assert torch.equal(ids[said], labels[said])
        assert not torch.isin(ids[~said], torch.tensor(encoder.codebook.ids)).any()
        assert not (ids[said] == IMAGE_TOKEN_ID).any()
        assert (ids == IMAGE_TOKEN_ID).any() == with_photo
        expected = "".join(turn.answer.replace("{seg}", group) + "</s>" for turn in turns)
        assert squeeze(tokenizer.decode(labels[said])) == squeeze(expected)


def squeeze(text: str) -> str:
    """White space next to an added token vanishes."""
    return "".join(text.split())


@pytest.mark.parametrize("conv_type", ["llava_v1", "llava_llama_2"])
def test_only_the_assistant_is_supervised(make_encoder, photo, conv_type):
    encoder = make_encoder(conv_type=conv_type)
    raw = make_sample(photo, [[("what is this", "the thing is {seg}.", (0,)), ("please", "mask {seg} {seg}", (1, 2))]])
    sample = encoder(raw)
    ids, labels = sample.input_ids[0], sample.labels[0]
    said = labels != IGNORE_INDEX
    assert torch.equal(ids[said], labels[said])
    text = encoder.tokenizer.decode(ids[said])
    for expected in ("the thing is", "mask"):
        assert expected in text
    for prompt_words in ("what", "please", "USER", "INST", "ASSISTANT"):
        assert prompt_words not in text
    assert torch.isin(ids[~said], torch.tensor(encoder.codebook.ids)).sum() == 0


def test_question_and_image_mark(encoder, photo):
    sample = encoder(make_sample(photo, [[(" What is it", "{seg}.", (0,))]]))
    start = int((sample.input_ids[0] == IMAGE_TOKEN_ID).nonzero()[0])
    tokens = encoder.tokenizer.convert_ids_to_tokens(sample.input_ids[0][start + NUM_IMAGE_TOKENS :].tolist())
    assert encoder.tokenizer.convert_ids_to_tokens([int(sample.input_ids[0][start - 1])]) == ["<im_start>"]
    assert tokens[0] == "<im_end>"
    text = encoder.tokenizer.decode(sample.input_ids[0][start + NUM_IMAGE_TOKENS + 1 :])
    assert text.startswith("What is it"), "white space next to an added token vanishes, as in the release"


def test_last_turns_go_first(make_encoder, photo):
    turns = [("a", "{seg}", (0,)), ("b", "{seg} {seg}", (1, 1)), ("c", "{seg}", (2,))]
    full = make_encoder()(make_sample(photo, [turns]))
    assert full.masks.sum(dim=(1, 2)).tolist() == [1, 2, 2, 3], "a mask named twice stands twice"
    two = make_encoder(model_max_length=len(full.input_ids[0]) - 1)(make_sample(photo, [turns, [("d", "No.", ())]]))
    assert two.masks.sum(dim=(1, 2)).tolist() == [1, 2, 2]
    assert (two.num_dropped_turns, len(two.input_ids)) == (1, 2)
    assert torch.equal(two.input_ids[0], full.input_ids[0][: len(two.input_ids[0])])


def test_a_conversation_that_is_too_long_goes_with_its_masks(make_encoder, photo):
    long = ("a " * 200, "{seg}", (0,))
    encoder = make_encoder(model_max_length=250)
    sample = encoder(make_sample(photo, [[long], [("b", "{seg}", (1,))]]))
    assert (len(sample.input_ids), sample.num_dropped_turns, sample.masks.sum().item()) == (1, 1, 2)
    with pytest.raises(InputError, match=r"tiny/photo: none of its 1 .*--model_max_length 250"):
        encoder(make_sample(photo, [[long]]))
    unshortened = encoder(make_sample(photo, [[long]]), truncate=False)
    assert (len(unshortened.masks), unshortened.num_dropped_turns) == (1, 0)


def test_masks_follow_the_crop(make_encoder, photo):
    raw = make_sample(photo, [[("a", "{seg}", (0,))]])
    padded, cropped = make_encoder()(raw), make_encoder(pad_train_clip_images=False)(raw)
    assert (padded.orig_hw, cropped.orig_hw) == ((H, W), (H, H))
    assert padded.valid_hw == (37, 56)
    assert tuple(cropped.masks.shape) == (1, H, H)
    assert padded.pixel_values.shape == cropped.pixel_values.shape == (3, 56, 56)


def test_ignored_pixels_follow_the_crop(make_encoder, photo):
    ignore = np.zeros((H, W), dtype=bool)
    ignore[:, : W // 2] = True
    raw = replace(make_sample(photo, [[("a", "{seg}", (0,))]]), ignore=ignore)
    padded, cropped = make_encoder()(raw), make_encoder(pad_train_clip_images=False)(raw)
    assert (padded.ignore.sum(), tuple(padded.ignore.shape)) == (H * W // 2, (H, W))
    assert tuple(cropped.ignore.shape) == (H, H)
    batch = collate([padded, make_encoder()(make_sample(photo, [[("a", "{seg}", (0,))]]))], make_encoder().codebook, 0)
    assert torch.equal(batch.ignore[0], padded.ignore)
    assert batch.ignore[1] is None


def test_masks_of_another_size_are_refused(encoder, tmp_path):
    draw_photo(tmp_path / "other.png", (W, H))
    with pytest.raises(InputError, match=r"tiny/photo: its masks are \(40, 60\), its photo .* \(60, 40\)"):
        encoder(make_sample(tmp_path / "other.png", [[("a", "{seg}", (0,))]]))


@pytest.mark.parametrize("mark", ["[SEG0]", "<image>", "<im_start>", "</s>"])
def test_marks_in_annotations_are_text(encoder, photo, mark):
    for question, answer in ((f"a {mark}", "{seg}"), ("a", f"{{seg}} {mark}")):
        sample = encoder(make_sample(photo, [[(question, answer, (0,))]]))
        ids = sample.input_ids[0]
        assert (ids == IMAGE_TOKEN_ID).sum() == encoder.config.num_image_tokens
        assert len(encoder.codebook.find_groups(ids[None])[0]) == 1
        assert encoder.codebook.count_stray(ids[None]) == 0
        assert (ids == encoder.tokenizer.eos_token_id).sum() == 1


def test_batch(encoder, photo):
    one = encoder(make_sample(photo, [[("a", "{seg}", (3,))], [("a longer question", "No.", ())]]))
    two = encoder(make_sample(photo, [[("a", "{seg} {seg}", (0, 1))]]))
    pad = encoder.tokenizer.pad_token_id
    batch = Collator(encoder.config, pad_token_id=pad)([one, two])
    assert batch.pixel_values.shape == (2, 3, 56, 56)
    assert batch.image_index.tolist() == [0, 0, 1]
    assert batch.valid_hw.tolist() == [[37, 56], [37, 56]]
    assert [len(masks) for masks in batch.masks] == [1, 2]
    for row, ids in enumerate([*one.input_ids, *two.input_ids]):
        assert torch.equal(batch.input_ids[row, : len(ids)], ids)
        assert batch.attention_mask[row].sum() == len(ids)
        assert (batch.input_ids[row, len(ids) :] == pad).all()
        assert (batch.labels[row, len(ids) :] == IGNORE_INDEX).all()
    assert batch.orig_hw == [(H, W), (H, W)]


def test_collate_names_the_sample_whose_counts_disagree(encoder, photo):
    sample = encoder(make_sample(photo, [[("a", "{seg}", (0,))]]))
    sample.masks = torch.cat([sample.masks, sample.masks])
    with pytest.raises(ValueError, match="tiny/photo: 1 complete token groups but 2 masks"):
        collate([sample], encoder.codebook, 0)


def test_codebook_is_the_tokenizers(encoder):
    assert add_codebook(encoder.tokenizer, scales=2, tokens=3) == encoder.codebook
