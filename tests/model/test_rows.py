"""Conversations that share the prefix of their image are read as if each stood alone, in fewer tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.attention import check_shared_prefix
from model.errors import InputError
from model.image import patch_valid_mask
from model.losses import LossWeights, pixellm_loss
from model.rows import divide_into_rows, rows_of_conversations, rows_with_shared_prefixes
from model.structures import SHARED, Batch, TokenRows
from model.text.tokens import IGNORE_INDEX, IMAGE_TOKEN_ID
from tests.support.tiny_network import make_batch, make_network

TALKS = (
    (0, "Where is the cup?", "It is {seg}."),
    (0, "Where is the plate and the fork?", "Here {seg} and there {seg}."),
    (0, "Why?", "Nobody knows."),
    (1, "What drinks?", "This {seg} drinks."),
    (2, "Where is the cup?", "It is {seg}."),
    (2, "Where is the cup?", "At {seg}."),
)
PHOTOS = ((40, 60), (60, 30), (50, 50))
LARGEST = 1e-5  # of the largest entry


@pytest.fixture(scope="module")
def network_and_tokenizer(tiny_tokenizer_dir):
    return make_network(tiny_tokenizer_dir)


@pytest.fixture
def network(network_and_tokenizer):
    return network_and_tokenizer[0].requires_grad_(True)


@pytest.fixture
def batch(network_and_tokenizer) -> Batch:
    return make_batch(*network_and_tokenizer, TALKS, photo_hw=PHOTOS)


def lay_out(network, batch: Batch) -> tuple[TokenRows, TokenRows]:
    """Apart and with shared prefixes."""
    config = network.config
    patch_mask = patch_valid_mask(batch.valid_hw, size=config.covered_size, grid=config.llm_grid).flatten(1)
    lengths = batch.attention_mask.sum(1).tolist()
    unpadded = [[row[:n] for row, n in zip(rows, lengths, strict=True)] for rows in (batch.input_ids, batch.labels)]
    known = {"codebook": network.codebook, "patch_mask": patch_mask}
    apart = rows_of_conversations(
        batch.input_ids, batch.attention_mask, batch.image_index, labels=batch.labels, **known
    )
    return apart, rows_with_shared_prefixes(*unpadded, batch.image_index.tolist(), pad_token_id=0, **known)


def train(network, batch: Batch, rows: TokenRows):
    network.zero_grad()
    batch = replace(batch, rows=rows)
    output = network(**batch.inputs())
    terms = pixellm_loss(output.loss, output.photo_logits, batch.masks, output.query_index, LossWeights())
    terms.total.backward()
    gradients = {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}
    return output, terms, gradients


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_losses_masks_and_gradients_are_those_of_rows_apart(network, batch, implementation):
    apart, shared = lay_out(network, batch)
    network.model.set_attn_implementation(implementation)
    expected, found = train(network, batch, apart), train(network, batch, shared)
    for part in ("total", "ce", "bce", "dice", "refine"):
        assert getattr(found[1], part).item() == pytest.approx(getattr(expected[1], part).item(), rel=LARGEST)
    assert torch.equal(found[0].query_index, expected[0].query_index)
    for masks, reference in zip(found[0].mask_logits, expected[0].mask_logits, strict=True):
        assert (masks - reference).abs().max() <= LARGEST * reference.abs().max()
    assert found[2].keys() == expected[2].keys()
    largest = max(gradient.abs().max() for gradient in expected[2].values())
    for name, gradient in found[2].items():
        assert (gradient - expected[2][name]).abs().max() <= LARGEST * largest, name


def test_the_states_that_predict_the_answers_are_those_of_rows_apart(network, batch):
    apart, shared = lay_out(network, batch)
    found = []
    for rows in (apart, shared):
        with torch.no_grad():
            states = network(**replace(batch, rows=rows).inputs()).last_hidden_state.flatten(0, 1)[rows.supervised]
        conversation = rows.supervised // rows.input_ids.shape[1]
        if rows.conversation is not None:
            conversation = rows.conversation.flatten()[rows.supervised]
        order = torch.argsort(conversation * 10_000 + rows.position_ids.flatten()[rows.supervised])
        found.append((states[order], rows.targets[order]))
    assert torch.equal(found[0][1], found[1][1])
    assert len(found[0][1]) == sum(int((labels != IGNORE_INDEX).sum()) for labels in batch.labels)
    assert (found[0][0] - found[1][0]).abs().max() <= LARGEST * found[0][0].abs().max()


def test_a_conversation_sees_no_other_one(network, batch):
    _, rows = lay_out(network, batch)
    first, _, _ = train(network, batch, rows)
    assert rows.conversation is not None
    mine = rows.conversation == 0
    changed = replace(rows, input_ids=rows.input_ids.masked_fill(mine & (rows.input_ids < 50), 7))
    again, _, _ = train(network, batch, changed)
    others = ~mine & rows.visible
    difference = (first.last_hidden_state - again.last_hidden_state).abs().amax(-1)
    assert difference[others].max() == 0
    assert difference[mine].max() > 0.1


def test_the_prefix_is_read_once_and_padding_not_at_all(network, batch):
    apart, rows = lay_out(network, batch)
    of_photos = int((apart.visible & (apart.input_ids == IMAGE_TOKEN_ID)).sum(1)[[0, 3, 4]].sum())
    assert len(rows.image_at) == of_photos < 3 * network.config.num_image_tokens
    assert rows.input_ids.flatten()[rows.image_at].unique().tolist() == [IMAGE_TOKEN_ID]
    assert rows.conversation is not None
    assert {SHARED} == set(rows.conversation[(rows.input_ids == IMAGE_TOKEN_ID) & (rows.image != 1)].tolist())
    assert rows.visible.float().mean() >= 0.9
    assert rows.input_ids.numel() < 0.6 * apart.input_ids.numel()


def test_a_state_that_is_shared_predicts_nothing(network, batch):
    """Two conversations ask the same and are answered otherwise; the first word of each answer is learned."""
    _, rows = lay_out(network, batch)
    assert rows.conversation is not None
    assert (rows.conversation.flatten()[rows.supervised] != SHARED).all()


def test_one_conversation_twice_is_learned_twice(network_and_tokenizer):
    network, tokenizer = network_and_tokenizer
    once, twice = (make_batch(network, tokenizer, TALKS[:1] * count, photo_hw=PHOTOS[:1]) for count in (1, 2))
    expected, found = (train(network, batch, lay_out(network, batch)[1]) for batch in (once, twice))
    assert found[1].ce.item() == pytest.approx(expected[1].ce.item(), rel=1e-5)
    assert [len(masks) for masks in found[0].mask_logits] == [2]


def test_words_without_a_photo_share_a_row_with_others(network, batch):
    no_photo = batch.input_ids[3] == IMAGE_TOKEN_ID
    ids = batch.input_ids.clone()
    ids[3, no_photo] = 5
    batch = replace(batch, input_ids=ids)
    apart, shared = lay_out(network, batch)
    expected, found = train(network, batch, apart), train(network, batch, shared)
    assert found[1].total.item() == pytest.approx(expected[1].total.item(), rel=LARGEST)


def test_a_photo_with_too_few_places_is_refused(network, batch):
    ids = batch.input_ids.clone()
    ids[1, int((ids[1] == IMAGE_TOKEN_ID).nonzero()[0])] = 5
    with pytest.raises(ValueError, match="image placeholders"):
        lay_out(network, replace(batch, input_ids=ids))


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=24))
def test_rows_are_filled_to_nine_tenths(lengths):
    rows = divide_into_rows(lengths)
    assert sorted(part for row in rows for part in row) == list(range(len(lengths)))
    filled = [sum(lengths[part] for part in row) for row in rows]
    assert sum(filled) >= 0.9 * len(rows) * max(filled)


def test_parts_of_one_length_have_rows_of_their_own():
    assert divide_into_rows([50, 51, 50]) == [[0], [1], [2]]
    assert divide_into_rows([100, 40, 60]) == [[0], [1, 2]]


def test_flash_attention_2_takes_no_shared_prefix():
    with pytest.raises(InputError, match="give --no_shared_prefix"):
        check_shared_prefix("flash_attention_2")
    check_shared_prefix("sdpa")
