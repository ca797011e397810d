"""Compiled passes write what passes of growing shapes write: answers, dialogues, longer rooms."""

from __future__ import annotations

import pytest
import torch

import model.compiled
from model.compiled import CompiledPasses
from model.errors import InputError
from model.predictor import PixelLMPredictor
from tests.model.test_answers import PHOTOS, QUESTIONS
from tests.support.parrot import teach
from tests.support.tiny_network import make_network


@pytest.fixture(scope="module")
def plain(tiny_tokenizer_dir) -> PixelLMPredictor:
    network, tokenizer = make_network(tiny_tokenizer_dir, scales=1, tokens=2)
    sentence = tokenizer("the thing is [SEG0] [SEG1] mask </s>", add_special_tokens=False)
    teach(network, tokenizer, sentence.input_ids)
    return PixelLMPredictor(network, tokenizer)


def with_passes(plain: PixelLMPredictor, backend: str) -> PixelLMPredictor:
    """The same model; its passes are captured by torch, and run by a backend that needs no compiler."""
    network = plain.model
    predictor = PixelLMPredictor(network, plain.processor.tokenizer)
    predictor.compiled = CompiledPasses(
        network.model, group_size=network.codebook.size, attention="sdpa", device=network.device, backend=backend
    )
    return predictor


@pytest.fixture
def eager():
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def assert_alike(found, expected) -> None:
    assert found.output_ids == expected.output_ids
    assert len(found.targets) == len(expected.targets) > 0
    for mine, its in zip(found.targets, expected.targets, strict=True):
        torch.testing.assert_close(mine.logits, its.logits, atol=1e-4, rtol=1e-4)


def test_captured_passes_give_the_same_answers(plain):
    fixed = with_passes(plain, "eager")
    for photo in PHOTOS[:2]:
        for predictor in (plain, fixed):
            predictor.set_image(photo)
        for question in QUESTIONS[:2]:
            assert_alike(fixed.ask(question), plain.ask(question))


def test_a_dialogue_goes_on_in_its_room(plain, eager):
    fixed = with_passes(plain, "eager")
    for predictor in (plain, fixed):
        predictor.set_image(PHOTOS[0])
    for follows in (False, True, True):
        assert_alike(fixed.ask(QUESTIONS[1], follows=follows), plain.ask(QUESTIONS[1], follows=follows))


def test_an_answer_that_outgrows_its_room_goes_on_in_a_larger_one(plain, eager, monkeypatch):
    monkeypatch.setattr(model.compiled, "_LEAST_ROOM", 16)
    fixed = with_passes(plain, "eager")
    for predictor in (plain, fixed):
        predictor.set_image(PHOTOS[0])
    for follows in (False, True, True, False):  # the last one begins anew in the small room
        assert_alike(fixed.ask(QUESTIONS[1], follows=follows), plain.ask(QUESTIONS[1], follows=follows))


def test_an_answer_cannot_go_on_once_another_was_begun(plain, eager):
    fixed = with_passes(plain, "eager")
    fixed.set_image(PHOTOS[0])
    pieces = fixed.stream(QUESTIONS[0])
    next(pieces)
    fixed.ask(QUESTIONS[1])
    with pytest.raises(RuntimeError, match="another answer was begun"):
        list(pieces)


def test_attention_that_takes_no_mask_is_refused(plain):
    network = plain.model
    with pytest.raises(InputError, match="sdpa, not eager"):
        CompiledPasses(network.model, group_size=2, attention="eager", device=network.device)
