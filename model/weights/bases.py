"""What PixelLM starts from: LLaVA bases and CLIP towers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from model.configuration import PixelLMConfig
from model.errors import InputError
from model.files import is_folder
from model.hub import resolve_folder
from model.projector import widen_linear_projector
from model.vision_tower import resize_position_table

from .tensors import check_matrix, read_weights

FINAL_NORM = "model.norm.weight"  # of the language model
TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model."
_LLAVA_PROJECTOR = "model.mm_projector"


def read_tower(folder: Path, config: PixelLMConfig) -> dict[str, Tensor]:
    """A CLIP folder's vision weights under released names, its position table resized to the input size.

    Raises:
        InputError: if the weights cannot be read, or are not a CLIP vision model's.
    """
    state = read_weights(folder)
    vision = {name.removeprefix("vision_model."): t for name, t in state.items() if name.startswith("vision_model.")}
    if not vision:  # transformers 5 saves a bare CLIPVisionModel without the prefix
        vision = state
    key = "embeddings.position_embedding.weight"
    check_matrix(vision, key, where=f"vision tower {folder}", columns=config.vision_config.hidden_size)
    if round((len(vision[key]) - 1) ** 0.5) ** 2 != len(vision[key]) - 1:
        raise InputError(f"vision tower {folder}: {key} has {len(vision[key])} rows; expected a square and one")
    vision[key] = resize_position_table(vision[key], grid=config.patch_grid, rule=config.vision_position_resize)
    return {TOWER_PREFIX + name: tensor for name, tensor in vision.items()}


def read_base(
    folder: Path, config: PixelLMConfig, *, keep_projector: bool = True
) -> tuple[dict[str, Tensor], list[str]]:
    """A LLaVA base: its weights with rows for the added tokens, and the names that PixelLM has no use for.

    New rows of the embedding tables start at the mean of the old rows plus noise.

    Args:
        keep_projector: a linear ``mm_projector`` of the right width becomes an equal two-layer one, so that the
            language model goes on seeing images as LLaVA taught it; the release starts its projector afresh.
    Raises:
        InputError: if the weights cannot be read, are a delta, or lack an embedding table.
    """
    state = read_weights(folder)
    refuse_delta(folder, state)
    unused = [name for name in state if name.startswith("model.vision_tower.")]
    weight, bias = (state.get(f"{_LLAVA_PROJECTOR}.{part}") for part in ("weight", "bias"))
    if weight is not None or not keep_projector:
        unused += [name for name in state if name.startswith(f"{_LLAVA_PROJECTOR}.")]
    width, hidden = config.text_config.hidden_size, config.mm_projector_hidden_dim * config.text_config.hidden_size
    if (
        keep_projector
        and weight is not None
        and bias is not None
        and bias.shape == (width,)
        and weight.is_floating_point()
        and weight.shape == (width, config.vision_config.hidden_size)
        and hidden >= 2 * width
    ):
        widened = widen_linear_projector(weight, bias, hidden_width=hidden)
        state |= {f"{_LLAVA_PROJECTOR}.{name}": tensor for name, tensor in widened.items()}
    for name in unused:
        del state[name]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        check_matrix(state, name, where=f"base {folder}", columns=width)
        state[name] = _grow_rows(state[name], config.text_config.vocab_size)
    return state, unused


def _grow_rows(table: Tensor, rows: int) -> Tensor:
    if len(table) >= rows:
        return table  # a padded vocabulary keeps its rows; the shape check speaks if the config disagrees
    mean = table.float().mean(0, keepdim=True)
    noise = torch.randn(rows - len(table), table.shape[1]) * 0.02
    return torch.cat([table, (mean + noise).to(table.dtype)])


def refuse_delta(folder: Path, state: dict[str, Tensor]) -> None:
    """Delta weights (LLaVA minus LLaMA) load without an error and answer with noise; refuse them.

    Raises:
        InputError: if the norms are too small for a model.
    """
    norm = state.get(FINAL_NORM)
    if norm is not None and is_difference(norm):
        raise InputError(
            f"{folder} holds delta weights, not a model. Add them to the LLaMA that they were made from: "
            f"python scripts/apply_delta.py --base LLAMA --delta {folder} --out FOLDER"
        )


def is_difference(norm: Tensor) -> bool:
    """Whether a norm's weight is the difference of two models' (near 0) rather than a model's (near 1)."""
    return float(norm.float().abs().mean()) < 0.05


def locate_tower(name: str | None, folder: Path) -> Path:
    """The tower that a merged folder speaks of: beside it or one folder up, where it says, or on the hub.

    Raises:
        InputError: if it is at none of these places.
    """
    if not name:
        raise InputError(
            f"{folder} has no vision tower and does not say where it is; give --vision-tower, a folder or a hub id"
        )
    try:
        return tower_beside(name, folder) or resolve_folder(name)
    except InputError as err:
        raise InputError(
            f"{folder} names its vision tower {name}, which is not found; say where it is with --vision-tower ({err})"
        ) from err


def tower_beside(name: str, folder: Path) -> Path | None:
    """The tower of that name next to a merged folder, or one folder up."""
    places = [parent / name for parent in list(folder.absolute().parents)[:2]]
    return next((place for place in places if is_folder(place)), None)


# What a LLaVA base does not have; LLaMA's own weights must all be there.
FRESH_MODULES = (
    "model.mm_projector.",
    "model.out_mm_projector.",
    "model.prompt_encoder.",
    "model.mask_decoder.",
    "model.image_feature_neck.",
    "model.text_hidden_fcs.",
)
