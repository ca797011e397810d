"""Tower features -> language model and tower features -> pixel decoder.

Shapes: B images, g patches per side, V tower width, D language-model width, C decoder width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def build_projector(in_width: int, hidden_width: int, out_width: int) -> nn.Sequential:
    """Two-layer MLP (paper: p_V->T for the language model, p_V->D for the decoder)."""
    return nn.Sequential(nn.Linear(in_width, hidden_width), nn.GELU(), nn.Linear(hidden_width, out_width))


def widen_linear_projector(weight: Tensor, bias: Tensor, *, hidden_width: int) -> dict[str, Tensor]:
    """LLaVA's linear projector as the state of a two-layer one that computes exactly the same.

    GELU(x) - GELU(-x) = x, so the hidden layer holds P and -P, and the output layer subtracts one from the other.

    Args:
        weight: (D, V); bias: (D,).
        hidden_width: of the two-layer projector, at least 2 * D; what is beyond starts silent.
    """
    width = len(weight)
    if hidden_width < 2 * width:
        raise ValueError(f"a hidden width of {hidden_width} cannot hold a linear projector of width {width} twice")
    inner = weight.new_zeros(hidden_width, weight.shape[1])
    inner[: 2 * width] = torch.cat([weight, -weight])
    inner_bias = bias.new_zeros(hidden_width)
    inner_bias[: 2 * width] = torch.cat([bias, -bias])
    outer = weight.new_zeros(width, hidden_width)
    outer[:, :width] = torch.eye(width)
    outer[:, width : 2 * width] = -torch.eye(width)
    return {"0.weight": inner, "0.bias": inner_bias, "2.weight": outer, "2.bias": bias.new_zeros(width)}


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of (B, C, h, w)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


def build_feature_neck(in_channels: int, out_channels: int) -> nn.Sequential:
    """(B, D, g, g) -> (B, C, g, g), shared by the scales."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    )
