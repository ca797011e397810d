"""The network computes what the release computed (recorded with weights made from their names).

Tolerances are those of the recording: ids identical, images 1e-5, features, hidden states and masks 1e-4 relative,
losses 1e-5 relative, gradient norms 1e-3 relative.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.losses import LossWeights, pixellm_loss
from model.structures import PixelLMOutput
from model.tokens import IMAGE_TOKEN_ID

from . import seeded_case


@pytest.fixture(scope="module")
def case() -> seeded_case.SeededCase:
    return seeded_case.build()


@pytest.fixture(scope="module")
def output(case) -> PixelLMOutput:
    with sdpa_kernel(SDPBackend.MATH):
        return case.network(case.batch)


def relative(found: torch.Tensor, expected: np.ndarray) -> float:
    found = found.detach().numpy()
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_token_ids_labels_and_mask(case):
    ids, labels = case.batch.input_ids, case.batch.labels
    for row, expected_ids, expected_labels in zip(
        range(len(ids)), case.expected["input_ids"], case.expected["labels"], strict=True
    ):
        is_image = ids[row] == IMAGE_TOKEN_ID
        first = int(is_image.nonzero()[0])
        keep = ~is_image
        keep[first] = True  # the recording has one placeholder where this code has one per image token
        assert ids[row][keep].tolist() == expected_ids.tolist()
        assert labels[row][keep].tolist() == expected_labels.tolist()


def test_images(case):
    assert case.batch.valid_hw.tolist() == case.expected["resize"].tolist()
    found = case.batch.pixel_values[:, :, ::16, ::16].numpy()
    assert np.abs(found - case.expected["images_clip_sub"]).max() < 1e-5


def test_tower_and_both_projections(case):
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        tower = case.network.model.vision_tower(case.batch.pixel_values, case.batch.valid_hw)
        features = case.network.encode_images(case.batch.pixel_values, case.batch.valid_hw)
    assert relative(tower[0, :, ::16], case.expected["clip_last_sub"]) < 1e-4
    pyramid = features.pyramid.flatten(3).transpose(2, 3)  # (S, B, g*g, D)
    for scale in range(seeded_case.SCALES):
        assert relative(pyramid[scale, :, ::16], case.expected[f"multi{scale}_sub"]) < 1e-4


def test_hidden_states_and_logits(case, output):
    assert relative(output.hidden[:, ::16], case.expected["hidden_sub"]) < 1e-4
    with torch.no_grad():
        logits = case.network.lm_head(output.hidden)
    assert relative(logits[:, ::64, ::8], case.expected["logits_sub"]) < 1e-4


def test_low_resolution_masks(case, output):
    for image, logits in enumerate(output.low_res_logits):
        assert relative(logits[:, None, ::4, ::4], case.expected[f"low_res_masks_{image}"]) < 1e-4


def test_losses_and_gradient_norms(case, output):
    terms = pixellm_loss(
        output.lm_loss, output.mask_logits, case.batch.masks, output.query_index, LossWeights(refine_alpha=1.0)
    )
    recorded = case.train_step["losses"]
    for found, name in (
        (terms.total, "loss"),
        (terms.ce, "ce_loss"),
        (terms.bce, "mask_bce_loss"),
        (terms.dice, "mask_dice_loss"),
    ):
        assert found.item() == pytest.approx(recorded[name], rel=1e-5)
    terms.total.backward()
    parameters = dict(case.network.named_parameters())
    largest = max(case.train_step["grad_norms"].values())
    compared = 0
    for name, expected in case.train_step["grad_norms"].items():
        gradient = parameters[name].grad
        found = 0.0 if gradient is None else float(gradient.norm())
        # A key bias cannot change a softmax: its true gradient is zero and both sides hold rounding noise.
        noise = 1e-7 * largest if name.endswith("k_proj.bias") else 0.0
        assert found == pytest.approx(expected, rel=1e-3, abs=noise), name
        compared += 1
    assert compared > 250
