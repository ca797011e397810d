"""The loss against the paper's formulas, written out pixel by pixel."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import losses
from model.image import PhotoResize, resize_logits
from model.losses import LossWeights, MaskSums, PhotoMasks, pixellm_loss

WEIGHTS = LossWeights(ce=1.0, bce=2.0, dice=0.5, refine_alpha=2.0)


def slow_bce(logits, targets, question, alpha) -> list[float]:
    """A = alpha where two or more predictions of the same question are positive, else 1."""
    per_mask = []
    for mask in range(len(logits)):
        total = 0.0
        for row in range(logits.shape[1]):
            for column in range(logits.shape[2]):
                claims = sum(
                    question[other] == question[mask] and logits[other, row, column] > 0 for other in range(len(logits))
                )
                probability = 1 / (1 + math.exp(-float(logits[mask, row, column])))
                truth = float(targets[mask, row, column])
                pixel = -truth * math.log(probability) - (1 - truth) * math.log(1 - probability)
                total += pixel * (alpha if claims >= 2 else 1.0)
        per_mask.append(total / (logits.shape[1] * logits.shape[2]))
    return per_mask


def slow_dice(logits, targets) -> list[float]:
    per_mask = []
    for mask in range(len(logits)):
        truth = targets[mask].flatten().tolist()
        pairs = [(1 / (1 + math.exp(-x)), y) for x, y in zip(logits[mask].flatten().tolist(), truth, strict=True)]
        both = sum(p * y for p, y in pairs) / 1000
        each = sum(p for p, _ in pairs) / 1000 + sum(y for _, y in pairs) / 1000
        per_mask.append(1 - (2 * both + 1e-6) / (each + 1e-6))
    return per_mask


@st.composite
def cases(draw):
    """Images with 0 to 4 masks each, dealt to a few questions."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    logits, targets, question = [], [], []
    for image in range(draw(st.integers(1, 3))):
        count, height, width = draw(st.integers(0, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
        logits.append(torch.randn(count, height, width, generator=generator) * 3)
        targets.append(torch.rand(count, height, width, generator=generator) < 0.5)
        question += [10 * image + draw(st.integers(0, 1)) for _ in range(count)]
    return logits, targets, torch.tensor(question, dtype=torch.long)


@given(cases(), st.sampled_from([1.0, 1.5, 2.0]))
@settings(max_examples=60, deadline=None)
def test_loss_is_the_written_out_formula(case, alpha):
    logits, targets, question = case
    weights = LossWeights(ce=0.7, bce=2.0, dice=0.5, refine_alpha=alpha)
    found = pixellm_loss(torch.tensor(1.25), logits, targets, question, weights)
    count = sum(map(len, targets))
    bce = dice = plain = 0.0
    offset = 0
    for image_logits, image_targets in zip(logits, targets, strict=True):
        asked = question[offset : offset + len(image_logits)].tolist()
        offset += len(image_logits)
        bce += sum(slow_bce(image_logits, image_targets, asked, alpha))
        plain += sum(slow_bce(image_logits, image_targets, asked, 1.0))
        dice += sum(slow_dice(image_logits, image_targets))
    scale = 1 / max(count, 1)
    assert found.num_masks == count
    assert found.ce.item() == pytest.approx(0.7 * 1.25)
    assert found.bce.item() == pytest.approx(2.0 * plain * scale, rel=1e-4, abs=1e-6)
    assert found.refine.item() == pytest.approx(2.0 * (bce - plain) * scale, rel=1e-4, abs=1e-5)
    assert found.dice.item() == pytest.approx(0.5 * dice * scale, rel=1e-4, abs=1e-5)
    parts = found.ce + found.bce + found.dice + found.refine
    assert found.total.item() == pytest.approx(parts.item())


@given(cases(), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_ignored_pixels_have_no_say(case, seed):
    """Whatever is predicted there, and whatever the mask says, loss and gradient stay the same."""
    logits, targets, question = case
    generator = torch.Generator().manual_seed(seed)
    ignore = [torch.rand(mask.shape[1:], generator=generator) < 0.4 for mask in targets]
    for pixels in ignore:
        pixels[0, 0] = False
    ignore[0] = None

    def loss(noise):
        changed = [
            mask if pixels is None else torch.where(pixels, noise, mask)
            for mask, pixels in zip(logits, ignore, strict=True)
        ]
        flipped = [mask if pixels is None else mask ^ pixels for mask, pixels in zip(targets, ignore, strict=True)]
        truths = targets if noise == 0 else flipped
        return pixellm_loss(torch.tensor(0.0), changed, truths, question, WEIGHTS, ignore=ignore).total

    assert loss(0.0).item() == pytest.approx(loss(9.0).item(), rel=1e-5, abs=1e-7)


def test_nothing_ignored_is_the_plain_loss():
    logits, targets = [torch.randn(2, 3, 4)], [torch.rand(2, 3, 4) < 0.5]
    plain = pixellm_loss(torch.tensor(0.0), logits, targets, torch.zeros(2), WEIGHTS)
    nothing = [torch.zeros(3, 4, dtype=torch.bool)]
    assert pixellm_loss(
        torch.tensor(0.0), logits, targets, torch.zeros(2), WEIGHTS, ignore=nothing
    ).total.item() == pytest.approx(plain.total.item())


def sums(logits, targets, question, *, alpha: float) -> torch.Tensor:
    """BCE, addition and DICE of one image."""
    found, areas = MaskSums.apply(logits, PhotoMasks(targets.bool(), question, None, None, alpha))
    assert areas.tolist() == (logits > 0).sum((1, 2)).tolist()
    return found


def test_alpha_one_is_plain_bce():
    logits, targets = torch.full((2, 3, 3), 4.0), torch.zeros(2, 3, 3)
    plain, extra, _ = sums(logits, targets, [0, 0], alpha=1.0)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((1, 2))
    assert plain.item() == pytest.approx(expected.sum().item(), rel=1e-6)
    assert extra.item() == 0.0


def claimed(logits, question) -> torch.Tensor | None:
    masks = PhotoMasks(torch.zeros_like(logits, dtype=torch.bool), question, None, None, 2.0)
    return masks.claimed(logits)


def test_predictions_overlap_within_a_question_only():
    found = claimed(torch.ones(3, 2, 2), [0, 0, 1])
    assert found is not None
    assert found.flatten(1).all(1).tolist() == [True, True, False]
    assert claimed(torch.ones(3, 2, 2), [0, 1, 2]) is None


def test_overlap_is_by_prediction_and_not_by_truth():
    found = claimed(torch.tensor([[[5.0, -5.0]], [[5.0, 5.0]]]), [0, 0])
    assert found is not None
    assert found.tolist() == [[[True, False]], [[True, False]]]


def test_the_weight_of_the_refinement_has_no_gradient():
    """Else the network could lower the loss by moving the region instead of the masks."""
    logits = torch.tensor([[[0.3, -0.2]], [[0.1, 0.4]]], requires_grad=True)
    targets = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
    (gradient,) = torch.autograd.grad(sums(logits, targets, [0, 0], alpha=3.0)[1], logits)
    expected = 2.0 * (logits.sigmoid() - targets) * torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]) / 2
    assert torch.allclose(gradient, expected)


def by_autograd(logits, targets, question, weights: LossWeights, *, ignored, resize) -> torch.Tensor:
    """The weighted loss of one image, from torch's own operations."""
    x, kept = resize(logits.float()), ~ignored
    bce = torch.nn.functional.binary_cross_entropy_with_logits(x, targets.float(), reduction="none")
    positive = (x > 0).float()
    same = torch.tensor([[float(one == other) for other in question] for one in question])
    claims = torch.einsum("nm,mhw->nhw", same, positive)
    weighted = bce * torch.where(claims >= 2, weights.refine_alpha, 1.0)
    p, t = x.sigmoid()[:, kept] / 1000, targets.float()[:, kept]
    dice = 1 - (2 * (p * t).sum(1) + 1e-6) / (p.sum(1) + (t / 1000).sum(1) + 1e-6)
    return (weights.bce * weighted[:, kept].mean(1) + weights.dice * dice).sum() / len(targets)


RESIZE = PhotoResize(size=28, valid_hw=(17, 28), out_hw=(24, 40))


def enlarge(logits: torch.Tensor) -> torch.Tensor:
    return resize_logits(logits, size=RESIZE.size, valid_hw=RESIZE.valid_hw, out_hw=RESIZE.out_hw)


@pytest.mark.parametrize("pixels_of_a_block", [1, 700, 10**6])
@pytest.mark.parametrize(
    "weights", [WEIGHTS, LossWeights(bce=0.0), LossWeights(dice=0.0, refine_alpha=1.0), LossWeights(dice=0.0)]
)
def test_the_gradient_is_that_of_autograd_however_many_rows_are_looked_at_together(
    monkeypatch, weights, pixels_of_a_block
):
    monkeypatch.setattr(losses, "_PIXELS_OF_A_BLOCK", pixels_of_a_block)
    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn(5, 8, 8, generator=generator) * 4).requires_grad_()
    targets = torch.rand(5, 24, 40, generator=generator) < 0.4
    ignored = torch.rand(24, 40, generator=generator) < 0.2
    question = [7, 7, 8, 7, 8]
    expected = by_autograd(logits, targets, question, weights, ignored=ignored, resize=enlarge)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    found = pixellm_loss(
        torch.tensor(0.0), [logits], [targets], torch.tensor(question), weights, ignore=[ignored], resize=[RESIZE]
    )
    (gradient,) = torch.autograd.grad(3 * found.total, logits)
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(gradient, 3 * expected_gradient, rtol=1e-5, atol=1e-8)


def test_a_perfect_mask_has_no_dice_loss_and_a_wrong_one_has_it_whole():
    truth = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    assert sums((truth * 2 - 1) * 50, truth, [0], alpha=1.0)[2].item() == pytest.approx(0, abs=1e-3)
    assert sums((1 - truth * 2) * 50, truth, [0], alpha=1.0)[2].item() == pytest.approx(1, abs=1e-3)


def test_images_without_masks_cost_nothing_and_stay_in_the_graph():
    logits = torch.zeros(0, 4, 4, requires_grad=True)
    found = pixellm_loss(
        torch.tensor(0.5), [logits], [torch.zeros(0, 4, 4, dtype=torch.bool)], torch.tensor([]), WEIGHTS
    )
    assert found.total.item() == 0.5
    assert found.num_masks == 0
    found.total.backward()
    assert logits.grad is not None


def test_another_number_of_predictions_is_refused():
    masks = [torch.zeros(2, 4, 4, dtype=torch.bool)]
    with pytest.raises(ValueError, match=r"image 0: predicted masks \(1, 4, 4\) != targets \(2, 4, 4\)"):
        pixellm_loss(torch.tensor(0.0), [torch.zeros(1, 4, 4)], masks, torch.zeros(1), WEIGHTS)


def test_half_precision_logits_give_a_float32_loss():
    logits = [torch.full((1, 64, 64), 30.0, dtype=torch.bfloat16)]
    found = pixellm_loss(torch.tensor(0.0), logits, [torch.zeros(1, 64, 64, dtype=torch.bool)], torch.zeros(1), WEIGHTS)
    assert found.bce.dtype == torch.float32
    assert found.bce.item() == pytest.approx(60.0)
