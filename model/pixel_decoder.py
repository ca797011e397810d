"""The lightweight pixel decoder (paper section 3.2): one two-way attention block per scale.

    m^l = Attn^l(h^l, f'^l),   f'^l = f^l * (sigmoid(m^(l+1)) + 1),   M = sum_l gamma^l * m^l

It runs from the deepest scale to the shallowest; index 0 is the deepest here.

Shapes: N masks, S scales, C decoder width, g patches per side, T query tokens, h = w sides of a mask.
Tensors have the dtype of the weights unless a docstring says otherwise.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .configuration import PixelLMConfig

Use = Literal["project", "transposed", "head_inputs", "head_outputs"]

NUM_MASK_TOKENS = 4  # of the SAM-shaped head; only the first makes the mask, the others exist in released weights


class PositionEncoding(nn.Module):
    """Random Fourier features of pixel positions (SAM)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.zeros(2, width // 2))

    def reset_parameters(self) -> None:
        """Standard normal frequencies, as in SAM."""
        nn.init.normal_(self.positional_encoding_gaussian_matrix)

    def forward(self, side: int) -> Tensor:
        """Encode the pixel centers of a square, whose coordinates run from -1 to 1.

        Args:
            side: pixels per side, 1 or more.
        Returns:
            (C, side, side), sines and cosines in [-1, 1].
        """
        matrix = self.positional_encoding_gaussian_matrix
        centers = (torch.arange(side, device=matrix.device, dtype=torch.float32) + 0.5) / side
        y, x = torch.meshgrid(centers, centers, indexing="ij")
        coordinates = (2 * torch.stack([x, y], dim=-1) - 1).to(matrix.dtype)
        angles = 2 * math.pi * (coordinates @ matrix)
        return rearrange(torch.cat([angles.sin(), angles.cos()], dim=-1), "h w c -> c h w")


class PromptEncoder(nn.Module):
    """What remains of SAM's prompt encoder: positions and the "no mask" embedding.

    Point, box and mask prompts are never given; their parameters exist because every released checkpoint has them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pe_layer = PositionEncoding(width)
        self.point_embeddings = nn.ModuleList([nn.Embedding(1, width) for _ in range(4)])
        self.not_a_point_embed = nn.Embedding(1, width)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, kernel_size=2, stride=2),
            LayerNorm2d(4),
            nn.GELU(),
            nn.Conv2d(4, 16, kernel_size=2, stride=2),
            LayerNorm2d(16),
            nn.GELU(),
            nn.Conv2d(16, width, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, width)

    def forward(self, side: int) -> tuple[Tensor, Tensor]:
        """What the decoder takes from here.

        Args:
            side: patches per side of the deepest scale.
        Returns:
            encoded positions (C, side, side) and the "no mask" embedding (1, C).
        """
        return self.pe_layer(side), all_rows(self.no_mask_embed)


class Projection(nn.Linear):
    """A linear layer of ``Attention`` whose weights may be absorbed into what its results would be multiplied with.

    All uses are calls of the module, because weights that are divided or offloaded are there only while it runs.

    Shapes: H heads of d numbers each.
    """

    def forward(self, x: Tensor, use: Use = "project") -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Apply the weights as ``use`` says.

        Args:
            x, use: (..., in), "project": as a linear layer does, (..., out).
                (N, T, H, d), "transposed": for each head of ``x`` a vector of in + 1 numbers, whose product with [y, 1]
                is that of ``x`` with the head's part of the projected y.
                (N, T, H, in), "head_inputs": each head projects an input of its own, (N, T, H, d).
                (N, T, H, d), "head_outputs": what each head adds to the result, (N, T, H, out). It has a share of the
                bias, so that averages in every head add up to the projection of the averages.
        """
        if use == "project":
            return super().forward(x)
        heads = x.shape[-2]
        if use == "head_outputs":
            by_head = rearrange(self.weight, "c (h d) -> h d c", h=heads)
            return torch.einsum("nthd,hdc->nthc", x, by_head) + self.bias / heads
        by_head = rearrange(self.weight, "(h d) c -> h d c", h=heads)
        bias = rearrange(self.bias, "(h d) -> h d", h=heads)
        if use == "head_inputs":
            return torch.einsum("nthc,hdc->nthd", x, by_head) + bias
        offsets = torch.einsum("nthd,hd->nth", x, bias)
        return torch.cat([torch.einsum("nthd,hdc->nthc", x, by_head), offsets[..., None]], -1)


class Attention(nn.Module):
    """Multi-head attention that may work at a smaller inner width.

    Between tokens and an image, thousands of pixels meet half a dozen tokens. There no pixel is projected. The weights
    are absorbed into what the projected pixels would be multiplied with, (W y) . x = y . (W^T x), and sums over pixels
    are projected in their place. This is the same result from a third of the arithmetic, and no keys, values or queries
    of pixels are kept for the gradient.
    """

    def __init__(self, width: int, heads: int, *, downsample: int = 1) -> None:
        super().__init__()
        inner = width // downsample
        self.heads = heads
        self.scale = (inner // heads) ** -0.5
        self.q_proj = Projection(width, inner)
        self.k_proj = Projection(width, inner)
        self.v_proj = Projection(width, inner)
        self.out_proj = Projection(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from tokens to tokens.

        Args:
            q: (N, T, C).
            k, v: (N, M, C), M keys and their values.
        Returns:
            (N, T, C).
        """
        q, k, v = (
            rearrange(projection(x), "n t (heads c) -> n heads t c", heads=self.heads)
            for projection, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(rearrange(out, "n heads t c -> n t (heads c)"))

    def tokens_to_image(self, tokens: Tensor, image: Tensor, image_pe: Tensor) -> Tensor:
        """Attend from tokens to the pixels of an image.

        Args:
            tokens: (N, T, C) queries.
            image: (N, P, C) values; with ``image_pe`` (P, C) added they are the keys.
        Returns:
            (N, T, C).
        """
        queries = self.k_proj(self._split(self.q_proj(tokens)) * self.scale, "transposed")
        weights = _products(queries, image, image_pe).softmax(-1)  # over pixels
        seen = torch.bmm(weights, image)
        values = self.v_proj(rearrange(seen, "n (t h) c -> n t h c", h=self.heads), "head_inputs")
        return self.out_proj(rearrange(values, "n t h d -> n t (h d)"))

    def image_to_tokens(self, image: Tensor, image_pe: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend from the pixels of an image to tokens.

        Args:
            image: (N, P, C); with ``image_pe`` (P, C) added they are the queries.
            keys, values: (N, T, C).
        Returns:
            (N, P, C).
        """
        absorbed = self.q_proj(self._split(self.k_proj(keys)) * self.scale, "transposed")
        products = rearrange(_products(absorbed, image, image_pe), "n (t h) p -> n t h p", h=self.heads)
        weights = products.softmax(1).flatten(1, 2)  # over tokens
        outputs = self.out_proj(self._split(self.v_proj(values)), "head_outputs")
        return torch.bmm(weights.transpose(1, 2), outputs.flatten(1, 2))

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "n t (h d) -> n t h d", h=self.heads)


def _products(vectors: Tensor, image: Tensor, image_pe: Tensor) -> Tensor:
    """(N, T, H, C + 1) with the pixels of (N, P, C) plus (P, C), a 1 behind each -> (N, T * H, P)."""
    vectors = vectors.flatten(1, 2)
    directions, offsets = vectors[..., :-1], vectors[..., -1:]
    return torch.baddbmm(directions @ image_pe.T + offsets, directions, image.transpose(1, 2))


class TwoLayerMLP(nn.Module):
    """Two linear layers with ReLU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.lin2(F.relu(self.lin1(x)))


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image attends to the tokens."""

    def __init__(self, width: int, heads: int, mlp_width: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(width, heads, downsample=2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = TwoLayerMLP(width, mlp_width)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, heads, downsample=2)

    def forward(self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        """One round of attention in both directions.

        Args:
            tokens: (N, T, C); token_pe: (N, T, C), the tokens as they entered the transformer.
            image: (N, g*g, C); image_pe: (g*g, C) encoded positions in [-1, 1].
        Returns:
            tokens (N, T, C) and image (N, g*g, C), both layer-normalized.
        """
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image.tokens_to_image(tokens + token_pe, image, image_pe))
        tokens = self.norm3(tokens + self.mlp(tokens))
        update = self.cross_attn_image_to_token.image_to_tokens(image, image_pe, tokens + token_pe, tokens)
        image = self.norm4(image + update)
        return tokens, image


class TwoWayTransformer(nn.Module):
    """One Attn^l of the paper."""

    def __init__(self, *, depth: int, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        blocks = [TwoWayBlock(width, heads, mlp_width, first=index == 0) for index in range(depth)]
        self.layers = nn.ModuleList(blocks)
        self.final_attn_token_to_image = Attention(width, heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Run all blocks, then let the tokens look at the image once more.

        Args:
            image: (N, g*g, C) features.
            image_pe: (g*g, C) encoded positions in [-1, 1].
            tokens: (N, T, C).
        Returns:
            tokens (N, T, C) and image (N, g*g, C), both layer-normalized.
        """
        token_pe = tokens
        for block in self.layers:
            tokens, image = block(tokens, image, token_pe, image_pe)
        update = self.final_attn_token_to_image.tokens_to_image(tokens + token_pe, image, image_pe)
        return self.norm_final_attn(tokens + update), image


class HeadMLP(nn.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, out_width)])

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., out_width), unbounded."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class MaskDecoder(nn.Module):
    """Queries and gated features -> mask logits, for all scales.

    Attributes:
        recomputed_at_once: with gradients, decode so many masks at a time, and compute what the gradient needs of them
            anew in the backward pass; None decodes all masks together and keeps it.
    """

    recomputed_at_once: int | None = None

    def __init__(self, config: PixelLMConfig) -> None:
        super().__init__()
        width, scales = config.out_dim, config.image_feature_scale_num
        self.transformer = nn.ModuleList(
            TwoWayTransformer(
                depth=config.decoder_depth,
                width=width,
                heads=config.decoder_heads,
                mlp_width=width * config.decoder_mlp_ratio,
            )
            for _ in range(scales)
        )
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(NUM_MASK_TOKENS, width)
        small = width // 8
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, small, kernel_size=2, stride=2), LayerNorm2d(small), nn.GELU()
        )
        self.upsample_2x = nn.Sequential(
            nn.ConvTranspose2d(width, width, kernel_size=2, stride=2), LayerNorm2d(width), nn.GELU()
        )
        self.pe1 = PositionEncoding(width)
        self.output_hypernetworks_mlps = nn.ModuleList([HeadMLP(width, small) for _ in range(NUM_MASK_TOKENS)])
        self.iou_prediction_head = HeadMLP(width, NUM_MASK_TOKENS)  # in released weights; no loss ever reads it
        self.level_embed = nn.Embedding(scales, width)
        # gamma of the paper; constants 1/S in the release, where they were never registered.
        self.scale_weights = nn.Parameter(torch.empty(scales))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start gamma at the release's constant."""
        nn.init.constant_(self.scale_weights, 1.0 / len(self.transformer))

    def forward(
        self, pyramid: Tensor, queries: Tensor, image_index: Tensor, positions: Tensor, no_mask: Tensor
    ) -> Tensor:
        """Decode N masks.

        Args:
            pyramid: (S, B, C, g, g) features of each image, deepest scale first.
            queries: (N, S, C) one fused query per scale; N is 1 or more.
            image_index: (N,) the image of each query.
            positions: (C, g, g) encoded positions of the deepest scale; no_mask: (1, C); both of ``PromptEncoder``.
        Returns:
            (N, h, w) logits, unbounded; h = w = 2g for one scale, 4g for several.
        """
        # What is the same for all masks of an image is computed once for the image.
        sources = [pyramid[0], *(self.upsample_2x(features) for features in pyramid[1:])]
        encodings = [positions, *(self.pe1(source.shape[-1]) for source in sources[1:])]
        no_mask = rearrange(no_mask, "1 c -> 1 c 1 1")
        at_once = self.recomputed_at_once
        if at_once is None or len(queries) <= at_once or not torch.is_grad_enabled():
            return self._decode(sources, queries, image_index, encodings, no_mask)
        decoded = []
        blocks = list(zip(queries.split(at_once), image_index.split(at_once), strict=True))
        for block in blocks[:-1]:
            decoded.append(
                checkpoint(
                    self._decode, sources, *block, encodings, no_mask, use_reentrant=False, preserve_rng_state=False
                )
            )
        # The backward pass begins with the last block, so nothing is won if it is recomputed.
        decoded.append(self._decode(sources, *blocks[-1], encodings, no_mask))
        return torch.cat(decoded)

    def _decode(
        self, sources: list[Tensor], queries: Tensor, image_index: Tensor, encodings: list[Tensor], no_mask: Tensor
    ) -> Tensor:
        """Decode N masks together.

        Args:
            sources, encodings: of each scale, features (B, C, h, h) and encoded positions (C, h, h).
            queries, image_index: as in ``forward``; no_mask: (1, C, 1, 1).
        """
        per_scale: list[Tensor] = []
        for scale, (features, encoding) in enumerate(zip(sources, encodings, strict=True)):
            source = features[image_index]
            if scale > 0:
                gate = F.interpolate(per_scale[-1][:, None], source.shape[-2:], mode="bilinear", align_corners=False)
                source = source * (gate.sigmoid() + 1)
            per_scale.append(self._decode_scale(scale, source + no_mask, queries[:, scale], encoding))
        return self._weighted_sum(per_scale)

    def _decode_scale(self, scale: int, source: Tensor, query: Tensor, position: Tensor) -> Tensor:
        """One Attn^l and its mask head: (N, C, h, h), (N, C), (C, h, h) -> (N, 2h, 2h)."""
        output_tokens = torch.cat([all_rows(self.iou_token), all_rows(self.mask_tokens)])  # (1 + 4, C)
        tokens = torch.cat([output_tokens.expand(len(query), -1, -1), query[:, None]], dim=1)
        tokens = tokens + all_rows(self.level_embed)[scale]
        image, position = rearrange(source, "n c h w -> n (h w) c"), rearrange(position, "c h w -> (h w) c")
        tokens, image = self.transformer[scale](image, position, tokens)
        upscaled = self.output_upscaling(rearrange(image, "n (h w) c -> n c h w", h=source.shape[-2]))
        kernel = self.output_hypernetworks_mlps[0](tokens[:, 1])
        return torch.einsum("nc,nchw->nhw", kernel, upscaled)

    def _weighted_sum(self, per_scale: list[Tensor]) -> Tensor:
        size = per_scale[-1].shape[-2:]
        resized = [
            F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0] for logits in per_scale
        ]
        return torch.einsum("s,snhw->nhw", self.scale_weights.to(resized[0].dtype), torch.stack(resized))


def all_rows(table: nn.Embedding) -> Tensor:
    """A whole embedding table, asked for by a call: offloaded weights are there only while their module runs."""
    device = None if table.weight.is_meta else table.weight.device
    return table(torch.arange(table.num_embeddings, device=device))


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of (B, C, h, w)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def reset_parameters(self) -> None:
        """Start at the identity after normalization."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w), each pixel normalized over its channels."""
        dtype = x.dtype
        x = x.float() if dtype == torch.float16 else x  # in which the square of 256 is infinite
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = ((x - mean) / torch.sqrt(variance + self.eps)).to(dtype)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


def build_feature_neck(in_channels: int, out_channels: int) -> nn.Sequential:
    """(B, D, g, g) -> (B, C, g, g), shared by the scales."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    )
