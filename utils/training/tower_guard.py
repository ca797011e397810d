"""Towers that a run can be started with, although its recipe means another one."""

from __future__ import annotations

import logging
from typing import cast

from model.configuration import PixelLMConfig
from model.part_configs import read_base_config
from utils.cli.checklist import Checklist
from utils.cli.config import RunConfig

from .start import TrainingModel

logger = logging.getLogger(__name__)

# The released recipe: CLIP ViT-L/14 of 336 px, at 448 px or, as its most, 512 px.
RECIPE_TOWER = "openai/clip-vit-large-patch14-336"
_RECIPE_SIZE, _RECIPE_PATCH, _RECIPE_STRETCH = 336, 14, 512 / 336


def warn_of_tower(run: RunConfig, training: TrainingModel) -> None:
    """Say what is unusual about the tower of a run."""
    base_width = None if run.init_from else read_base_config(training.base_folder).get("mm_hidden_size")
    if warning := unusual_tower(run, training.config, base_width=base_width):
        logger.warning("%s", warning)


def unusual_tower(run: RunConfig, config: PixelLMConfig, *, base_width: int | None) -> Checklist | None:
    """Hold the tower to the flags that speak of it, and to the base.

    Args:
        base_width: channels that the LLaVA base's projector reads (``mm_hidden_size``); None if it does not say so, or
            if the run starts from a merged model, whose weights fit their tower or are refused.
    """
    found = [*_sizes(run, config), *_patches(config), *_width(run, config, base_width)]
    if not found:
        return None
    fits = "--resize_vision_tower" if not run.resize_vision_tower else f"--vision-tower {RECIPE_TOWER}"
    return Checklist(
        f"the vision tower {config.vision_tower} is of another size than the recipe expects",
        "--vision-tower or a flag of its size was left out, or belongs to another model: training goes on, but masks "
        "come later and coarser, or never",
        tuple(found),
        f"start again with {fits}, or go on if you mean it; docs/weights.md has the towers, "
        "configs/pixellm_7b.json the flags",
    )


def _sizes(run: RunConfig, config: PixelLMConfig) -> list[str]:
    native, size = cast(int, config.vision_config.image_size), config.image_size
    found = []
    unused = run.resize_vision_tower_size
    if not run.resize_vision_tower and unused not in (size, RunConfig.resize_vision_tower_size):
        found.append(
            f"--resize_vision_tower_size {unused} has no effect without --resize_vision_tower: the input is {size} px"
        )
    stretch = max(size / native, native / size)
    if stretch > _RECIPE_STRETCH or native < _RECIPE_SIZE <= size:
        found.append(
            f"its positions were learned at {native} px and are interpolated to {size} px; the recipe interpolates "
            f"those of {_RECIPE_SIZE} px, of {RECIPE_TOWER}, to 448 px"
        )
    return found


def _patches(config: PixelLMConfig) -> list[str]:
    if config.patch_size <= _RECIPE_PATCH:
        return []
    return [
        f"its patches are {config.patch_size} px wide, so masks are drawn on a grid of {config.patch_grid} x "
        f"{config.patch_grid}; the recipe's are {_RECIPE_PATCH} px"
    ]


def _width(run: RunConfig, config: PixelLMConfig, base_width: int | None) -> list[str]:
    width = config.vision_config.hidden_size
    if base_width in (None, width) or run.projector_init == "fresh":
        return []
    return [
        f"it has {width} channels, but the projector of --version {run.version} reads {base_width}: a fresh one has to "
        "learn to show images to the language model"
    ]
