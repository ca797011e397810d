"""The training loss: L = L_txt + lambda_bce * L_ref + lambda_dice * L_dice (paper section 3.3).

Shapes: N masks of one image, h, w their size as predicted, H, W that of the photo; Q conversations, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .structures import LossTerms
from .text.tokens import IGNORE_INDEX, IMAGE_TOKEN_ID

Resize = Callable[[Tensor], Tensor]
_PIXELS_OF_A_BLOCK = 2**23
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
        resize: (n, h, w) logits -> (n, H, W) float32, for any of the masks; None if they have that size already.
        refine_alpha: the paper's alpha; 1.0 is exactly plain BCE.
    """

    targets: Tensor
    question: Sequence[int]
    ignored: Tensor | None
    resize: Resize | None
    refine_alpha: float

    def resized(self, logits: Tensor) -> Tensor:
        """(n, h, w) -> (n, H, W) float32, which may be the argument itself."""
        return self.resize(logits) if self.resize else logits.float()

    def blocks(self) -> list[slice]:
        """Masks that are looked at together; no more is held at the size of the photo."""
        size = max(1, _PIXELS_OF_A_BLOCK // max(1, self.targets[0].numel()))
        return [slice(start, start + size) for start in range(0, len(self.targets), size)]

    def truth(self, block: slice) -> Tensor:
        """(n, H, W) float32, 0 where pixels do not count."""
        truth = self.targets[block].float()
        return truth if self.ignored is None else truth.masked_fill_(self.ignored, 0.0)

    def num_pixels(self) -> Tensor | int:
        """Of a mask, those that count."""
        return self.targets[0].numel() if self.ignored is None else (~self.ignored).sum()

    def claimed(self, logits: Tensor) -> Tensor | None:
        """Pixels where two or more predictions of the same question are positive, by prediction and not by truth.

        Returns:
            (N, H, W) bool, equal for the masks of one question; None if nothing depends on it.
        """
        if self.refine_alpha == 1.0 or len(set(self.question)) == len(self.question):
            return None
        positive = torch.cat([self.resized(logits[block]) > 0 for block in self.blocks()])
        claimed = torch.zeros_like(positive)
        for question in set(self.question):
            mine = [mask for mask, of in enumerate(self.question) if of == question]
            if len(mine) > 1:
                claimed[mine] = positive[mine].sum(0) >= 2
        return claimed


class MaskSums(torch.autograd.Function):
    """BCE, what target refinement adds to it, and DICE, each summed over the masks of one image: (3,) float32.

    The second result is the number of pixels that each mask is predicted to have, (N,) long, without gradient.

    Paper: L_ref is BCE weighted by A, where A = alpha on pixels claimed by two or more predictions of a question and 1
    elsewhere; the weight itself carries no gradient. So the addition is (alpha - 1) * BCE on those pixels. BCE is a
    mean over the pixels of a mask. DICE is 1 - (2 sum(p t) + eps) / (sum(p) + sum(t) + eps), its sums divided by 1000
    as in the release.

    At the size of a photo, a mask takes a hundred times the memory of what the network predicts. So the gradient is
    written out, and a block of masks is resized at a time, in the backward pass again: nothing of that size is kept.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: PhotoMasks) -> tuple[Tensor, Tensor]:
        """Called by ``apply`` with (N, h, w) logits."""
        claimed, num_pixels, of_blocks, areas = masks.claimed(logits), masks.num_pixels(), [], []
        for block in masks.blocks():
            x, truth = masks.resized(logits[block]), masks.truth(block)
            bce = F.binary_cross_entropy_with_logits(x, truth, reduction="none")
            p = x.sigmoid()
            if masks.ignored is not None:
                bce.masked_fill_(masks.ignored, 0.0)
                p.masked_fill_(masks.ignored, 0.0)
            plain = bce.sum((1, 2)) / num_pixels
            if claimed is None:
                extra = torch.zeros_like(plain)
            else:
                extra = (masks.refine_alpha - 1.0) * bce.mul_(claimed[block]).sum((1, 2)) / num_pixels
            size = (p.sum((1, 2)) + truth.sum((1, 2))) / _SCALE + _EPS
            both = 2 * p.mul_(truth).sum((1, 2)) / _SCALE + _EPS
            of_blocks.append(torch.stack([plain, extra, both, size]))
            areas.append((x > 0).sum((1, 2)))
        plain, extra, both, size = torch.cat(of_blocks, 1)
        ctx.masks = masks
        ctx.save_for_backward(logits, both, size, claimed)
        area = torch.cat(areas)
        ctx.mark_non_differentiable(area)
        return torch.stack([plain.sum(), extra.sum(), (1 - both / size).sum()]), area

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradient of (3,) sums to that of (N, h, w) logits."""
        masks: PhotoMasks = ctx.masks
        logits, both, size, claimed = ctx.saved_tensors
        of_bce, of_extra, of_dice = upstream
        of_bce, of_extra = of_bce / masks.num_pixels(), of_extra * (masks.refine_alpha - 1.0) / masks.num_pixels()
        # The derivative of DICE by p, where the truth is 0, and what a truth of 1 adds to it.
        outside = (of_dice * both / size**2 / _SCALE)[:, None, None]
        inside = (-2 * of_dice / size / _SCALE)[:, None, None]
        gradients = []
        for block in masks.blocks():
            low_res = logits[block].detach().requires_grad_()
            with torch.enable_grad():
                resized = masks.resized(low_res)
            truth, p = masks.truth(block), resized.detach().sigmoid()
            by_dice = (truth * inside[block]).add_(outside[block]).mul_(1 - p).mul_(p)
            by_bce = p.sub_(truth)
            weight = of_bce if claimed is None else claimed[block] * of_extra + of_bce
            gradient = by_bce.mul_(weight).add_(by_dice)
            if masks.ignored is not None:
                gradient.masked_fill_(masks.ignored, 0.0)
            gradients += torch.autograd.grad(resized, low_res, gradient)
        return torch.cat(gradients), None


def pixellm_loss(
    lm_loss: Tensor,
    mask_logits: Sequence[Tensor],
    masks: Sequence[Tensor],
    question: Tensor,
    weights: LossWeights,
    *,
    ignore: Sequence[Tensor | None] = (),
    resize: Sequence[Resize] = (),
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
