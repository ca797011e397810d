"""Samples -> Batch: padding, a last check that counts agree, and the rows that the language model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.utils.rnn import pad_sequence

from model.configuration import PixelLMConfig
from model.image import patch_valid_mask
from model.rows import rows_of_conversations, rows_with_shared_prefixes
from model.structures import Batch, TokenRows
from model.text.tokens import IGNORE_INDEX, SegCodebook

from .encode import Sample


@dataclass(frozen=True)
class Collator:
    """``collate`` with its settings, to hand to a data loader; its batches are laid out for the language model.

    Args:
        shared_prefix: conversations about an image share what they begin with; otherwise each has a row of its own.
    """

    config: PixelLMConfig
    pad_token_id: int
    shared_prefix: bool = True

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        batch = collate(samples, self.config.codebook, self.pad_token_id)
        return replace(batch, rows=self._lay_out(samples, batch))

    def _lay_out(self, samples: Sequence[Sample], batch: Batch) -> TokenRows:
        config = self.config
        patch_mask = patch_valid_mask(batch.valid_hw, size=config.covered_size, grid=config.llm_grid).flatten(1)
        if not self.shared_prefix:
            return rows_of_conversations(
                batch.input_ids, batch.attention_mask, batch.image_index,
                codebook=config.codebook, patch_mask=patch_mask, labels=batch.labels,
            )  # fmt: skip
        return rows_with_shared_prefixes(
            [ids for sample in samples for ids in sample.input_ids],
            [labels for sample in samples for labels in sample.labels],
            batch.image_index.tolist(),
            codebook=config.codebook, patch_mask=patch_mask, pad_token_id=self.pad_token_id,
        )  # fmt: skip


def collate(samples: Sequence[Sample], codebook: SegCodebook, pad_token_id: int) -> Batch:
    """Put samples together, a row for each conversation, padded on the right.

    B samples with Q conversations in all become (B, 3, R, R) pixels and (Q, L) ids; masks stay a list per image. Images
    whose features are known have no pixels.

    Raises:
        ValueError: if an image has more or fewer complete token groups than masks, which is a bug in the encoder.
    """
    ids = [row for sample in samples for row in sample.input_ids]
    labels = [row for sample in samples for row in sample.labels]
    lengths = torch.tensor([len(row) for row in ids])
    input_ids = pad_sequence(ids, batch_first=True, padding_value=pad_token_id)  # (Q, L)
    counts = torch.tensor([len(sample.input_ids) for sample in samples])
    image_index = torch.repeat_interleave(torch.arange(len(samples)), counts)  # (Q,)
    query_index, _ = codebook.find_groups(input_ids)
    groups = torch.bincount(image_index[query_index], minlength=len(samples)).tolist()
    for sample, found in zip(samples, groups, strict=True):
        if found != len(sample.masks):
            raise ValueError(f"{sample.sample_id}: {found} complete token groups but {len(sample.masks)} masks")
    pixels = [sample.pixel_values for sample in samples if sample.photo.features is None]
    return Batch(
        pixel_values=torch.stack(pixels) if pixels else torch.zeros(0),
        valid_hw=torch.tensor([sample.valid_hw for sample in samples]),
        input_ids=input_ids,
        labels=pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        # By length: the pad token is <unk>, which the words may hold too.
        attention_mask=torch.arange(input_ids.shape[1]) < lengths[:, None],
        image_index=image_index,
        masks=[sample.masks for sample in samples],
        orig_hw=[sample.orig_hw for sample in samples],
        sample_ids=[sample.sample_id for sample in samples],
        ignore=[sample.ignore for sample in samples],
        features=[sample.photo.features for sample in samples],
        photo_keys=[sample.photo.key for sample in samples],
        sources=[sample.source for sample in samples],
        replaced=[skip.source for sample in samples for skip in sample.skipped],
    )
