"""RunConfig -> network, tokenizer and LoRA: everything that decides what is trained, in reading order."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from pydantic import Field
from torch import nn
from transformers import LlamaTokenizer, PreTrainedModel
from typing_extensions import TypedDict

from model.codebook import start_at_unit_size
from model.configuration import PRECISIONS, PixelLMConfig
from model.errors import InputError
from model.files import read_object
from model.hub import portable_path, resolve_folder
from model.image import CLIP_MEAN, CLIP_STD, RELEASED_MEAN, RELEASED_STD
from model.part_configs import read_base_config, read_tower_config
from model.PixelLM import PixelLMForCausalLM
from model.text.tokenizer import add_codebook, load_tokenizer
from model.text.tokens import SegCodebook
from model.values import Count, Finite, Positive, Schema
from model.weights.bases import FRESH_MODULES, read_base, read_tower, tower_beside
from model.weights.checkpoint import read_model
from model.weights.quantization import check_quantization, keep_layout, nf4
from utils.cli.args import Parsed
from utils.cli.config import RunConfig

from .lora import wrap_as_told
from .recipe import recipe_of

logger = logging.getLogger(__name__)


class PreprocessorKeys(TypedDict):
    """What is read of a preprocessor_config.json."""

    image_mean: Annotated[list[Finite], Field(min_length=3, max_length=3)]
    image_std: Annotated[list[Positive], Field(min_length=3, max_length=3)]
    size: NotRequired[Count | dict[str, Count]]


_PREPROCESSOR = Schema(PreprocessorKeys)


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


def resolve_run_flags(parsed: Parsed[RunConfig]) -> RunConfig:
    """The flags of a run, whole: with ``--init_from``, the model that it names says what flags leave open.

    Raises:
        InputError: if a given flag contradicts the model.
    """
    run = parsed.config
    if not run.init_from:
        return run
    folder = resolve_folder(run.init_from, flag="--init_from")
    tower, conv_type = (getattr(run, name) if name in parsed.given else None for name in ("vision_tower", "conv_type"))
    config = read_model(folder, vision_tower=tower, conv_type=conv_type).config
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


def build_for_training(run: RunConfig, *, device: torch.device | None = None) -> TrainingModel:
    """Read what the run starts from and wrap it with LoRA; the same on every process.

    Args:
        device: where the weights go one by one, so that the processes of a machine never hold a model each in its
            memory; default is the CPU, where they lie in the files that all of them share.
    Raises:
        InputError: if a folder is missing, its weights do not fit the flags, or a package that these need is missing.
    """
    torch.manual_seed(run.seed)
    options = _reading_options(run, device or torch.device("cpu"))
    network, tokenizer, folder = (_from_merged_model if run.init_from else _from_base)(run, options)
    if run.load_in_4bit:
        keep_layout(network)
    wrapped, counts = wrap_as_told(network, run)
    logger.info("trained parameters: %s", ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    return TrainingModel(wrapped, network, tokenizer, network.config, folder)


def _reading_options(run: RunConfig, device: torch.device) -> dict[str, Any]:
    """Where frozen and trained weights go, in which type, and which of them are quantized on the way."""
    dtype = PRECISIONS[run.precision]
    return {
        "dtype": dtype,
        "device_map": {"": device},
        "attn_implementation": run.attn_implementation,
        "quantization_config": check_quantization(nf4(dtype) if run.load_in_4bit else None),
    }


def _from_base(run: RunConfig, options: dict[str, Any]) -> tuple[PixelLMForCausalLM, LlamaTokenizer, Path]:
    """A LLaVA base and a CLIP tower; the codebook is added and everything about masks is new."""
    folder = resolve_folder(run.version, flag="--version")
    tower_folder = resolve_folder(run.vision_tower, flag="--vision-tower")
    tokenizer = load_tokenizer(folder, model_max_length=run.model_max_length)
    codebook = add_codebook(tokenizer, scales=run.image_feature_scale_num, tokens=run.seg_token_num)
    config = make_config(run, read_base_config(folder), codebook, len(tokenizer), tower_folder)
    state, unused = read_base(folder, config, keep_projector=run.projector_init == "llava")
    state |= read_tower(tower_folder, config)
    if unused:
        logger.info("not used of --version %s: %d weights (e.g. %s)", run.version, len(unused), unused[0])
    network = PixelLMForCausalLM.from_state(
        config,
        state,
        source=f"--version {run.version}",
        may_initialize=FRESH_MODULES,
        **options,
    )
    if run.query_init == "unit":
        projection = network.model.text_hidden_fcs[0]
        assert isinstance(projection, nn.Sequential)
        start_at_unit_size(projection, network.model.token_fusion)
    return network, tokenizer, folder


def _from_merged_model(run: RunConfig, options: dict[str, Any]) -> tuple[PixelLMForCausalLM, LlamaTokenizer, Path]:
    """Everything as it was trained, tokens included; only LoRA will be new. See ``resolve_run_flags``."""
    folder = resolve_folder(run.init_from, flag="--init_from")
    network = PixelLMForCausalLM.from_pretrained(
        folder,
        vision_tower=run.vision_tower,
        conv_type=run.conv_type,
        **options,
    )
    tokenizer = network.require_processor().tokenizer
    tokenizer.model_max_length = run.model_max_length
    network.config.vision_tower = portable_path(run.vision_tower)
    network.config.model_max_length = run.model_max_length
    network.config.recipe = recipe_of(run, before=network.config.recipe)
    return network, tokenizer, folder


def set_checkpointing(llama: PreTrainedModel, *, enabled: bool) -> None:
    """Recompute activations in the backward pass, or keep them; transformers renamed the switches after 5.17."""
    kind = "activation" if hasattr(llama, "activation_checkpointing_enable") else "gradient"
    if enabled:
        getattr(llama, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(llama, f"{kind}_checkpointing_disable")()


def make_config(
    run: RunConfig, base: dict[str, Any], codebook: SegCodebook, vocab_size: int, tower_folder: Path
) -> PixelLMConfig:
    """The architecture of a new run, from its flags and the folders it starts from."""
    tower = read_tower_config(tower_folder)
    image_size = run.resize_vision_tower_size if run.resize_vision_tower else tower["image_size"]
    mean, std = read_normalization(run.preprocessor_config, image_size=image_size)
    if run.image_normalization == "released" and run.pad_train_clip_images:
        mean, std = RELEASED_MEAN, RELEASED_STD
    return PixelLMConfig.assemble(
        {**base, "vocab_size": max(base["vocab_size"], vocab_size)},
        tower,
        codebook,
        vision_tower=portable_path(run.vision_tower),
        image_size=image_size,
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


def read_normalization(path: str, *, image_size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of a ``--preprocessor_config`` file; CLIP's own without one.

    Raises:
        InputError: if the file is damaged, or speaks of another image size than the run.
    """
    if not path:
        return CLIP_MEAN, CLIP_STD
    content = read_object(Path(path), remedy="give a CLIP folder's preprocessor file")
    remedy = "Give a CLIP folder's preprocessor file"
    settings = _PREPROCESSOR.check(content, where=f"--preprocessor_config {path}", remedy=remedy)
    size = settings.get("size", image_size)
    size = size if isinstance(size, int) else next(iter(size.values()), image_size)
    if size != image_size:
        raise InputError(
            f"--preprocessor_config {path} is for {size} px but the run's input is {image_size} px; "
            f"give --resize_vision_tower --resize_vision_tower_size={size}, or another file"
        )
    return tuple(settings["image_mean"]), tuple(settings["image_std"])
