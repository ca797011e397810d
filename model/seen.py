"""Images that were looked at, and the masks of answers about them.

Shapes: B images, N masks, S scales, K tokens per scale, D language-model width, H, W size of a photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .codebook import gather_seg_states
from .context import Context
from .decoding import Answer
from .generation import without_gaps
from .image import Photo, photo_pixels
from .PixelLM import PixelLMForCausalLM
from .processor import PixelLMProcessor
from .rows import rows_of_conversations
from .structures import SegQueries, VisionFeatures

_MASKS_AT_ONCE = 32


@dataclass(frozen=True)
class Seen:
    """Images that were looked at.

    Attributes:
        sizes: (H, W) of each photo.
        features: of the B images.
        prefix: a row for each image, in which the language model has read everything before a question.
    """

    sizes: list[tuple[int, int]]
    features: VisionFeatures
    prefix: Context


@torch.inference_mode()
def look(
    model: PixelLMForCausalLM, processor: PixelLMProcessor, photos: Sequence[Photo], prefix_ids: Sequence[int]
) -> Seen:
    """Read photos, and what stands before a question about them.

    Args:
        prefix_ids: of that, with the placeholders of an image.
    Raises:
        InputError: if a photo cannot be read.
    """
    pixels = [photo_pixels(photo) for photo in photos]
    inputs = processor.image_processor(pixels)
    device = model.device
    features = model.encode_images(inputs["pixel_values"].to(device, model.dtype), inputs["valid_hw"].to(device))
    ids = torch.tensor([list(prefix_ids)] * len(photos), device=device)
    rows = rows_of_conversations(
        ids, torch.ones_like(ids), torch.arange(len(photos), device=device),
        codebook=model.codebook, patch_mask=features.patch_mask,
    )  # fmt: skip
    context = Context(model.model, num_layers=model.config.text_config.num_hidden_layers)
    context.read(*without_gaps(model.embed(rows, features), rows.visible, rows.position_ids))
    context.skip_to(len(prefix_ids))  # the last tokens of an image may show nothing, and were left out
    return Seen([(image.shape[0], image.shape[1]) for image in pixels], features, context)


def group_states(model: PixelLMForCausalLM, answer: Answer) -> Tensor:
    """(N, S, K, D), what predicted the tokens of each complete group."""
    codebook, width = model.codebook, model.config.text_config.hidden_size
    states = torch.cat(answer.states or [torch.empty(0, width, dtype=model.dtype, device=model.device)])
    starts = codebook.find_groups(torch.tensor([answer.ids], dtype=torch.long))[1].to(states.device)
    return gather_seg_states(states[None], starts + 1, codebook=codebook)  # states[i] predicted ids[i]


def decode_groups(
    model: PixelLMForCausalLM, grouped: Sequence[Tensor], images: Sequence[int], features: VisionFeatures
) -> list[Tensor]:
    """(N, S, K, D) of each answer to (N, h, w) logits of its padded input; all are decoded together.

    Args:
        images: of each answer, which of the B it is about.
    """
    counts = [len(groups) for groups in grouped]
    if not sum(counts):  # the decoder would draw one mask, and drop it
        return [features.pyramid.new_zeros(0, 1, 1)] * len(counts)
    states, device = torch.cat(list(grouped)), features.pyramid.device
    image_of = torch.tensor([image for image, count in zip(images, counts, strict=True) for _ in range(count)])
    decoded = [
        model.decode_masks(features, SegQueries(model.fuse(some), of, of))
        for some, of in zip(states.split(_MASKS_AT_ONCE), image_of.long().to(device).split(_MASKS_AT_ONCE), strict=True)
    ]
    return list(torch.cat(decoded).split(counts))
