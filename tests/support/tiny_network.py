"""Networks of a few thousand weights, and batches for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaTokenizer

from model.PixelLM import PixelLMForCausalLM
from model.processor import PixelLMProcessor
from model.structures import Batch
from model.text.conversation import IMAGE, get_conversation
from model.text.tokenizer import add_codebook, load_tokenizer
from model.text.tokens import IGNORE_INDEX, encode_conversation, seg_strings

from .tiny_data import tiny_config

Talk = tuple[int, str, str]  # image, question, answer with a "{seg}" per target


def make_network(
    folder: Path, *, scales: int = 2, tokens: int = 3, seed: int = 0, **changes: Any
) -> tuple[PixelLMForCausalLM, LlamaTokenizer]:
    """Random weights and the tokenizer of ``folder`` with the codebook in it; ``changes`` go to PixelLMConfig."""
    tokenizer = load_tokenizer(folder)
    codebook = add_codebook(tokenizer, scales=scales, tokens=tokens)
    layers = {"vision_feature_layers": (-2, -3, -4)[:scales], "out_dim": 32}
    torch.manual_seed(seed)
    network = PixelLMForCausalLM(tiny_config(codebook, **{**layers, **changes})).eval()
    network.processor = PixelLMProcessor.of(network.config, tokenizer)
    return network, tokenizer


def make_batch(
    network: PixelLMForCausalLM,
    tokenizer: LlamaTokenizer,
    dialogues: Sequence[Talk],
    *,
    photo_hw: Sequence[tuple[int, int]] = ((40, 60), (60, 30)),
    pad_to: int = 0,
) -> Batch:
    """A batch of noise photos and random masks, one mask per ``{seg}``.

    Args:
        pad_to: pad the text to this many positions; 0 pads to the longest.
    """
    config = network.config
    rng = np.random.default_rng(7)
    group = seg_strings(config.image_feature_scale_num, config.seg_token_num)
    photos = [config.preprocessor(rng.integers(0, 256, (*hw, 3), dtype=np.uint8)) for hw in photo_hw]
    rows, counts = [], [0] * len(photos)
    for image, question, answer in dialogues:
        rendered = get_conversation(config.conv_type).render([(question, answer)], image=IMAGE, group=group)
        rows.append(encode_conversation(tokenizer, rendered, num_image_tokens=config.num_image_tokens))
        counts[image] += answer.count("{seg}")
    length = max(pad_to, *(len(ids) for ids, _ in rows))
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    hw = [photo.region[2:] for photo in photos]
    return Batch(
        pixel_values=torch.stack([photo.pixel_values for photo in photos]),
        valid_hw=torch.tensor([photo.valid_hw for photo in photos]),
        input_ids=torch.tensor([ids + [tokenizer.pad_token_id] * (length - len(ids)) for ids, _ in rows]),
        labels=torch.tensor([labels + [IGNORE_INDEX] * (length - len(labels)) for _, labels in rows]),
        attention_mask=torch.arange(length) < lengths[:, None],
        image_index=torch.tensor([image for image, _, _ in dialogues]),
        masks=[torch.from_numpy(rng.random((count, *side)) < 0.5) for count, side in zip(counts, hw, strict=True)],
        orig_hw=hw,
        sample_ids=[f"photo {index}" for index in range(len(photos))],
    )
