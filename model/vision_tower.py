"""CLIP-ViT with a padding mask, any input size, and only the blocks that are read.

Shapes: B images, R input side, g patches per side, T = g*g + 1 tokens, V tower width.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from .configuration import PixelLMConfig
from .image import patch_valid_mask

_NUMBERS_ON_CPU = 2**21  # in the widest result of a block


class VisionEmbeddings(nn.Module):
    """Patches, class token and positions; the table has one row per token of the actual input size."""

    def __init__(self, config: CLIPVisionConfig, *, grid: int) -> None:
        super().__init__()
        width, patch = config.hidden_size, cast(int, config.patch_size)  # CLIP's patches are square
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, kernel_size=patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(grid**2 + 1, width)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, R, R), normalized and of the weights' dtype -> (B, T, V), class token first."""
        patches = rearrange(self.patch_embedding(pixel_values), "b v h w -> b (h w) v")
        cls = self.class_embedding.expand(len(patches), 1, -1)
        tokens = torch.arange(self.position_embedding.num_embeddings, device=patches.device)
        return torch.cat([cls, patches], dim=1) + self.position_embedding(tokens)


class VisionTransformer(nn.Module):
    """The parameters of ``CLIPVisionModel`` under their released names, from transformers' own blocks."""

    def __init__(self, config: CLIPVisionConfig, *, grid: int) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config, grid=grid)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # spelled so by CLIP
        blocks = [CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(blocks)})
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class VisionTower(nn.Module):
    """Frozen CLIP encoder (paper: I_img)."""

    def __init__(self, config: PixelLMConfig) -> None:
        super().__init__()
        clip = copy.deepcopy(config.vision_config)
        # Its mask hides padded patches as a bias, which the flash and flex kernels do not take.
        clip._attn_implementation = "eager" if config._attn_implementation == "eager" else "sdpa"
        self.attention: str = clip._attn_implementation
        self.covered_size = config.covered_size
        self.grid = config.patch_grid
        self._at_once_on_cpu = max(1, _NUMBERS_ON_CPU // ((self.grid**2 + 1) * clip.intermediate_size))
        depth = clip.num_hidden_layers
        self.feature_layers = [depth + 1 + layer for layer in config.vision_feature_layers]
        # The two levels reproduce the released parameter path model.vision_tower.vision_tower.vision_model.*
        self.vision_tower = nn.ModuleDict({"vision_model": VisionTransformer(clip, grid=self.grid)})

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, valid_hw: Tensor) -> Tensor:
        """Encode B images; padded patches are hidden from attention.

        Args:
            pixel_values: (B, 3, R, R) float, normalized, zero in the padding.
            valid_hw: (B, 2) long, rows and columns that show the photo, 1 to R.
        Returns:
            (S, B, g*g, V) patch features of the chosen layers, without the class token.
        """
        if pixel_values.device.type != "cpu":
            return self._encode(pixel_values, valid_hw)
        # Of larger results the C library gives the memory back, and to take it again in every block costs a fifth.
        parts = zip(pixel_values.split(self._at_once_on_cpu), valid_hw.split(self._at_once_on_cpu), strict=True)
        return torch.cat([self._encode(pixels, hw) for pixels, hw in parts], 1)

    def _encode(self, pixel_values: Tensor, valid_hw: Tensor) -> Tensor:
        model = cast(VisionTransformer, self.vision_tower["vision_model"])
        dtype = model.embeddings.patch_embedding.weight.dtype
        hidden = model.pre_layrnorm(model.embeddings(pixel_values.to(dtype)))
        bias = self._attention_bias(valid_hw, hidden)
        states = {0: hidden}
        blocks = cast(nn.ModuleList, model.encoder["layers"])
        for index in range(1, max(self.feature_layers) + 1):
            hidden = blocks[index - 1](hidden, bias)
            states[index] = hidden
        return torch.stack([states[index][:, 1:] for index in self.feature_layers])

    def _attention_bias(self, valid_hw: Tensor, like: Tensor) -> Tensor | None:
        """(B, 1, T, T) additive bias that hides padded patches as keys; None when nothing is padded."""
        if bool((valid_hw >= self.covered_size).all()):
            return None
        visible = patch_valid_mask(valid_hw, size=self.covered_size, grid=self.grid).flatten(1)
        visible = F.pad(visible, (1, 0), value=True)  # the class token
        hidden = ~visible.to(like.device, non_blocking=True)
        bias = like.new_zeros(visible.shape).masked_fill(hidden, torch.finfo(like.dtype).min)
        return bias[:, None, None].expand(-1, 1, visible.shape[1], -1)


def resize_position_table(table: Tensor, *, grid: int, rule: str) -> Tensor:
    """Interpolate a CLIP position table to another grid, bilinearly.

    Args:
        table: (1 + n*n, V), class token first.
        grid: g, patches per side of the new table.
        rule: ``correct`` keeps row 0 and interpolates the rest. ``released`` takes the LAST row for the class token
            and interpolates the others, so that every patch is one row off; published weights were trained with it.
    """
    native = round((len(table) - 1) ** 0.5)
    if native == grid:
        return table
    cls, patches = (table[:1], table[1:]) if rule == "correct" else (table[-1:], table[:-1])
    image = rearrange(patches.float(), "(h w) v -> 1 v h w", h=native)
    resized = F.interpolate(image, (grid, grid), mode="bilinear", align_corners=False)
    rows = rearrange(resized, "1 v h w -> (h w) v").to(table.dtype)
    return torch.cat([cls, rows] if rule == "correct" else [rows, cls])
