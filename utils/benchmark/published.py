"""Runs of the published sizes, and the networks that they train, without their weights."""

from __future__ import annotations

from pathlib import Path

from model.configuration import PRECISIONS
from model.PixelLM import PixelLMForCausalLM
from model.sizes import network_of_size
from utils.cli.args import parse
from utils.cli.config import RunConfig

_REPOSITORY = Path(__file__).resolve().parents[2]


def published_run(name: str, *flags: str) -> RunConfig:
    """The run of ``configs/pixellm_7b.json`` or ``configs/pixellm_13b.json``.

    Args:
        name: one of ``model.sizes.PUBLISHED``.
        flags: beside those of the file.
    """
    file = _REPOSITORY / "configs" / f"{name.lower().replace('-', '_')}.json"
    return parse(RunConfig, [f"--config={file}", *flags], "").config


def published_network(name: str, run: RunConfig) -> PixelLMForCausalLM:
    """The network of that size, made ready for a run; on the meta device."""
    return network_of_size(
        name,
        scales=run.image_feature_scale_num,
        tokens=run.seg_token_num,
        image_size=run.resize_vision_tower_size,
        image_token_grid=run.image_token_grid,
        separate_mm_projector=run.separate_mm_projector,
        out_dim=run.out_dim,
        vision_tower=run.vision_tower,
        dtype=PRECISIONS[run.precision],
    )
