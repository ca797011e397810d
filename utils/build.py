"""RunConfig -> network, tokenizer and LoRA: everything that decides what is trained, in reading order."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaTokenizer, PreTrainedModel

from model.checkpoint import (
    TOWER_PREFIX,
    LoadReport,
    build_model,
    load_with_report,
    read_architecture,
    read_base,
    read_tower,
    tower_beside,
)
from model.codebook import start_at_unit_size
from model.configuration import RELEASED_RECIPE, PixelLMConfig, feature_layers, llama_keys, vision_keys
from model.errors import InputError
from model.files import read_object, resolve_folder
from model.image import CLIP_MEAN, CLIP_STD, RELEASED_MEAN, RELEASED_STD
from model.lora import set_trained, wrap_lora
from model.PixelLM import PixelLMForCausalLM
from model.predictor import PRECISIONS
from model.tokens import SegCodebook, add_codebook, load_tokenizer

from .cli.args import Parsed
from .cli.config import RunConfig

logger = logging.getLogger(__name__)

# What a LLaVA base does not have; LLaMA's own weights must all be there.
FRESH_MODULES = (
    "model.mm_projector.",
    "model.out_mm_projector.",
    "model.prompt_encoder.",
    "model.mask_decoder.",
    "model.image_feature_neck.",
    "model.text_hidden_fcs.",
)


@dataclass
class TrainingModel:
    """What training needs of the network.

    Attributes:
        wrapped: the network with LoRA; its parameters carry the ``base_model.model.`` prefix.
        network: the same network, unwrapped.
        base_folder: where what the run started from and its tokenizer files are.
    """

    wrapped: nn.Module
    network: PixelLMForCausalLM
    tokenizer: LlamaTokenizer
    config: PixelLMConfig
    base_folder: Path


def settle_flags(parsed: Parsed[RunConfig]) -> RunConfig:
    """The flags of a run, whole: with ``--init_from``, the model that it names says what flags leave open.

    Raises:
        InputError: if a given flag contradicts the model.
    """
    run = parsed.config
    if not run.init_from:
        return run
    folder = resolve_folder(run.init_from, flag="--init_from")
    tower, conv_type = (getattr(run, name) if name in parsed.given else None for name in ("vision_tower", "conv_type"))
    config, _ = read_architecture(folder, vision_tower=tower, conv_type=conv_type)
    recorded = {
        "seg_token_num": config.seg_token_num,
        "image_feature_scale_num": config.image_feature_scale_num,
        "resize_vision_tower_size": config.image_size,
        "pad_train_clip_images": config.pad_train_clip_images,
        "separate_mm_projector": config.separate_mm_projector,
        "out_dim": config.out_dim,
        "image_token_grid": config.image_token_grid,
        "conv_type": config.conv_type,
        "vision_position_resize": config.vision_position_resize,
        **{name: config.recipe.get(name, getattr(run, name)) for name in ("projector_init", "query_init")},
    }
    if config.pad_train_clip_images:  # without padding both rules are one
        recorded["image_normalization"] = "released" if config.has_released_normalization else "file"
    for name, value in recorded.items():
        if name in parsed.given and getattr(run, name) != value:
            raise InputError(
                f"--{name}={getattr(run, name)} contradicts --init_from {run.init_from}, which was trained with "
                f"{name} {value}; leave the flag out, or start from another model"
            )
    for name in ("version", "preprocessor_config"):
        if name in parsed.given:
            logger.info("--%s has no effect here: --init_from brings its own", name)
    if tower is None:
        recorded["vision_tower"] = str(tower_beside(config.vision_tower, folder) or config.vision_tower)
    return replace(run, resize_vision_tower=True, **recorded)


def build_for_training(run: RunConfig) -> TrainingModel:
    """Read what the run starts from and wrap it with LoRA; the same on every process."""
    torch.manual_seed(run.seed)
    network, tokenizer, folder, report = _from_merged_model(run) if run.init_from else _from_base(run)
    logger.info("%s", report.describe())
    if run.gradient_checkpointing:
        _enable_checkpointing(network.model)
    wrapped = wrap_lora(
        network,
        rank=run.lora_r,
        alpha=run.lora_alpha,
        dropout=run.lora_dropout,
        names=[name.strip() for name in run.lora_target_modules.split(",")],
    )
    counts = set_trained(wrapped, train_mask_decoder=run.train_mask_decoder, released_set=run.trained_set == "released")
    logger.info("trained parameters: %s", ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    return TrainingModel(wrapped, network, tokenizer, network.pixellm_config, folder)


def _from_base(run: RunConfig) -> tuple[PixelLMForCausalLM, LlamaTokenizer, Path, LoadReport]:
    """A LLaVA base and a CLIP tower; the codebook is added and everything about masks is new."""
    folder = resolve_folder(run.version, flag="--version")
    tower_folder = resolve_folder(run.vision_tower, flag="--vision-tower")
    tokenizer = load_tokenizer(folder, model_max_length=run.model_max_length)
    codebook = add_codebook(tokenizer, scales=run.image_feature_scale_num, tokens=run.seg_token_num)
    config = make_config(run, read_object(folder / "config.json"), codebook, len(tokenizer), tower_folder)
    state, unused = read_base(folder, config, keep_projector=run.projector_init == "llava")
    state |= read_tower(tower_folder, config)
    network, report = build_model(
        config, state, dtype=PRECISIONS[run.precision], source=f"--version {run.version}", may_initialize=FRESH_MODULES
    )
    if run.query_init == "unit":
        start_at_unit_size(network.model.text_hidden_fcs[0], network.model.token_fusion)
    report.ignored += unused
    return network, tokenizer, folder, report


def _from_merged_model(run: RunConfig) -> tuple[PixelLMForCausalLM, LlamaTokenizer, Path, LoadReport]:
    """Everything as it was trained, tokens included; only LoRA will be new. See ``settle_flags``."""
    network, tokenizer, report = load_with_report(
        run.init_from, dtype=PRECISIONS[run.precision], vision_tower=run.vision_tower, conv_type=run.conv_type
    )
    tokenizer.model_max_length = run.model_max_length
    network.pixellm_config = replace(
        network.pixellm_config,
        vision_tower=portable_path(run.vision_tower),
        model_max_length=run.model_max_length,
        recipe=recipe_of(run),
    )
    return network, tokenizer, resolve_folder(run.init_from, flag="--init_from"), report


def recipe_of(run: RunConfig) -> dict[str, Any]:
    """The choices between paper and release that config.json has no other key for."""
    return {name: getattr(run, name) for name in ("release_recipe", *RELEASED_RECIPE)}


def _enable_checkpointing(llama: PreTrainedModel) -> None:
    """Recompute activations in the backward pass; transformers renamed the switch after 5.17."""
    enable = getattr(llama, "activation_checkpointing_enable", None) or llama.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def make_config(
    run: RunConfig, base: dict[str, Any], codebook: SegCodebook, vocab_size: int, tower_folder: Path
) -> PixelLMConfig:
    """The architecture of a new run, from its flags and the folders it starts from."""
    vision = vision_keys(read_object(tower_folder / "config.json"))
    image_size = run.resize_vision_tower_size if run.resize_vision_tower else vision["image_size"]
    mean, std = read_normalization(run.preprocessor_config, image_size=image_size)
    if run.image_normalization == "released" and run.pad_train_clip_images:
        mean, std = RELEASED_MEAN, RELEASED_STD
    llama = llama_keys(base)
    llama["vocab_size"] = max(llama["vocab_size"], vocab_size)
    return PixelLMConfig(
        llama=llama,
        vision=vision,
        vision_tower=portable_path(run.vision_tower),
        seg_token_num=run.seg_token_num,
        image_feature_scale_num=run.image_feature_scale_num,
        seg_token_ids=codebook.ids,
        image_size=image_size,
        vision_feature_layers=feature_layers(
            run.image_feature_scale_num,
            depth=vision["num_hidden_layers"],
            first=base.get("mm_vision_select_layer", -2),
        ),
        image_token_grid=run.image_token_grid,
        pad_train_clip_images=run.pad_train_clip_images,
        image_mean=mean,
        image_std=std,
        vision_position_resize=run.vision_position_resize,
        separate_mm_projector=run.separate_mm_projector,
        out_dim=run.out_dim,
        conv_type=run.conv_type,
        model_max_length=run.model_max_length,
        recipe=recipe_of(run),
    )


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

    What tensors do not show is released behaviour throughout. The codebook is added to ``tokenizer``.

    Args:
        shapes: of the plain model's weights, under released names.
        flat: config.json of the LLaVA base; vision: that of the tower.
        pad: the run padded its images; a resized tower says so too.
        source: names the weights in messages.
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
            f"{source} has {rows} vocabulary rows and {scales} scales, but --version {tokenizer.name_or_path} has "
            f"{len(tokenizer)} tokens: {added} codebook tokens cannot be. Give the LLaVA base of the run as --version."
        )
    codebook = add_codebook(tokenizer, scales=scales, tokens=added // scales)
    # The release pads whenever it resizes the tower (its constructor overrides the flag).
    pad = pad or grid * vision["patch_size"] != vision["image_size"]
    return PixelLMConfig(
        llama={**llama_keys(flat), "vocab_size": rows},
        vision=vision,
        vision_tower=vision_tower,
        seg_token_num=codebook.tokens,
        image_feature_scale_num=scales,
        seg_token_ids=codebook.ids,
        image_size=grid * vision["patch_size"],
        vision_feature_layers=feature_layers(
            scales, depth=vision["num_hidden_layers"], first=flat.get("mm_vision_select_layer", -2)
        ),
        pad_train_clip_images=pad,
        image_mean=RELEASED_MEAN if pad else CLIP_MEAN,
        image_std=RELEASED_STD if pad else CLIP_STD,
        vision_position_resize="released",
        separate_mm_projector="model.out_mm_projector.0.weight" in shapes,
        mm_projector_hidden_dim=hidden // flat["hidden_size"],
        out_dim=out_dim,
        conv_type=conv_type,
        model_max_length=model_max_length,
        recipe=RELEASED_RECIPE,
    )


def portable_path(name: str) -> str:
    """A hub id as it is; a local folder as an absolute path, so that it is found from anywhere."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def read_normalization(path: str, *, image_size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of a ``--preprocessor_config`` file; CLIP's own without one.

    Raises:
        InputError: if the file speaks of another image size than the run.
    """
    if not path:
        return CLIP_MEAN, CLIP_STD
    settings = read_object(Path(path))
    size = settings.get("size", image_size)
    size = size if isinstance(size, int) else next(iter(size.values()), image_size)
    if size != image_size:
        raise InputError(
            f"--preprocessor_config {path} is for {size} px but the run's input is {image_size} px; "
            f"give --resize_vision_tower --resize_vision_tower_size={size}, or another file"
        )
    try:
        return tuple(settings["image_mean"]), tuple(settings["image_std"])
    except KeyError as err:
        raise InputError(f"--preprocessor_config {path} lacks {err}: {json.dumps(settings)[:120]}") from err
