"""The ``seeded`` case: weights made from their names, the batch of three photos, and what the release computed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch

from model.configuration import PixelLMConfig
from model.conversation import get_conversation
from model.PixelLM import PixelLMForCausalLM
from model.structures import Batch
from model.tokens import IGNORE_INDEX, add_codebook, encode_conversation, load_tokenizer

FOLDER = Path(__file__).parent / "seeded"
SCALES, TOKENS, IMAGE_SIZE = 2, 3, 448


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def seeded_tensor(name: str, shape: list[int]) -> torch.Tensor:
    """A weight that depends on nothing but its released name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    values = np.random.Generator(np.random.Philox(seed)).standard_normal(shape).astype(np.float32)
    if "positional_encoding_gaussian_matrix" in name:
        return torch.from_numpy(values)
    if len(shape) >= 2:
        return torch.from_numpy((values / np.sqrt(np.prod(shape[1:]))).astype(np.float32))
    return torch.from_numpy(1 + 0.1 * values if name.endswith("weight") else 0.02 * values)


@dataclass
class SeededCase:
    network: PixelLMForCausalLM
    batch: Batch
    expected: dict[str, np.ndarray]
    train_step: dict[str, Any]


def build() -> SeededCase:
    tokenizer = load_tokenizer(FOLDER)
    codebook = add_codebook(tokenizer, scales=SCALES, tokens=TOKENS)
    flat = read("config.json") | {
        "image_feature_scale_num": SCALES,
        "resize_vision_tower": True,
        "resize_vision_tower_size": IMAGE_SIZE,
        "pad_train_clip_images": True,
        "separate_mm_projector": True,
    }
    config = PixelLMConfig.from_released(
        flat, vision=read("clip_config.json"), vision_tower="none", seg_token_ids=codebook.ids
    )
    network = PixelLMForCausalLM(config).eval()
    own = network.state_dict()
    shapes = {name: shape for name, shape in read("state_dict_shapes.json").items() if name in own}
    network.load_state_dict({name: seeded_tensor(name, shape) for name, shape in shapes.items()}, strict=False)
    return SeededCase(
        network=network,
        batch=_batch(config, tokenizer),
        expected=dict(np.load(FOLDER / "expected.npz")),
        train_step=read("train_step.json"),
    )


def _batch(config: PixelLMConfig, tokenizer: Any) -> Batch:
    conversations = read("batch.json")
    photos = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()]
    inputs = [config.preprocessor(photo) for photo in photos]
    encoded, image_index = [], []
    for index, (questions, answers) in enumerate(
        zip(conversations["questions"], conversations["answers"], strict=True)
    ):
        for question, answer in zip(questions, answers, strict=True):
            rendered = get_conversation("llava_v1").render([(f"<image>\n{question}", answer)])
            encoded.append(encode_conversation(tokenizer, rendered, num_image_tokens=config.num_image_tokens))
            image_index.append(index)
    masks = [torch.from_numpy(array) for array in np.load(FOLDER / "masks.npz").values()]
    return Batch(
        pixel_values=torch.stack([prepared.pixel_values for prepared in inputs]),
        valid_hw=torch.tensor([prepared.valid_hw for prepared in inputs]),
        input_ids=_pad([ids for ids, _ in encoded], tokenizer.pad_token_id),
        labels=_pad([labels for _, labels in encoded], IGNORE_INDEX),
        attention_mask=_pad([[1] * len(ids) for ids, _ in encoded], 0).bool(),
        image_index=torch.tensor(image_index),
        masks=masks,
        orig_hw=[tuple(mask.shape[-2:]) for mask in masks],
        sample_ids=conversations["images"],
    )


def _pad(rows: list[list[int]], value: int) -> torch.Tensor:
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
