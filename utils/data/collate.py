"""Samples -> Batch: padding only, and one last check that counts agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from model.structures import Batch
from model.text.tokens import IGNORE_INDEX, SegCodebook

from .encode import Sample


@dataclass(frozen=True)
class Collator:
    """``collate`` with its settings, to hand to a data loader."""

    codebook: SegCodebook
    pad_token_id: int

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        return collate(samples, self.codebook, self.pad_token_id)


def collate(samples: Sequence[Sample], codebook: SegCodebook, pad_token_id: int) -> Batch:
    """Put samples together; text is padded on the right.

    B samples with Q conversations in all become (B, 3, R, R) pixels and (Q, L) ids; masks stay a list per image.

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
    return Batch(
        pixel_values=torch.stack([sample.pixel_values for sample in samples]),
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
    )
