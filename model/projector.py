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
    Raises:
        ValueError: if it is smaller.
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
