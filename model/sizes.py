"""Networks of the published sizes, without their weights: on torch's meta device a tensor has a shape alone."""

from __future__ import annotations

import torch

from .configuration import PixelLMConfig
from .PixelLM import PixelLMForCausalLM
from .text.tokens import SegCodebook

VOCABULARY = 32_000  # of LLaMA
VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
LLAMA = {
    "PixelLM-7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "PixelLM-13B": {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
    },
}  # fmt: skip
PUBLISHED = tuple(LLAMA)


def network_of_size(
    name: str,
    *,
    scales: int = 2,
    tokens: int = 3,
    image_size: int = 448,
    image_token_grid: int = 16,
    separate_mm_projector: bool = True,
    out_dim: int = 256,
    vision_tower: str = "none",
    dtype: torch.dtype = torch.bfloat16,
) -> PixelLMForCausalLM:
    """LLaMA of that size with CLIP ViT-L/14, on the meta device.

    Args:
        name: one of ``PUBLISHED``.
        scales, tokens: of the codebook. They and what follows are by default what published models have.
    """
    num_tokens = scales * tokens
    rows = VOCABULARY + num_tokens + 2  # and both image marks
    config = PixelLMConfig.assemble(
        {**LLAMA[name], "vocab_size": rows, "rms_norm_eps": 1e-5},
        {**VISION, "image_size": 336, "patch_size": 14},
        SegCodebook(scales, tokens, tuple(range(VOCABULARY, VOCABULARY + num_tokens))),
        vision_tower=vision_tower,
        image_size=image_size,
        image_token_grid=image_token_grid,
        separate_mm_projector=separate_mm_projector,
        out_dim=out_dim,
    )
    with torch.device("meta"):
        return PixelLMForCausalLM(config).to(dtype=dtype)  # pyright: ignore[reportCallIssue]
