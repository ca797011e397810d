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


SHARED = -1  # in place of the number of a conversation


@dataclass
class TokenRows:
    """Conversations as the language model reads them, and where to look in what it says (model/rows.py).

    Whatever depends on the values of tokens is a position in here, found on the CPU, so that a GPU is never asked where
    something is. A position counts tokens through all rows: row * L + column.

    Attributes:
        input_ids: (R, L) long, ``IMAGE_TOKEN_ID`` at image tokens.
        position_ids: (R, L) long, the place of a token in its conversation.
        visible: (R, L) bool, false on padding and on image tokens in the padding of a photo.
        image_at: (I,) long, positions of image tokens; patches: (I,) long, which of the B * P features stand there.
        group_at: (N,) long, positions of the first tokens of complete groups; images in order, each in reading order.
        group_image, group_conversation: (N,) long, what each group belongs to.
        groups_per_image: B numbers.
        supervised: (T,) long, positions of the states that predict a supervised token; with labels.
        targets: (T,) long, these tokens; with labels.
        image, conversation: (R, L) long, what each token belongs to, with shared prefixes; ``SHARED`` in a prefix.
            None where each row is one conversation.
    """

    input_ids: Tensor
    position_ids: Tensor
    visible: Tensor
    image_at: Tensor
    patches: Tensor
    group_at: Tensor
    group_image: Tensor
    group_conversation: Tensor
    groups_per_image: list[int]
    supervised: Tensor | None = None
    targets: Tensor | None = None
    image: Tensor | None = None
    conversation: Tensor | None = None

    def to(self, device: torch.device | str) -> TokenRows:
        """Move every tensor to ``device``."""
        return replace(self, **{name: t.to(device, non_blocking=True) for name, t in _tensors(self).items()})

    def pin_memory(self) -> TokenRows:
        """Called by the data loader when it pins."""
        return replace(self, **{name: t.pin_memory() for name, t in _tensors(self).items()})


def _tensors(data: Any) -> dict[str, Tensor]:
    """The fields of a dataclass that are tensors."""
    values = {member.name: getattr(data, member.name) for member in fields(data)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


@dataclass
class Batch:
    """What collate makes and the network reads.

    Attributes:
        pixel_values: (B, 3, R, R) float, one row per image, never repeated; images with ``features`` have none.
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
        rows: the conversations laid out for the language model; None leaves that to the network.
        features: B times (S, g*g, V) as the tower makes them, None where they are not known; an empty list stands for
            none at all.
        photo_keys: B names under which features can be kept; an empty list stands for none at all.
        sources: B names of the datasets that they were drawn from; in training alone.
        replaced: the dataset of each sample that could not be used, and in whose place one of these was drawn.
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
    rows: TokenRows | None = None
    features: list[Tensor | None] = field(default_factory=list)
    photo_keys: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)

    def inputs(self, *, photo_logits: bool = True) -> dict[str, Any]:
        """What the forward pass of the network takes.

        Args:
            photo_logits: also ask for masks of the size of the photo.
        """
        words = ("input_ids", "labels", "attention_mask", "image_index") if self.rows is None else ("rows",)
        size = ("orig_hw",) if photo_logits else ()
        return {name: getattr(self, name) for name in ("pixel_values", "valid_hw", *words, *size)}

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """Move tensors to ``device``, but not ``valid_hw``, which is read on the CPU; pixels take ``dtype``."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in _tensors(self).items()}
        moved["valid_hw"] = self.valid_hw
        moved["pixel_values"] = moved["pixel_values"].to(dtype or self.pixel_values.dtype)
        masks = [mask.to(device, non_blocking=True) for mask in self.masks]
        ignore, features = (
            [None if tensor is None else tensor.to(device, non_blocking=True) for tensor in tensors]
            for tensors in (self.ignore, self.features)
        )
        rows = self.rows and self.rows.to(device)
        return replace(self, masks=masks, ignore=ignore, features=features, rows=rows, **moved)

    def pin_memory(self) -> Batch:
        """Called by the data loader when it pins."""
        pinned = {name: tensor.pin_memory() for name, tensor in _tensors(self).items()}
        ignore, features = (
            [None if tensor is None else tensor.pin_memory() for tensor in tensors]
            for tensors in (self.ignore, self.features)
        )
        masks, rows = [mask.pin_memory() for mask in self.masks], self.rows and self.rows.pin_memory()
        return replace(self, masks=masks, ignore=ignore, features=features, rows=rows, **pinned)


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
    """The parts of the training loss, each already weighted; ``total`` is their sum.

    Attributes:
        areas: B tensors (N_b,) long, pixels of the photo that each prediction takes.
    """

    total: Tensor
    ce: Tensor
    bce: Tensor
    dice: Tensor
    refine: Tensor
    num_masks: int
    areas: list[Tensor] = field(default_factory=list)

    def scaled(self, *, text: float, masks: float) -> LossTerms:
        """The same parts with other weights: the text loss times ``text``, what masks cost times ``masks``."""
        ce, bce, dice, refine = text * self.ce, masks * self.bce, masks * self.dice, masks * self.refine
        return LossTerms(ce + bce + dice + refine, ce, bce, dice, refine, self.num_masks, self.areas)
