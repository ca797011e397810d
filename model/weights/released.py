"""How the release left its models: folders and training checkpoints that do not say everything about themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import LlamaTokenizer

from model.configuration import PixelLMConfig
from model.errors import InputError
from model.files import read_object
from model.image import CLIP_MEAN, CLIP_STD, RELEASED_MEAN, RELEASED_STD
from model.recipe import RECIPE_OF_PUBLISHED_WEIGHTS
from model.text.tokenizer import add_codebook

from .bases import TOWER_PREFIX, locate_tower

# Constants of the release that are parameters here; see codebook.TokenFusion and pixel_decoder.MaskDecoder.
RELEASED_CONSTANTS = ("model.token_fusion.weights", "model.mask_decoder.scale_weights")


def released_config(
    flat: dict[str, Any], tokenizer: LlamaTokenizer, *, folder: Path, tower: str | None, conv_type: str
) -> PixelLMConfig:
    """The architecture of a published folder (``model_type: llava`` with the PixelLM keys).

    K follows from the number of ``[SEG*]`` tokens. The codebook is added to ``tokenizer``, where it keeps its ids.

    Args:
        flat: the folder's config.json.
        tower: where its CLIP tower is.
        conv_type: the release does not record it.
    Raises:
        InputError: if the tower is not found or the tokens do not fit the scales.
    """
    tower_folder = locate_tower(tower, folder)
    added = [text for text in tokenizer.get_added_vocab() if text.startswith("[SEG")]
    scales = flat.get("image_feature_scale_num", 1)
    if not added or len(added) % scales:
        raise InputError(
            f"{folder}: its tokenizer has {len(added)} [SEG] tokens for {scales} scales; "
            "copy added_tokens.json of the published model"
        )
    return PixelLMConfig.assemble(
        flat,
        read_object(tower_folder / "config.json"),
        add_codebook(tokenizer, scales=scales, tokens=len(added) // scales),
        vision_tower=str(tower),
        image_size=flat["resize_vision_tower_size"] if flat.get("resize_vision_tower") else None,
        separate_mm_projector=flat.get("separate_mm_projector", False),
        mm_projector_hidden_dim=flat.get("mm_projector_hidden_dim", 2),
        out_dim=flat.get("out_dim", 256),
        conv_type=conv_type,
        **_unrecorded(pad=flat.get("pad_train_clip_images", False)),
    )


def _unrecorded(*, pad: bool) -> dict[str, Any]:
    """What no file of the release says, because its code treats every model alike."""
    return {
        "pad_train_clip_images": pad,
        "image_mean": RELEASED_MEAN if pad else CLIP_MEAN,
        "image_std": RELEASED_STD if pad else CLIP_STD,
        "vision_position_resize": "released",
        "recipe": RECIPE_OF_PUBLISHED_WEIGHTS,
    }


def config_of_weights(
    shapes: Mapping[str, Sequence[int]],
    *,
    flat: dict[str, Any],
    vision: dict[str, Any],
    vision_tower: str,
    tokenizer: LlamaTokenizer,
    pad: bool,
    conv_type: str,
    model_max_length: int,
    source: str,
) -> PixelLMConfig:
    """The architecture of a released training checkpoint: counts and sizes are read off its tensors.

    What tensors do not show is released behavior throughout. The codebook is added to ``tokenizer``.

    Args:
        shapes: of the plain model's weights, under released names.
        flat: config.json of the LLaVA base; vision: that of the tower.
        pad: the run padded its images; a resized tower says so too.
        source: names the weights in messages.
    Raises:
        InputError: if the tensors are not those of a PixelLM run on this base.
    """
    try:
        scales, out_dim = shapes["model.mask_decoder.level_embed.weight"]
        rows = shapes["model.embed_tokens.weight"][0]
        hidden = shapes["model.mm_projector.0.weight"][0]
    except KeyError as err:
        raise InputError(f"{source} lacks {err}; expected the weights of a PixelLM run") from err
    positions = shapes.get(TOWER_PREFIX + "embeddings.position_embedding.weight")
    grid = round((positions[0] - 1) ** 0.5) if positions is not None else vision["image_size"] // vision["patch_size"]
    added = rows - len(tokenizer) - 2  # the two image marks
    if added < 1 or added % scales:
        raise InputError(
            f"{source} has {rows} vocabulary rows and {scales} scales, but the base {tokenizer.name_or_path} has "
            f"{len(tokenizer)} tokens: {added} codebook tokens cannot be. Give the LLaVA base that the run used."
        )
    codebook = add_codebook(tokenizer, scales=scales, tokens=added // scales)
    # The release pads whenever it resizes the tower (its constructor overrides the flag).
    pad = pad or grid * vision["patch_size"] != vision["image_size"]
    return PixelLMConfig.assemble(
        {**flat, "vocab_size": rows},
        vision,
        codebook,
        vision_tower=vision_tower,
        image_size=grid * vision["patch_size"],
        separate_mm_projector="model.out_mm_projector.0.weight" in shapes,
        mm_projector_hidden_dim=hidden // flat["hidden_size"],
        out_dim=out_dim,
        conv_type=conv_type,
        model_max_length=model_max_length,
        **_unrecorded(pad=pad),
    )
