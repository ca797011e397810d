"""The whole network: every shape it promises, what is trained, and equal results where nothing should matter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.losses import LossWeights, pixellm_loss
from model.structures import LossTerms, PixelLMOutput
from model.text.tokens import IMAGE_TOKEN_ID
from tests.support.tiny_network import make_batch, make_network
from utils.training.lora import set_trained

TALKS = [
    (0, "Which thing?", "The thing is {seg} and {seg}."),
    (1, "What is it?", "It is human {seg}."),
    (0, "Is it the mask?", "{seg}."),
]


def losses(output: PixelLMOutput, batch) -> LossTerms:
    return pixellm_loss(output.loss, output.photo_logits, batch.masks, output.query_index, LossWeights())


VARIANTS = [
    *[pytest.param({"scales": s, "tokens": k}, id=f"{s}x{k}") for s in (1, 2, 3) for k in (1, 2, 3)],
    pytest.param({"separate_mm_projector": False}, id="one-projector"),
    pytest.param({"image_size": 70}, id="70px"),
    pytest.param({"image_size": 60}, id="60px-no-multiple-of-the-patch"),
    pytest.param({"image_size": 42, "image_token_grid": 2}, id="42px-pooled"),
    pytest.param({"out_dim": 16}, id="16-channels"),
    pytest.param({"out_dim": 64, "decoder_heads": 4}, id="64-channels-4-heads"),
    pytest.param({"pad_train_clip_images": False}, id="crop"),
    pytest.param({"conv_type": "llava_llama_2"}, id="llama-2"),
    pytest.param({"vision_position_resize": "released"}, id="released-positions"),
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_forward_and_backward(tiny_tokenizer_dir, changes):
    """Finite loss, masks of the promised shapes, and a gradient for exactly what is trained."""
    network, tokenizer = make_network(tiny_tokenizer_dir, **changes)
    batch = make_batch(network, tokenizer, TALKS)
    set_trained(network)
    output = network(**batch.inputs())
    assert [tuple(logits.shape) for logits in output.photo_logits] == [(3, *batch.orig_hw[0]), (1, *batch.orig_hw[1])]
    scales = network.config.image_feature_scale_num
    side = 2 * network.config.patch_grid * (2 if scales > 1 else 1)
    assert {tuple(logits.shape[1:]) for logits in output.mask_logits} == {(side, side)}
    assert output.last_hidden_state.shape[:2] == batch.input_ids.shape
    terms = losses(output, batch)
    assert torch.isfinite(terms.total)
    terms.total.backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and name not in unread(network):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        else:
            assert parameter.grad is None, name


def test_dialogues_without_a_photo_reach_every_parameter(tiny_tokenizer_dir):
    """A process whose whole batch shows no photo must not leave the others waiting for its gradients."""
    network, tokenizer = make_network(tiny_tokenizer_dir)
    batch = make_batch(network, tokenizer, [(0, "Which thing?", "The thing."), (1, "What is it?", "It is human.")])
    batch = replace(batch, input_ids=batch.input_ids.masked_fill(batch.input_ids == IMAGE_TOKEN_ID, 5))
    batch = replace(batch, masks=[batch.masks[0].new_zeros(0, 0, 0)] * 2, orig_hw=[(0, 0)] * 2)
    set_trained(network)
    terms = losses(network(**batch.inputs()), batch)
    assert terms.num_masks == 0
    terms.total.backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and name not in unread(network):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def unread(network) -> set[str]:
    """Trained parameters that no loss reads: the heads of SAM that PixelLM has no use for, and one scale's upsampler.

    They exist in every released checkpoint, so they stay.
    """
    names = {name for name, _ in network.named_parameters() if ".mask_decoder." in name}
    never = {name for name in names if "iou_prediction_head" in name}
    never |= {name for name in names if any(f"output_hypernetworks_mlps.{i}." in name for i in (1, 2, 3))}
    if network.config.image_feature_scale_num == 1:
        never |= {name for name in names if ".upsample_2x." in name}
    return never


@pytest.fixture(scope="module")
def network_and_tokenizer(tiny_tokenizer_dir):
    return make_network(tiny_tokenizer_dir)


@pytest.fixture
def network(network_and_tokenizer):
    network, _ = network_and_tokenizer
    network.zero_grad(set_to_none=True)
    set_trained(network)
    return network


@pytest.fixture
def tokenizer(network_and_tokenizer):
    return network_and_tokenizer[1]


def test_masks_are_in_the_order_of_images_and_then_of_reading(network, tokenizer):
    batch = make_batch(network, tokenizer, TALKS)
    output = network(**batch.inputs())
    assert output.query_index.tolist() == [0, 0, 2, 1]
    alone = network(**make_batch(network, tokenizer, TALKS[2:]).inputs())
    assert torch.allclose(output.photo_logits[0][2], alone.photo_logits[0][0], atol=1e-5)


def test_padding_changes_nothing(network, tokenizer):
    """A conversation alone gives what it gives in a padded batch with others."""
    together = network(**make_batch(network, tokenizer, TALKS, pad_to=120).inputs())
    for row, (image, question, answer) in enumerate(TALKS):
        alone_batch = make_batch(network, tokenizer, [(image, question, answer)])
        alone = network(**alone_batch.inputs())
        length = alone_batch.input_ids.shape[1]
        assert torch.allclose(together.last_hidden_state[row, :length], alone.last_hidden_state[0], atol=1e-5)
        mine = (together.query_index == row).nonzero().flatten()
        of_image = torch.cat([logits.flatten(1)[:, :400] for logits in together.photo_logits])[mine]
        assert torch.allclose(of_image, alone.photo_logits[image].flatten(1)[:, :400], atol=1e-4)


def test_the_text_loss_counts_supervised_tokens_only(network, tokenizer):
    batch = make_batch(network, tokenizer, TALKS[:2])
    output = network(**batch.inputs())
    logits = network.lm_head(output.last_hidden_state).float().log_softmax(-1)
    terms = [
        -logits[row, place - 1, label]
        for row, labels in enumerate(batch.labels.tolist())
        for place, label in enumerate(labels)
        if label != -100
    ]
    assert output.loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


@pytest.mark.parametrize("scales", [1, 3])
def test_images_without_targets_reach_every_trained_parameter(tiny_tokenizer_dir, scales):
    """Otherwise a process whose batch has no mask would leave the others waiting in the backward pass."""
    network, tokenizer = make_network(tiny_tokenizer_dir, scales=scales)
    set_trained(network)
    batch = make_batch(network, tokenizer, [(0, "What is it?", "It is human."), (1, "Why?", "No thing.")])
    decoded: list[int] = []
    network.model.mask_decoder.register_forward_pre_hook(lambda _, inputs: decoded.append(len(inputs[1])))
    output = network(**batch.inputs())
    assert decoded == [1], "some GPU attention kernels refuse an empty batch"
    assert [tuple(logits.shape) for logits in output.photo_logits] == [(0, *hw) for hw in batch.orig_hw]
    terms = losses(output, batch)
    assert terms.total.item() == pytest.approx(output.loss.item())
    terms.total.backward()
    with_targets, _ = make_network(tiny_tokenizer_dir, scales=scales)
    set_trained(with_targets)
    other = make_batch(with_targets, tokenizer, TALKS)
    losses(with_targets(**other.inputs()), other).total.backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert set(gradients) == {name for name, p in with_targets.named_parameters() if p.grad is not None}
    assert all(gradient.abs().max() == 0 for name, gradient in gradients.items() if ".mask_decoder." in name)


def test_conversations_without_supervision_reach_the_head(network, tokenizer):
    batch = make_batch(network, tokenizer, TALKS[:1])
    output = network(**replace(batch, labels=torch.full_like(batch.labels, -100)).inputs())
    assert output.loss.item() == 0
    output.loss.backward()
    assert network.lm_head.weight.grad is not None


def test_text_without_an_image(network, tokenizer):
    batch = make_batch(network, tokenizer, TALKS[:2])
    ids = batch.input_ids.masked_fill(batch.input_ids == IMAGE_TOKEN_ID, 5)
    assert torch.isfinite(network(**replace(batch, input_ids=ids).inputs()).loss)


def test_a_wrong_number_of_placeholders_says_both_numbers(network, tokenizer):
    batch = make_batch(network, tokenizer, TALKS[:1])
    ids = batch.input_ids.clone()
    ids[0, (ids[0] == IMAGE_TOKEN_ID).nonzero()[0]] = 5
    with pytest.raises(ValueError, match=r"placeholders per conversation \[15\] != 16 image features"):
        network(**replace(batch, input_ids=ids).inputs())


def test_each_conversation_reads_its_own_image(network, tokenizer):
    batch = make_batch(network, tokenizer, [(0, "What?", "{seg}."), (1, "What?", "{seg}.")])
    swapped = replace(
        batch,
        pixel_values=batch.pixel_values.flip(0),
        valid_hw=batch.valid_hw.flip(0),
        image_index=batch.image_index.flip(0),
        orig_hw=batch.orig_hw[::-1],
        masks=batch.masks[::-1],
    )
    found, again = network(**batch.inputs()), network(**swapped.inputs())
    assert torch.allclose(found.last_hidden_state, again.last_hidden_state, atol=1e-5)
    assert torch.allclose(found.photo_logits[0], again.photo_logits[1], atol=1e-4)
    assert not torch.allclose(found.last_hidden_state[0], found.last_hidden_state[1], atol=1e-3)


def test_the_fusion_starts_at_the_released_constants(tiny_tokenizer_dir):
    for scales, tokens, token_weight in ((2, 3, 1 / 6), (1, 3, 1 / 3), (2, 1, 1.0)):
        network, _ = make_network(tiny_tokenizer_dir, scales=scales, tokens=tokens)
        assert torch.allclose(network.model.token_fusion.weights, torch.full((tokens,), token_weight))
        assert torch.allclose(network.model.mask_decoder.scale_weights, torch.full((scales,), 1 / scales))
