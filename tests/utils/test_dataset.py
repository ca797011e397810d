"""The import names of the release: what they take, and what they say to the arguments of the release."""

from __future__ import annotations

import pytest
import torch

from utils.data.collate import Collator
from utils.data.registry import DataOptions, build_train_sources, build_val_source
from utils.dataset import HybridDataset, ValDataset, collate_fn


@pytest.fixture(scope="module")
def samples(shared_dataset, encoder):
    options = DataOptions(shared_dataset, "refer_seg||multi_reason_seg", "1,2", refer_seg_data="refcoco")
    mixture = HybridDataset(*build_train_sources(options), encoder, seed=0)
    return [mixture[0], mixture[1]]


def test_released_arguments_collate_samples(samples, encoder):
    expected = Collator(encoder.config, encoder.tokenizer.pad_token_id)(samples)
    found = collate_fn(samples, encoder.tokenizer, conv_type="llava_v1", use_mm_start_end=True, local_rank=0)
    assert found.sample_ids == expected.sample_ids
    assert torch.equal(found.input_ids, expected.input_ids)
    assert torch.equal(found.labels, expected.labels)


def test_collate_says_what_is_missing(samples, encoder):
    with pytest.raises(TypeError, match="needs tokenizer="):
        collate_fn(samples)
    with pytest.raises(TypeError, match="not the tuples of the release"):
        collate_fn([("image.jpg", None)], encoder.tokenizer)


def test_released_constructors_are_refused_with_what_to_call(shared_dataset, encoder):
    source = build_val_source(shared_dataset, "refcoco|unc|val")
    assert len(ValDataset(source, encoder)) == len(source)
    with pytest.raises(TypeError, match="call ValDataset\\(build_val_source"):
        ValDataset(str(shared_dataset), encoder.tokenizer, "clip", "ReasonSeg|val")
    with pytest.raises(TypeError, match="call Mixture\\(\\*build_train_sources"):
        HybridDataset(base_image_dir=str(shared_dataset), tokenizer=encoder.tokenizer, vision_tower="clip")
