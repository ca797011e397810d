"""How the release left its models: folders and training checkpoints that do not say everything about themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from transformers import LlamaTokenizer

from model.configuration import PixelLMConfig
from model.errors import InputError
from model.image import CLIP_MEAN, CLIP_STD, RELEASED_MEAN, RELEASED_STD
from model.part_configs import BaseKeys, llama_keys, read_tower_config
from model.recipe import RECIPE_OF_PUBLISHED_WEIGHTS
from model.text.tokenizer import add_codebook
from model.values import DecoderWidth, InputSide, Scales, Schema, Text

from .bases import TOWER_PREFIX, locate_tower


class ReleasedKeys(BaseKeys, total=False):
    """What is read of a published folder's config.json; the release's code fills in what is missing, as here."""

    image_feature_scale_num: Scales
    mm_vision_tower: Text
    vision_tower: Text
    resize_vision_tower: bool
    resize_vision_tower_size: InputSide
    separate_mm_projector: bool
    mm_projector_hidden_dim: Annotated[int, Field(ge=1, le=64)]
    out_dim: DecoderWidth
    pad_train_clip_images: bool


_RELEASED = Schema(ReleasedKeys)

# Constants of the release that are parameters here; see codebook.TokenFusion and pixel_decoder.MaskDecoder.
RELEASED_CONSTANTS = ("model.token_fusion.weights", "model.mask_decoder.scale_weights")


def released_config(
    flat: dict[str, Any], tokenizer: LlamaTokenizer, *, folder: Path, tower: str | None, conv_type: str
) -> PixelLMConfig:
    """The architecture of a published folder (``model_type: llava`` with the PixelLM keys).

    K follows from the number of ``[SEG*]`` tokens. The codebook is added to ``tokenizer``, where it keeps its ids.

    Args:
        flat: the folder's config.json.
        tower: where its CLIP tower is; default is what config.json says.
        conv_type: the release does not record it.
    Raises:
        InputError: if the tower is not found or the tokens do not fit the scales.
    """
    where = str(folder / "config.json")
    given = {name: value for name, value in flat.items() if value is not None}
    keys = _RELEASED.check(given, where=where, remedy="Copy the file again from its source")
    tower = tower or keys.get("mm_vision_tower") or keys.get("vision_tower")
    tower_folder = locate_tower(tower, folder)
    added = [text for text in tokenizer.get_added_vocab() if text.startswith("[SEG")]
    scales = keys.get("image_feature_scale_num", 1)
    if not added or len(added) % scales:
        raise InputError(
            f"{folder}: its tokenizer has {len(added)} [SEG] tokens for {scales} scales; "
            "copy added_tokens.json of the published model"
        )
    if keys.get("resize_vision_tower") and "resize_vision_tower_size" not in keys:
        raise InputError(f"{where} lacks resize_vision_tower_size. Copy the file again from its source")
    return PixelLMConfig.assemble(
        llama_keys(flat, where=where) | {name: keys[name] for name in ("mm_vision_select_layer",) if name in keys},
        read_tower_config(tower_folder),
        add_codebook(tokenizer, scales=scales, tokens=len(added) // scales),
        vision_tower=str(tower),
        image_size=keys.get("resize_vision_tower_size") if keys.get("resize_vision_tower") else None,
        separate_mm_projector=keys.get("separate_mm_projector", False),
        mm_projector_hidden_dim=keys.get("mm_projector_hidden_dim", 2),
        out_dim=keys.get("out_dim", 256),
        conv_type=conv_type,
        **_unrecorded(pad=keys.get("pad_train_clip_images", False)),
    )


def _unrecorded(*, pad: bool) -> dict[str, Any]:
    """What no file of the release says, because its code treats every model alike."""
    return {
        "pad_train_clip_images": pad,
        "image_mean": RELEASED_MEAN if pad else CLIP_MEAN,
        "image_std": RELEASED_STD if pad else CLIP_STD,
        "vision_position_resize": "released",
        "recipe": {**RECIPE_OF_PUBLISHED_WEIGHTS},
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
    scales, out_dim = _matrix(shapes, "model.mask_decoder.level_embed.weight", source)
    rows, width = _matrix(shapes, "model.embed_tokens.weight", source)
    hidden, _ = _matrix(shapes, "model.mm_projector.0.weight", source)
    table = TOWER_PREFIX + "embeddings.position_embedding.weight"
    native = vision["image_size"] // vision["patch_size"]
    grid = round((_matrix(shapes, table, source)[0] - 1) ** 0.5) if table in shapes else native
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
        mm_projector_hidden_dim=hidden // width,
        out_dim=out_dim,
        conv_type=conv_type,
        model_max_length=model_max_length,
        **_unrecorded(pad=pad),
    )


def _matrix(shapes: Mapping[str, Sequence[int]], name: str, source: str) -> tuple[int, int]:
    """Rows and columns of a weight.

    Raises:
        InputError: if it is missing or no matrix.
    """
    if name not in shapes:
        raise InputError(f"{source} lacks {name}; expected the weights of a PixelLM run")
    if len(shapes[name]) != 2 or 0 in shapes[name]:
        raise InputError(f"{source}: {name} has the shape {tuple(shapes[name])}; expected rows and columns")
    rows, columns = shapes[name]
    return rows, columns
