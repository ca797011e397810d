"""The training loss: L = L_txt + lambda_bce * L_ref + lambda_dice * L_dice (paper section 3.3).

Shapes: N masks of one image, h, w their size as predicted, H, W that of the photo; Q conversations, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .image import PhotoResize, RowResize, SameSize
from .structures import LossTerms
from .text.tokens import IGNORE_INDEX, IMAGE_TOKEN_ID

_PIXELS_OF_A_BLOCK = 2**18  # 1 MiB in float32, so that a block stays in the cache of a CPU
_LARGE_BLOCK = 2**23
_SCALE, _EPS = 1000.0, 1e-6  # of DICE in the release; with its small sums eps matters less


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


@dataclass(frozen=True)
class PhotoMasks:
    """What the predictions for one image are compared with, pixel by pixel.

    Attributes:
        targets: (N, H, W) bool; N is 1 or more.
        question: which question each mask answers.
        ignored: (H, W) bool, pixels that do not count; None if all do.
        resize: brings logits to the size (H, W); None if they have it already.
        refine_alpha: the paper's alpha; 1.0 is exactly plain BCE.
    """

    targets: Tensor
    question: Sequence[int]
    ignored: Tensor | None
    resize: PhotoResize | None
    refine_alpha: float

    def blocks(self) -> list[slice]:
        """Rows of the photo that are looked at together, for all masks; no more is made at the size of the photo."""
        num_masks, height, width = self.targets.shape
        in_cache = self.resize and self.targets.device.type == "cpu"  # logits that are whole already fit into none
        at_once = _PIXELS_OF_A_BLOCK if in_cache else _LARGE_BLOCK
        num_rows = max(1, at_once // max(1, num_masks * width))
        return [slice(start, min(start + num_rows, height)) for start in range(0, height, num_rows)]

    def resizing(self, logits: Tensor) -> RowResize | SameSize:
        """For logits (N, h, w) of this shape."""
        return self.resize.of(logits) if self.resize else SameSize()

    def truth(self, block: slice) -> Tensor:
        """(N, r, W) float32, 0 where pixels do not count."""
        return self.leave_out(self.targets[:, block].float(), block)

    def leave_out(self, of_pixels: Tensor, block: slice) -> Tensor:
        """(N, r, W) numbers, made 0 in place where pixels do not count."""
        return of_pixels if self.ignored is None else of_pixels.masked_fill_(self.ignored[block], 0.0)

    def num_pixels(self) -> Tensor | int:
        """Of a mask, those that count."""
        return self.targets[0].numel() if self.ignored is None else (~self.ignored).sum()

    def claimed(self, x: Tensor) -> Tensor | None:
        """Pixels where two or more predictions of the same question are positive, by prediction and not by truth.

        Args:
            x: (N, r, W) logits of a block.
        Returns:
            (N, r, W) bool, equal for the masks of one question; None if nothing depends on it.
        """
        if self.refine_alpha == 1.0 or len(set(self.question)) == len(self.question):
            return None
        positive = x > 0
        claimed = torch.zeros_like(positive)
        for question in set(self.question):
            mine = [mask for mask, of in enumerate(self.question) if of == question]
            if len(mine) > 1:
                several = torch.stack([positive[mask] for mask in mine]).sum(0) >= 2
                for mask in mine:  # a list of them would be copied to the GPU first, which waits for it
                    claimed[mask] = several
        return claimed


class MaskSums(torch.autograd.Function):
    """BCE, what target refinement adds to it, and DICE, each summed over the masks of one image: (3,) float32.

    The second result is the number of pixels that each mask is predicted to have, (N,) long, without gradient.

    Paper: L_ref is BCE weighted by A, where A = alpha on pixels claimed by two or more predictions of a question and 1
    elsewhere; the weight itself carries no gradient. So the addition is (alpha - 1) * BCE on those pixels. BCE is a
    mean over the pixels of a mask. DICE is 1 - (2 sum(p t) + eps) / (sum(p) + sum(t) + eps), its sums divided by 1000
    as in the release.

    At the size of a photo, a mask takes a hundred times the memory of what the network predicts. So the gradient is
    written out, and some rows of the photo are made at a time, in the backward pass again: nothing of that size is
    kept, and on a CPU what is made stays in its cache.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: PhotoMasks) -> tuple[Tensor, Tensor]:
        """Called by ``apply`` with (N, h, w) logits."""
        resizing, num_pixels = masks.resizing(logits), masks.num_pixels()
        sums = logits.new_zeros(5, len(logits), dtype=torch.float32)
        area = logits.new_zeros(len(logits), dtype=torch.long)
        bce_of, extra_of, p_and_truth, p_of, truth_of = sums
        for block in masks.blocks():
            x, truth = resizing.resized(logits, block), masks.truth(block)
            claimed = masks.claimed(x)
            area += (x > 0).sum((1, 2))
            bce = masks.leave_out(F.binary_cross_entropy_with_logits(x, truth, reduction="none"), block)
            bce_of += bce.sum((1, 2))
            if claimed is not None:
                extra_of += bce.mul_(claimed).sum((1, 2))
            p = masks.leave_out(x.sigmoid(), block)
            p_of += p.sum((1, 2))
            truth_of += truth.sum((1, 2))
            p_and_truth += p.mul_(truth).sum((1, 2))
        size, both = (p_of + truth_of) / _SCALE + _EPS, 2 * p_and_truth / _SCALE + _EPS
        ctx.masks = masks
        ctx.save_for_backward(logits, both, size)
        ctx.mark_non_differentiable(area)
        bce, extra = bce_of.sum() / num_pixels, (masks.refine_alpha - 1.0) * extra_of.sum() / num_pixels
        return torch.stack([bce, extra, (1 - both / size).sum()]), area

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradient of (3,) sums to that of (N, h, w) logits."""
        masks: PhotoMasks = ctx.masks
        logits, both, size = ctx.saved_tensors
        of_bce, of_extra, of_dice = upstream
        of_bce, of_extra = of_bce / masks.num_pixels(), of_extra * (masks.refine_alpha - 1.0) / masks.num_pixels()
        # The derivative of DICE by p, where the truth is 0, and what a truth of 1 adds to it.
        outside = (of_dice * both / size**2 / _SCALE)[:, None, None]
        inside = (-2 * of_dice / size / _SCALE)[:, None, None]
        resizing, total = masks.resizing(logits), torch.zeros_like(logits, dtype=torch.float32)
        for block in masks.blocks():
            x, truth = resizing.resized(logits, block), masks.truth(block)
            claimed, p = masks.claimed(x), x.sigmoid()
            by_dice = (truth * inside).add_(outside).mul_(1 - p).mul_(p)
            by_bce = p.sub_(truth)
            weight = of_bce if claimed is None else claimed * of_extra + of_bce
            gradient = masks.leave_out(by_bce.mul_(weight).add_(by_dice), block)
            resizing.add_gradient(total, gradient, block)
        return total.to(logits.dtype), None


def pixellm_loss(
    lm_loss: Tensor,
    mask_logits: Sequence[Tensor],
    masks: Sequence[Tensor],
    question: Tensor,
    weights: LossWeights,
    *,
    ignore: Sequence[Tensor | None] = (),
    resize: Sequence[PhotoResize] = (),
) -> LossTerms:
    """Combine the parts; all are means over this batch: of its supervised tokens, and of its masks.

    So does the release, per process and forward pass. ``LossTerms.scaled`` makes them parts of the mean of a larger
    batch.

    Args:
        lm_loss: () mean cross-entropy.
        mask_logits: B tensors (N_b, h_b, w_b).
        masks: ground truth (N_b, H_b, W_b), bool.
        question: (N,) the conversation of each mask, images in order; on the CPU, so that no GPU is waited for.
        ignore: per image (H_b, W_b) bool, pixels that do not count, or None; empty when no image has any.
        resize: per image, what brings its logits to the size of its masks; empty when they have it.
    Raises:
        ValueError: if an image has another number of predictions than of masks, or they have another size.
    """
    num_masks = sum(len(target) for target in masks)
    sums = lm_loss.new_zeros(3, dtype=torch.float32)
    questions, areas = question.tolist(), []
    for index, (logits, target) in enumerate(zip(mask_logits, masks, strict=True)):
        if len(logits) != len(target) or (not resize and logits.shape != target.shape):
            raise ValueError(f"image {index}: predicted masks {tuple(logits.shape)} != targets {tuple(target.shape)}")
        mine, questions = questions[: len(target)], questions[len(target) :]
        if len(target) == 0:
            sums = sums + logits.float().sum()  # zero, but keeps the decoder in the graph
            areas.append(torch.zeros(0, dtype=torch.long, device=logits.device))
            continue
        photo = PhotoMasks(
            target.bool(), mine, ignore[index] if ignore else None, resize[index] if resize else None,
            weights.refine_alpha,
        )  # fmt: skip
        of_image, area = MaskSums.apply(logits, photo)
        sums = sums + of_image
        areas.append(area)
    ce, scale = weights.ce * lm_loss, 1.0 / max(num_masks, 1)
    bce, refine, dice = weights.bce * scale * sums[0], weights.bce * scale * sums[1], weights.dice * scale * sums[2]
    return LossTerms(ce + bce + dice + refine, ce, bce, dice, refine, num_masks, areas)
