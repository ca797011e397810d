"""What is recomputed in the backward pass changes no number, and is chosen by what a pass is counted to keep."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from model.errors import InputError
from model.losses import LossWeights, pixellm_loss
from tests.support.tiny_network import make_batch, make_network
from utils.cli.args import parse
from utils.cli.config import RunConfig
from utils.training import activations
from utils.training.activations import Kept, LargestPass, Recomputed, choose, count_kept, settle_activations
from utils.training.lora import set_trained, wrap_lora
from utils.training.start import TrainingModel

TALKS = [(0, "What is here?", "The {seg} and {seg} and {seg} ."), (1, "And here?", "{seg} and {seg} .")]


@pytest.fixture
def training(tiny_tokenizer_dir) -> TrainingModel:
    network, tokenizer = make_network(tiny_tokenizer_dir)
    wrapped = wrap_lora(network, rank=2, alpha=4, dropout=0.0, names=("q_proj", "v_proj"))
    set_trained(wrapped)
    return TrainingModel(wrapped.train(), network, tokenizer, network.config, tiny_tokenizer_dir)


def gradients(training: TrainingModel, recomputed: Recomputed) -> tuple[float, dict[str, torch.Tensor]]:
    recomputed.apply(training.network)
    batch = make_batch(training.network, training.tokenizer, TALKS)
    output = training.wrapped(**batch.inputs())
    loss = pixellm_loss(output.loss, output.photo_logits, batch.masks, output.query_index, LossWeights()).total
    training.wrapped.zero_grad()
    loss.backward()
    found = {name: p.grad for name, p in training.wrapped.named_parameters() if p.grad is not None}
    return loss.item(), found


def test_every_rung_gives_the_same_loss_and_gradients(training):
    num_blocks = len(training.network.model.layers)
    loss, expected = gradients(training, Recomputed())
    assert num_blocks > 1
    assert expected
    for recomputed in (Recomputed(2), Recomputed(2, 1), Recomputed(3, num_blocks), Recomputed(None, num_blocks)):
        found_loss, found = gradients(training, recomputed)
        assert found_loss == pytest.approx(loss, rel=1e-6)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            largest = max(float(expected[name].abs().max()), 1e-3)
            assert float((gradient - expected[name]).abs().max()) <= 1e-5 * largest, name


def test_so_many_blocks_are_recomputed_and_no_others(training):
    layers = training.network.model.layers
    Recomputed(None, 1).apply(training.network)
    assert [layer.gradient_checkpointing for layer in layers] == [True] + [False] * (len(layers) - 1)
    Recomputed().apply(training.network)
    assert not any(layer.gradient_checkpointing for layer in layers)


@pytest.mark.parametrize("masks_at_once", [None, 2])
def test_what_is_counted_without_numbers_is_what_a_real_pass_keeps(training, monkeypatch, masks_at_once):
    """Within a percent: a real batch supervises no first word of a conversation."""
    monkeypatch.setattr(activations, "_PIXELS_OF_A_PHOTO", 0)
    network, wrapped = training.network, training.wrapped
    batch = make_batch(network, training.tokenizer, [(0, *TALKS[0][1:]), (1, *TALKS[0][1:])])
    batch.labels = batch.input_ids  # all words are supervised, as the largest pass has it
    words = batch.input_ids.shape[1] - network.config.num_image_tokens
    largest = LargestPass(images=2, conversations=2, masks=6, words=words)
    before = torch.get_rng_state()
    kept = count_kept(largest, wrapped, network, shared_prefix=False, masks_at_once=masks_at_once)
    assert torch.equal(torch.get_rng_state(), before), "the run draws the same numbers"
    network.model.mask_decoder.recomputed_at_once = masks_at_once
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*wrapped.parameters(), *wrapped.buffers())}
    real: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        real[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = wrapped(**batch.inputs(photo_logits=False))
    assert output.loss is not None
    real_bytes = sum(storage.nbytes() for place, storage in real.items() if place not in weights)
    assert kept.rest + sum(kept.blocks) == pytest.approx(real_bytes, rel=0.01)


def test_counting_leaves_the_network_as_it_was(training):
    network = training.network
    tower, layers = network.model.vision_tower, network.model.layers
    training.wrapped.eval()
    count_kept(LargestPass(1, 1, 1, 9), training.wrapped, network, shared_prefix=True, masks_at_once=16)
    assert network.model.vision_tower is tower
    assert network.model.layers is layers
    assert network.model.mask_decoder.recomputed_at_once is None
    assert not training.wrapped.training
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (10_000, Recomputed()),
        (2_000, Recomputed(16)),
        (1_340, Recomputed(16, 2)),
        (1_100, Recomputed(16, 4)),
        (10, Recomputed(16, 4)),
    ],
)
def test_as_little_is_recomputed_as_fits(free, expected):
    def count(masks_at_once: int | None) -> Kept:
        return Kept((200,) * 4, block_input=10, rest=3_000 if masks_at_once is None else 500, largest=50)

    assert choose(count, num_blocks=4, masks_too=True, free=free)[0] == expected


def test_under_zero_3_masks_are_decoded_together():
    def count(masks_at_once: int | None) -> Kept:
        assert masks_at_once is None
        return Kept((200,) * 4, block_input=10, rest=3_000, largest=50)

    assert choose(count, num_blocks=4, masks_too=False, free=10)[0] == Recomputed(None, 4)


@pytest.mark.parametrize(
    ("flags", "free", "says"),
    [
        ({}, 2**40, "activations: all are kept; with that, a pass takes up to "),
        ({}, 0, "activations: masks are recomputed 16 at a time and 4 blocks of the language model are recomputed; "),
        ({"activation_checkpointing": "never"}, 0, "activations: all are kept (--activation_checkpointing never)"),
        ({"gradient_checkpointing": False}, 0, "activations: all are kept (--activation_checkpointing never)"),
        ({"activation_checkpointing": "always"}, 2**40, "activations: masks are recomputed 16 at a time and 4 blocks"),
    ],
)
def test_one_line_says_what_is_recomputed(training, caplog, flags, free, says):
    run = replace(RunConfig(batch_size=1, model_max_length=300), **flags)
    with caplog.at_level(logging.INFO, logger=activations.__name__):
        settle_activations(run, training, {}, free=free)
    line = caplog.messages[0]
    assert line.startswith(says.replace("4 blocks", f"{len(training.network.model.layers)} blocks"))
    assert ("an estimate, for 1 images, 3 conversations" in line) == (run.recomputation == "auto")
    assert len(caplog.messages) == (2 if run.recomputation == "auto" and not free else 1)


def test_flags_of_the_release_go_on_working():
    assert parse(RunConfig, [], "").config.recomputation == "auto"
    assert parse(RunConfig, ["--gradient_checkpointing"], "").config.recomputation == "auto"
    assert parse(RunConfig, ["--no_gradient_checkpointing"], "").config.recomputation == "never"
    assert parse(RunConfig, ["--activation_checkpointing=always"], "").config.recomputation == "always"
    with pytest.raises(InputError, match="contradicts --no_gradient_checkpointing"):
        parse(RunConfig, ["--no_gradient_checkpointing", "--activation_checkpointing=always"], "")
