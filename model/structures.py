"""The data that flows through the network; shapes are documented here, once.

Legend used in every file:
    B images, Q conversations, L tokens, N masks, S scales, K tokens per scale, P image tokens,
    R input side in pixels, D language-model width, C decoder width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache
from transformers.utils.generic import ModelOutput

# ModelOutput wants None as default of every field; the docstrings say when a field is set.
_SET_WHERE_PROMISED = cast(Any, None)


@dataclass
class Batch:
    """What collate makes and the network reads.

    Attributes:
        pixel_values: (B, 3, R, R) float, one row per image, never repeated.
        valid_hw: (B, 2) long, rows and columns of the input that show the image (the rest is padding).
        input_ids: (Q, L) long, every image placeholder already expanded to P ids.
        labels: (Q, L) long, ``IGNORE_INDEX`` where nothing is supervised.
        attention_mask: (Q, L) bool, false on text padding (the network adds image padding itself).
        image_index: (Q,) long, the image of each conversation.
        masks: B tensors (N_b, H_b, W_b) bool, in the order of the token groups of that image.
        orig_hw: B pairs (height, width): the size at which masks are compared.
        sample_ids: B names, for error messages.
        ignore: B maps (H_b, W_b) bool of pixels that neither loss nor score may look at, None where there are none;
            an empty list stands for none at all.
    """

    pixel_values: Tensor
    valid_hw: Tensor
    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    image_index: Tensor
    masks: list[Tensor]
    orig_hw: list[tuple[int, int]]
    sample_ids: list[str]
    ignore: list[Tensor | None] = field(default_factory=list)

    def inputs(self) -> dict[str, Any]:
        """What the forward pass of the network takes."""
        names = ("pixel_values", "valid_hw", "input_ids", "labels", "attention_mask", "image_index", "orig_hw")
        return {name: getattr(self, name) for name in names}

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """Move every tensor to ``device``; only ``pixel_values`` takes ``dtype``."""
        moved = {}
        for member in fields(self):
            value = getattr(self, member.name)
            if isinstance(value, Tensor):
                moved[member.name] = value.to(device, non_blocking=True)
        moved["pixel_values"] = moved["pixel_values"].to(dtype or self.pixel_values.dtype)
        masks = [mask.to(device, non_blocking=True) for mask in self.masks]
        ignore = [None if pixels is None else pixels.to(device, non_blocking=True) for pixels in self.ignore]
        return replace(self, masks=masks, ignore=ignore, **moved)

    def pin_memory(self) -> Batch:
        """Called by the data loader when it pins."""
        pinned = {
            member.name: getattr(self, member.name).pin_memory()
            for member in fields(self)
            if isinstance(getattr(self, member.name), Tensor)
        }
        ignore = [None if pixels is None else pixels.pin_memory() for pixels in self.ignore]
        return replace(self, masks=[mask.pin_memory() for mask in self.masks], ignore=ignore, **pinned)


@dataclass
class VisionFeatures:
    """One encoding of B images, shared by all their conversations.

    Attributes:
        llm: (B, P, D) what the language model reads in place of the image placeholders.
        patch_mask: (B, P) bool, false where an image token lies in the padding.
        pyramid: (S, B, D, g, g) features for the pixel decoder, deepest scale first, g patches per side.
        valid_hw: (B, 2) long, as in ``Batch``.
    """

    llm: Tensor
    patch_mask: Tensor
    pyramid: Tensor
    valid_hw: Tensor


@dataclass
class SegQueries:
    """One decoder query per complete token group, in reading order.

    Attributes:
        embeds: (N, S, C), the K tokens of each scale already fused.
        query_index: (N,) long, the conversation that each group came from.
        image_index: (N,) long, the image that each group speaks about.
    """

    embeds: Tensor
    query_index: Tensor
    image_index: Tensor


@dataclass
class PixelLMOutput(ModelOutput):
    """What a forward pass returns (a dict, so that ZeRO-3 hooks see the tensors).

    Attributes:
        loss: () cross-entropy of the supervised tokens, without the masks' losses; with labels. transformers' name.
        logits: (Q, L or fewer, vocabulary), see ``logits_to_keep``; without labels.
        mask_logits: B tensors (N_b, h, w), one mask per complete token group, of the padded input; with images.
        photo_logits: B tensors (N_b, H_b, W_b), the same at the size of the photo; with ``orig_hw``.
        query_index: (N,) long, the conversation of each mask, images in order; with images.
        last_hidden_state: (Q, L, D) of the language model.
        past_key_values: the cache that was given or made.
        hidden_states, attentions: of every layer, where transformers' options ask for them.
    """

    loss: Tensor = _SET_WHERE_PROMISED
    logits: Tensor = _SET_WHERE_PROMISED
    mask_logits: list[Tensor] = _SET_WHERE_PROMISED
    photo_logits: list[Tensor] = _SET_WHERE_PROMISED
    query_index: Tensor = _SET_WHERE_PROMISED
    last_hidden_state: Tensor = _SET_WHERE_PROMISED
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class PixelLMGenerateOutput(ModelOutput):
    """What ``generate`` returns.

    Attributes:
        sequences: (Q, L + T) prompt and new tokens, padded after the end of an answer.
        mask_logits: Q tensors (N_q, h, w), one mask per complete token group of the answer, of the padded input; None
            without images. ``PixelLMProcessor.post_process_masks`` makes masks of the photo of them.
        states: (Q, T, D), the last hidden state that predicted each new token.
        end_ids: tokens of which each ends an answer.
        others: what transformers' ``generate`` returns beside the sequences, such as scores.
    """

    sequences: Tensor = _SET_WHERE_PROMISED
    mask_logits: list[Tensor] | None = None
    states: Tensor = _SET_WHERE_PROMISED
    end_ids: tuple[int, ...] = _SET_WHERE_PROMISED
    others: dict[str, Any] | None = None


@dataclass
class LossTerms:
    """The parts of the training loss, each already weighted; ``total`` is their sum."""

    total: Tensor
    ce: Tensor
    bce: Tensor
    dice: Tensor
    refine: Tensor
    num_masks: int

    def scaled(self, *, text: float, masks: float) -> LossTerms:
        """The same parts with other weights: the text loss times ``text``, what masks cost times ``masks``."""
        ce, bce, dice, refine = text * self.ce, masks * self.bce, masks * self.dice, masks * self.refine
        return LossTerms(ce + bce + dice + refine, ce, bce, dice, refine, self.num_masks)
