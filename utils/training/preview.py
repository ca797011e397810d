"""Samples exactly as the network gets them, without its weights: the encoder of a run, and pictures of what it makes.

Shapes: N masks in token order, R input side, H, W size of the photo's visible region.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch

from model.configuration import PixelLMConfig
from model.drawing import overlay
from model.errors import InputError
from model.files import is_folder, write_json
from model.hub import resolve_folder
from model.part_configs import read_base_config
from model.text.conversation import IMAGE_END, IMAGE_START, OURS, Conversation, get_conversation
from model.text.tokenizer import add_codebook, decode_released, load_tokenizer
from model.text.tokens import IGNORE_INDEX, IMAGE_TOKEN_ID, name_groups
from model.weights.checkpoint import read_model
from utils.cli.config import RunConfig
from utils.data.encode import Encoder, Sample
from utils.data.small_tokenizer import PROMPT_WORDINGS, train_tokenizer, write_tokenizer

from .start import make_config

logger = logging.getLogger(__name__)

# Stands in for a base that is not here; of its numbers the encoder uses none.
_SIDES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 24, "num_attention_heads": 4}


def build_encoder(run: RunConfig) -> Encoder:
    """What turns samples of this run into ids and pixels, by the model of ``--init_from``, if that is a local folder.

    Otherwise only the tokenizer of ``--version`` and the config.json of ``--vision-tower`` are read. Where one is no
    local folder, a stand-in takes its place: pictures, words and masks are the same, token counts are not.

    Raises:
        InputError: if a folder that is there cannot be read.
    """
    if run.init_from and is_folder(Path(run.init_from)):
        return _encoder_of_model(run)
    with TemporaryDirectory() as temporary:
        base, tower = Path(run.version), Path(run.vision_tower)
        if not is_folder(base):
            logger.info("--version %s is no local folder: a small tokenizer stands in for its own", run.version)
            base = Path(temporary) / "base"
            base.mkdir()
            write_tokenizer(base, train_tokenizer(PROMPT_WORDINGS))
            write_json(base / "config.json", {"vocab_size": 32000, "rms_norm_eps": 1e-5, **_SIDES})
        if not is_folder(tower):
            tower = Path(temporary) / "tower"
            size = 336 if run.vision_tower.endswith("336") else 224
            write_json(tower / "config.json", {"image_size": size, "patch_size": 14, **_SIDES})
        tokenizer = load_tokenizer(base, model_max_length=run.model_max_length)
        codebook = add_codebook(tokenizer, scales=run.image_feature_scale_num, tokens=run.seg_token_num)
        config = make_config(run, read_base_config(base), codebook, len(tokenizer), tower)
        return Encoder(tokenizer, codebook, config)


def _encoder_of_model(run: RunConfig) -> Encoder:
    found = read_model(resolve_folder(run.init_from, flag="--init_from"), conv_type=run.conv_type)
    if found.tokenizer is None:
        raise InputError(f"--init_from {run.init_from} has no tokenizer; copy it again from its source")
    found.tokenizer.model_max_length = found.config.model_max_length = run.model_max_length
    return Encoder(found.tokenizer, found.config.codebook, found.config)


def sample_panel(sample: Sample, encoder: Encoder) -> tuple[np.ndarray, str]:
    """The input, padding included, with its masks over it: (R, R, 3) uint8 RGB; and what is asked and answered.

    A mask has the number of its ``[number]`` in the answers; equal masks share one. Pixels that do not count are dark.
    """
    pixels = input_pixels(sample.pixel_values, encoder.config)
    if sample.ignore is not None:
        ignore = _place(sample.ignore.numpy(), sample.valid_hw, pixels.shape[:2])
        pixels[ignore] = pixels[ignore] // 4
    keys = [mask.tobytes() for mask in sample.masks.numpy()]
    first = {key: keys.index(key) for key in keys}  # different masks in reading order
    masks = np.zeros((len(first), *pixels.shape[:2]), dtype=bool)
    for mask, position in zip(masks, first.values(), strict=True):
        mask[:] = _place(sample.masks[position].numpy(), sample.valid_hw, mask.shape)
    numbers = [list(first).index(key) for key in keys]
    names = [f"[{number}]" if masks[number].any() else f"[{number}, empty]" for number in numbers]
    text_only = "" if any((ids == IMAGE_TOKEN_ID).any() for ids in sample.input_ids) else " (no photo)"
    return overlay(pixels, masks), f"{sample.sample_id}{text_only}\n{_words(sample, encoder, names)}"


def _place(mask: np.ndarray, valid_hw: tuple[int, int], input_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of the photo's visible region -> (R, R) bool of the input."""
    rows, columns = valid_hw
    placed = np.zeros(input_hw, dtype=bool)
    resized = cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_LINEAR)
    placed[:rows, :columns] = resized > 0.5
    return placed


def input_pixels(pixel_values: torch.Tensor, config: PixelLMConfig) -> np.ndarray:
    """Undo the normalization: (3, R, R) float -> (R, R, 3) uint8 RGB."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.image_mean, config.image_std))
    pixels = (pixel_values * std + mean).clamp(0, 1) * 255
    return pixels.round().byte().permute(1, 2, 0).contiguous().numpy()


def _words(sample: Sample, encoder: Encoder, names: Sequence[str]) -> str:
    """Every conversation, read back from its ids: what is supervised is an answer, what is not a question.

    Args:
        names: what stands for each token group, in reading order.
    """
    group = encoder.codebook.group_text
    template = get_conversation(encoder.config.conv_type)
    lines, remaining = [], iter(names)
    for ids, labels in zip(sample.input_ids, sample.labels, strict=True):
        pairs = zip(ids.tolist(), (labels != IGNORE_INDEX).tolist(), strict=True)
        for is_answer, run in groupby(pairs, key=lambda pair: pair[1]):
            text = decode_released(encoder.tokenizer, [token for token, _ in run if token != IMAGE_TOKEN_ID])
            named = name_groups(text, group, remaining)
            lines.append(f"{'A' if is_answer else 'Q'}: {_without_template(named, template)}")
    return "\n".join(lines)


def _without_template(text: str, template: Conversation) -> str:
    """The words that are different in every sample."""
    fixed = (template.head, template.before_question, template.before_answer, template.after_answer)
    for part in ("<s>", *fixed, IMAGE_START, IMAGE_END):
        text = " ".join(text.split()).replace(" ".join(part.replace(OURS, "").split()), " ")
    return " ".join(text.split())
