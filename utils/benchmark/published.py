"""Models of the published sizes, without their weights: on torch's meta device a tensor has a shape alone."""

from __future__ import annotations

from pathlib import Path

import torch

from model.configuration import PRECISIONS, PixelLMConfig
from model.PixelLM import PixelLMForCausalLM
from model.text.tokens import SegCodebook
from utils.cli.args import parse
from utils.cli.config import RunConfig

_REPOSITORY = Path(__file__).resolve().parents[2]
VOCABULARY = 32_000  # of LLaMA
VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
LLAMA = {
    "PixelLM-7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "PixelLM-13B": {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
    },
}  # fmt: skip
PUBLISHED = tuple(LLAMA)


def published_run(name: str, *flags: str) -> RunConfig:
    """The run of ``configs/pixellm_7b.json`` or ``configs/pixellm_13b.json``.

    Args:
        name: one of ``PUBLISHED``.
        flags: beside those of the file.
    """
    file = _REPOSITORY / "configs" / f"{name.lower().replace('-', '_')}.json"
    return parse(RunConfig, [f"--config={file}", *flags], "").config


def published_network(name: str, run: RunConfig) -> PixelLMForCausalLM:
    """LLaMA of that size with CLIP ViT-L/14 at 336 px, made ready for a run; on the meta device."""
    num_tokens = run.image_feature_scale_num * run.seg_token_num
    rows = VOCABULARY + num_tokens + 2  # and both image marks
    config = PixelLMConfig.assemble(
        {**LLAMA[name], "vocab_size": rows, "rms_norm_eps": 1e-5},
        {**VISION, "image_size": 336, "patch_size": 14},
        SegCodebook(run.image_feature_scale_num, run.seg_token_num, tuple(range(VOCABULARY, VOCABULARY + num_tokens))),
        vision_tower=run.vision_tower,
        image_size=run.resize_vision_tower_size,
        image_token_grid=run.image_token_grid,
        separate_mm_projector=run.separate_mm_projector,
        out_dim=run.out_dim,
    )
    with torch.device("meta"):
        return PixelLMForCausalLM(config).to(dtype=PRECISIONS[run.precision])  # pyright: ignore[reportCallIssue]
