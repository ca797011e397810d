"""The pretrained models that PixelLM starts from, for the toy world: a LLaVA base and its CLIP tower."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from model.tokens import load_tokenizer
from utils.toy_world.language import (
    LanguageTraining,
    ToyLlava,
    language_config,
    measure_language,
    read_dialogues,
    train_language,
    write_language,
)
from utils.toy_world.parallel import Workers
from utils.toy_world.tokenizer import write_tokenizer
from utils.toy_world.tower import (
    DEEP_LAYER,
    SHALLOW_LAYER,
    TowerTraining,
    ToyTower,
    measure_tower,
    tower_config,
    train_tower,
    write_tower,
)
from utils.toy_world.views import Views

logger = logging.getLogger(__name__)

# Random streams of the tower's scenes; the dataset uses those below.
_TRAIN_STREAM, _HELD_OUT_STREAM = 10, 11


def make_tower(
    folder: Path, *, image_size: int, seed: int, workers: Workers, training: TowerTraining
) -> tuple[ToyTower, dict[str, dict[str, float]]]:
    """Pre-train a CLIP tower and write its folder.

    Args:
        image_size: input side in pixels.
    Returns:
        the tower, and for each depth that PixelLM reads what `measure_tower` finds on held-out scenes.
    """
    train, held_out = (
        Views(count, seed=seed, stream=stream, image_size=image_size, workers=workers)
        for count, stream in ((training.num_scenes, _TRAIN_STREAM), (training.num_held_out, _HELD_OUT_STREAM))
    )
    logger.info("tower: drew %d scenes to learn from", len(train))
    torch.manual_seed(seed)
    config = tower_config(image_size)
    tower = ToyTower(config)
    train_tower(tower, train, training, seed=seed)
    write_tower(tower, folder, config)
    measured = {}
    for name, layer in (("deep", DEEP_LAYER), ("shallow", SHALLOW_LAYER)):
        measured[name] = measure_tower(tower, held_out, layer=layer)
        numbers = ", ".join(f"{key} {value:.3f}" for key, value in measured[name].items())
        logger.info("tower, hidden state %d, held-out scenes: %s", layer, numbers)
    return tower, measured


def make_language_base(
    folder: Path,
    tower: ToyTower,
    *,
    dataset: Path,
    tower_name: str,
    image_size: int,
    seed: int,
    training: LanguageTraining,
) -> dict[str, float]:
    """Make a tokenizer and a LLaVA base over a frozen tower and write their folder.

    Args:
        dataset: the toy world's dataset directory, whose dialogues are read.
    Returns:
        the loss per token on the validation dialogues.
    """
    write_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    train, held_out = (
        read_dialogues(dataset, tower, tokenizer, split=split, image_size=image_size, seed=seed)
        for split in ("train", "val")
    )
    logger.info("language: looked at %d pictures to talk about", len(train))
    torch.manual_seed(seed)
    llava = ToyLlava(language_config(len(tokenizer)), tower_width=train.features.shape[-1])
    llava.whiten(train)
    train_language(llava, train, training, seed=seed)
    write_language(llava, folder, tower_name=tower_name)
    loss = measure_language(llava, held_out)
    logger.info("language: loss per token %.3f on validation dialogues", loss)
    return {"loss_per_token": loss}


def write_base_weights(
    language_folder: Path,
    tower_folder: Path,
    *,
    dataset: Path,
    image_size: int,
    seed: int,
    workers: Workers,
) -> dict[str, Any]:
    """Write both folders; returns what was measured on pictures and dialogues that training did not use."""
    tower, measured = make_tower(
        tower_folder, image_size=image_size, seed=seed, workers=workers, training=TowerTraining()
    )
    language = make_language_base(
        language_folder,
        tower,
        dataset=dataset,
        tower_name=tower_folder.name,
        image_size=image_size,
        seed=seed,
        training=LanguageTraining(),
    )
    return {"tower": measured, "language": language}
