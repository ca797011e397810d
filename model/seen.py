"""Images that were looked at, and the masks of answers about them.

Shapes: B images, N masks, S scales, K tokens per scale, D language-model width, H, W size of a photo.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .codebook import gather_seg_states
from .context import Context
from .decoding import Answer, read_parts
from .errors import InputError
from .generation import without_gaps
from .image import Photo, photo_pixels
from .PixelLM import PixelLMForCausalLM
from .processor import PixelLMProcessor
from .rows import positions, rows_of_conversations
from .structures import SegQueries, VisionFeatures
from .text.tokens import IMAGE_TOKEN_ID

_MASKS_AT_ONCE = 32


class Seen:
    """Images that were looked at, and what the language model has read before questions about them.

    That is the same for all questions about an image. It is read together with the first one, in one pass.

    Args:
        photos: B of them.
        prefix_ids: what stands before a question, with the placeholders of an image.
        keeps_prefix: what was read is kept for further questions; otherwise each reads it again.
    Attributes:
        sizes: (H, W) of each photo.
        features: of the B images.
    Raises:
        InputError: if a photo cannot be read.
    """

    def __init__(
        self, model: PixelLMForCausalLM, processor: PixelLMProcessor, photos: Sequence[Photo], prefix_ids: list[int],
        *, keeps_prefix: bool = True,
    ) -> None:  # fmt: skip
        self._model, self._prefix_ids, self._keeps_prefix = model, prefix_ids, keeps_prefix
        pixels = [photo_pixels(photo) for photo in photos]
        inputs = processor.image_processor(pixels)
        device = model.device
        self.features = model.encode_images(
            inputs["pixel_values"].to(device, model.dtype), inputs["valid_hw"].to(device)
        )
        self.sizes = [(image.shape[0], image.shape[1]) for image in pixels]
        self._prefix: Context | None = None

    def read(self, words: Sequence[list[int]], images: Sequence[int]) -> tuple[Context, Tensor]:
        """Read Q questions, each in a row that goes on by itself.

        Args:
            words: what follows the image in each.
            images: which of the B each is about.
        Returns:
            what was read; (Q, n, D), the states behind the words, those of shorter questions at the end.
        """
        if self._prefix is None and list(images) == list(range(len(self.sizes))):
            context, states = self._read_all(words)
            if len(words) == 1 and self._keeps_prefix:
                # Tokens of the image that show nothing were left out, but they have their positions.
                self._prefix = context.copy_of(
                    [0], length=context.length - len(words[0]), position=len(self._prefix_ids)
                )
            return context, states[:, -max(map(len, words)) :]
        if self._prefix is None:
            self._prefix, _ = self._read_all([[] for _ in self.sizes])
        context = self._prefix.copy_of(images, position=len(self._prefix_ids))
        return context, read_parts(context, words, self._model.model.embed_tokens, device=self._model.device)

    def read_answers(self, known: Sequence[tuple[list[int], list[int]]], images: Sequence[int]) -> list[Answer]:
        """Read Q questions with their answers, in one pass.

        Args:
            known: what follows the image before each answer, and the answer.
            images: as of ``read``.
        """
        _, states = self.read([words + ids for words, ids in known], images)
        begins = [states.shape[1] - len(ids) - 1 for _, ids in known]  # states[i] predicted ids[i - begin]
        return [
            Answer(row=row, room=len(ids), ids=ids, states=[states[row, begin:-1]])
            for row, ((_, ids), begin) in enumerate(zip(known, begins, strict=True))
        ]

    def _read_all(self, words: Sequence[list[int]]) -> tuple[Context, Tensor]:
        """A pass over the images and the words about each; of several, what stands before an image is read once."""
        model, device = self._model, self._model.device
        context = Context(model.model, num_layers=model.config.text_config.num_hidden_layers)
        num_shared = self._prefix_ids.index(IMAGE_TOKEN_ID) if len(words) > 1 else 0
        if num_shared:
            read_parts(context, [self._prefix_ids[:num_shared]], model.model.embed_tokens, device=device)
            context = context.copy_of([0] * len(words))
        of_image, width = self._prefix_ids[num_shared:], max(map(len, words))
        ids = torch.tensor([[0] * (width - len(mine)) + of_image + mine for mine in words], device=device)
        is_token = torch.tensor([[False] * (width - len(mine)) + [True] * len(of_image + mine) for mine in words])
        is_token = is_token.to(device)
        rows = rows_of_conversations(
            ids, is_token, torch.arange(len(words), device=device), codebook=model.codebook,
            patch_mask=self.features.patch_mask, position_ids=num_shared + positions(is_token),
        )  # fmt: skip
        states = context.read(*without_gaps(model.embed(rows, self.features), rows.visible, rows.position_ids))
        return context, states


def batches_of_photos(photos: Sequence[Photo], batch_size: int) -> Iterator[tuple[list[int], list[Photo], list[int]]]:
    """Requests in batches, by the photo of each; those about one photo, by object or file name, stand together.

    Yields:
        places of requests, the photos that they are about, and which of these each is about.
    Raises:
        InputError: if ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; expected 1 or more")
    keys = [photo if isinstance(photo, str | Path) else id(photo) for photo in photos]
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    order = sorted(range(len(photos)), key=lambda place: first[keys[place]])
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        shown = list(dict.fromkeys(keys[place] for place in places))
        yield places, [photos[first[key]] for key in shown], [shown.index(keys[place]) for place in places]


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
