"""The training loss: L = L_txt + lambda_bce * L_ref + lambda_dice * L_dice (paper section 3.3), as pure functions.

Shapes: N masks of one image, H and W their size, Q conversations, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .structures import LossTerms
from .text.tokens import IGNORE_INDEX, IMAGE_TOKEN_ID


@dataclass(frozen=True)
class LossWeights:
    """Released defaults; ``refine_alpha`` is the paper's alpha (1.0 is exactly plain BCE)."""

    ce: float = 1.0
    bce: float = 2.0
    dice: float = 0.5
    refine_alpha: float = 2.0


def supervised_tokens(labels: Tensor) -> Tensor:
    """Where the text loss looks: the predictions of these next tokens.

    Args:
        labels: (Q, L).
    Returns:
        (Q, L - 1) bool, true at position t if the token at t + 1 is one that the assistant writes.
    """
    following = labels[:, 1:]
    return (following != IGNORE_INDEX) & (following != IMAGE_TOKEN_ID)  # nobody writes images


def overlap_mask(logits: Tensor, question: Tensor) -> Tensor:
    """Pixels where two or more predictions of the same question are positive.

    Args:
        logits: (N, H, W).
        question: (N,) which question each mask answers.
    Returns:
        (N, H, W) bool, equal for the masks of one question.
    """
    positive = (logits > 0).float()
    same = (question[:, None] == question[None, :]).float()  # (N, N)
    count = torch.einsum("nm,mhw->nhw", same, positive)
    return count >= 2


def bce_per_mask(logits: Tensor, targets: Tensor, question: Tensor, *, refine_alpha: float) -> tuple[Tensor, Tensor]:
    """Plain BCE of each mask, and what the target refinement loss adds to it.

    Paper: L_ref is BCE weighted by A, where A = alpha on pixels claimed by two or more predictions of a question
    and 1 elsewhere. So the addition is (alpha - 1) * BCE on those pixels; the weight itself carries no gradient.

    Args:
        logits, targets: (N, H, W).
        question: (N,) as in ``overlap_mask``.
    Returns:
        two tensors (N,), means over the pixels.
    """
    bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if refine_alpha == 1.0:
        return bce.flatten(1).mean(1), bce.new_zeros(len(bce))
    overlap = overlap_mask(logits.detach(), question)
    return bce.flatten(1).mean(1), (refine_alpha - 1.0) * (bce * overlap).flatten(1).mean(1)


def dice_per_mask(logits: Tensor, targets: Tensor, *, scale: float = 1000.0, eps: float = 1e-6) -> Tensor:
    """(N, H, W) -> (N,) DICE loss; sums are divided by ``scale`` as in the release, where eps then matters less."""
    probability = logits.sigmoid().flatten(1)
    targets = targets.flatten(1)
    numerator = 2 * (probability / scale * targets).sum(-1)
    denominator = (probability / scale).sum(-1) + (targets / scale).sum(-1)
    return 1 - (numerator + eps) / (denominator + eps)


def pixellm_loss(
    lm_loss: Tensor,
    mask_logits: Sequence[Tensor],
    masks: Sequence[Tensor],
    question: Tensor,
    weights: LossWeights,
    *,
    ignore: Sequence[Tensor | None] = (),
) -> LossTerms:
    """Combine the parts; all are means over this batch: of its supervised tokens, and of its masks.

    So does the release, per process and forward pass. ``LossTerms.scaled`` makes them parts of the mean of a larger
    batch.

    Args:
        lm_loss: () mean cross-entropy.
        mask_logits: B tensors (N_b, H_b, W_b).
        masks: ground truth of the same shapes, bool.
        question: (N,) the conversation of each mask, images in order.
        ignore: per image (H_b, W_b) bool, pixels that do not count, or None; empty when no image has any.
    Raises:
        ValueError: if an image has another number of predictions than of masks.
    """
    num_masks = sum(len(target) for target in masks)
    bce = dice = refine = lm_loss.new_zeros((), dtype=torch.float32)
    offset = 0
    for index, (logits, target) in enumerate(zip(mask_logits, masks, strict=True)):
        if logits.shape != target.shape:
            raise ValueError(f"image {index}: predicted masks {tuple(logits.shape)} != targets {tuple(target.shape)}")
        group = question[offset : offset + len(target)]
        offset += len(target)
        ignored = ignore[index] if ignore else None
        plain, extra, overlap = _image_sums(logits.float(), target.float(), group, ignored, weights.refine_alpha)
        bce, refine, dice = bce + plain, refine + extra, dice + overlap
    scale = 1.0 / max(num_masks, 1)
    ce = weights.ce * lm_loss
    bce, refine = (weights.bce * scale * term for term in (bce, refine))
    dice = weights.dice * scale * dice
    return LossTerms(ce + bce + dice + refine, ce, bce, dice, refine, num_masks)


def _image_sums(
    logits: Tensor, target: Tensor, group: Tensor, ignored: Tensor | None, refine_alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """BCE, what refinement adds to it, and DICE, each summed over the masks of one image.

    Args:
        logits, target: (N_b, H_b, W_b) float32.
        group: (N_b,) question of each mask; ignored: (H_b, W_b) bool, or None.
    """
    if len(target) == 0:
        nothing = logits.sum()  # zero, but keeps the decoder in the graph
        return nothing, nothing, nothing
    if ignored is not None:
        logits, target = logits[:, None, ~ignored], target[:, None, ~ignored]  # (N_b, 1, pixels that count)
    plain, extra = bce_per_mask(logits, target, group, refine_alpha=refine_alpha)
    return plain.sum(), extra.sum(), dice_per_mask(logits, target).sum()
