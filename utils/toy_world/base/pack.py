"""The pretrained models that PixelLM starts from, for the toy world: a LLaVA base and its CLIP tower.

Nobody pretrains CLIP and LLaVA to try PixelLM, and so the repository keeps both for the toy world, in one file that
``pretrain`` made. They know the toy world's looks and words; masks and their tokens they have never seen.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.errors import InputError
from model.text.tokenizer import load_tokenizer
from utils.data.small_tokenizer import train_tokenizer, write_tokenizer
from utils.toy_world.parallel import OrderedMap

from .language import (
    LanguageTraining,
    ToyLlava,
    draw_dialogues,
    language_config,
    measure_language,
    train_language,
    write_language,
)
from .tokenizer import toy_corpus
from .tower import (
    DEEP_LAYER,
    SHALLOW_LAYER,
    TowerTraining,
    ToyTower,
    measure_tower,
    tower_config,
    train_tower,
    write_tower,
)
from .views import Views

logger = logging.getLogger(__name__)

KEPT = Path(__file__).with_name("base_weights.safetensors")
# Random streams of scenes to learn from and to measure on; the dataset uses those below.
_TOWER_STREAMS, _DIALOGUE_STREAMS = (10, 11), (12, 13)
_TOKENIZER = "tokenizer.model"


def pretrain(
    file: Path,
    *,
    image_size: int,
    seed: int,
    ordered_map: OrderedMap,
    scratch: Path,
    tower_training: TowerTraining | None = None,
    language_training: LanguageTraining | None = None,
) -> None:
    """Train tower and LLaVA base from nothing and write them, in half precision, to one file.

    Args:
        image_size: input side of the tower in pixels.
        scratch: an existing folder for the tokenizer.
    """
    tower, measured = make_tower(
        image_size=image_size, seed=seed, ordered_map=ordered_map, training=tower_training or TowerTraining()
    )
    tokenizer = train_tokenizer(toy_corpus())
    write_tokenizer(scratch, tokenizer)
    llava, loss = make_llava(
        tower,
        scratch,
        image_size=image_size,
        seed=seed,
        ordered_map=ordered_map,
        training=language_training or LanguageTraining(),
    )
    measured = {"tower": measured, "language": {"loss_per_token": loss}}
    write_pack(file, tower, llava, tokenizer, image_size=image_size, measured=measured)


def write_pack(
    file: Path, tower: ToyTower, llava: ToyLlava, tokenizer: bytes, *, image_size: int, measured: dict[str, Any]
) -> None:
    """Write both models in half precision, the tokenizer and what was measured to one file."""
    tensors = {f"tower.{name}": tensor for name, tensor in tower.clip.state_dict().items()}
    tensors |= {f"llava.{name}": tensor for name, tensor in llava.state_dict().items()}
    half = {name: (t.half() if t.is_floating_point() else t).contiguous() for name, t in tensors.items()}
    half[_TOKENIZER] = torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)
    save_file(half, file, metadata={"notes": json.dumps({"image_size": image_size, "measured": measured})})


def unpack(file: Path, language_folder: Path, tower_folder: Path, *, image_size: int) -> dict:
    """Write what ``pretrain`` put into a file as the two folders that a release has.

    Returns:
        what was measured after pretraining, on scenes that it did not use.
    Raises:
        InputError: if the file's tower reads pictures of another size.
    """
    with safe_open(file, framework="pt") as pack:
        notes = json.loads(pack.metadata()["notes"])
        tensors = {name: pack.get_tensor(name) for name in pack.keys()}  # noqa: SIM118 - safe_open is no mapping
    if image_size != notes["image_size"]:
        raise InputError(
            f"the base weights of {file.name} see pictures of {notes['image_size']} px, not {image_size} px; leave "
            "--image_size out, or add --pretrain to train others"
        )
    model = tensors.pop(_TOKENIZER).numpy().tobytes()
    write_tokenizer(language_folder, model)
    tower = ToyTower(tower_config(image_size))
    tower.clip.load_state_dict(_part(tensors, "tower."))
    write_tower(tower, tower_folder)
    vocab_size, _ = tensors["llava.llama.lm_head.weight"].shape
    llava = ToyLlava(language_config(vocab_size), tower_width=tensors["llava.projector.weight"].shape[1])
    llava.load_state_dict(_part(tensors, "llava."))
    write_language(llava, language_folder, tower_name=tower_folder.name)
    return notes["measured"]


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it, in float32."""
    part = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: t.float() if t.is_floating_point() else t for name, t in part.items()}


def make_tower(
    *, image_size: int, seed: int, ordered_map: OrderedMap, training: TowerTraining
) -> tuple[ToyTower, dict[str, dict[str, float]]]:
    """Pretrain a CLIP tower.

    Returns:
        the tower, and for each depth that PixelLM reads what ``measure_tower`` finds on held-out scenes.
    """
    train, held_out = (
        Views(count, seed=seed, stream=stream, image_size=image_size, ordered_map=ordered_map)
        for count, stream in zip((training.num_scenes, training.num_held_out), _TOWER_STREAMS, strict=True)
    )
    logger.info("tower: drew %d scenes to learn from", len(train))
    torch.manual_seed(seed)
    tower = ToyTower(tower_config(image_size))
    train_tower(tower, train, training, seed=seed)
    measured = {}
    for name, layer in (("deep", DEEP_LAYER), ("shallow", SHALLOW_LAYER)):
        measured[name] = measure_tower(tower, held_out, layer=layer)
        numbers = ", ".join(f"{key} {value:.3f}" for key, value in measured[name].items())
        logger.info("tower, hidden state %d, held-out scenes: %s", layer, numbers)
    return tower, measured


def make_llava(
    tower: ToyTower,
    tokenizer_folder: Path,
    *,
    image_size: int,
    seed: int,
    ordered_map: OrderedMap,
    training: LanguageTraining,
) -> tuple[ToyLlava, float]:
    """Pretrain a LLaVA base over a frozen tower; returns it and its loss per token on held-out dialogues."""
    tokenizer = load_tokenizer(tokenizer_folder)
    train, held_out = (
        draw_dialogues(
            count, tower, tokenizer, seed=seed, stream=stream, image_size=image_size, ordered_map=ordered_map
        )
        for count, stream in zip((training.num_dialogues, training.num_held_out), _DIALOGUE_STREAMS, strict=True)
    )
    logger.info("language: looked at %d pictures to talk about", len(train))
    torch.manual_seed(seed)
    llava = ToyLlava(language_config(len(tokenizer)), tower_width=train.features.shape[-1])
    llava.whiten(train)
    train_language(llava, train, training, seed=seed)
    loss = measure_language(llava, held_out)
    logger.info("language: loss per token %.3f on held-out dialogues", loss)
    return llava, loss
