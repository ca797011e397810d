"""Language-model states -> decoder queries (paper: codebook tokens, token fusion phi).

Shapes: Q conversations, L tokens, N masks, S scales, K tokens per scale, D language-model width, C decoder width.
"""

from __future__ import annotations

from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from .text.tokens import SegCodebook


def gather_seg_states(hidden: Tensor, group_at: Tensor, *, codebook: SegCodebook) -> Tensor:
    """Pick the states that predict complete token groups.

    Args:
        hidden: (R, L, D), last layer.
        group_at: (N,), as in ``TokenRows``.
    Returns:
        (N, S, K, D), scale-major.
    """
    # Released rule: a mask embedding is the state that PREDICTS its token, so one position before it.
    position = group_at[:, None] - 1 + torch.arange(codebook.size, device=group_at.device)  # (N, S*K)
    return rearrange(hidden.flatten(0, 1)[position.to(hidden.device)], "n (s k) d -> n s k d", k=codebook.tokens)


class TokenFusion(nn.Module):
    """Weighted sum of the K vectors of a scale.

    The K weights, shared by the scales, start at 1/(S*K): the release makes one scalar per codebook token and
    uses the first K of them. It never registered them, so published weights keep that constant.
    """

    def __init__(self, scales: int, tokens: int) -> None:
        super().__init__()
        self.initial = 1.0 / (scales * tokens) if tokens > 1 else 1.0
        self.weights = nn.Parameter(torch.empty(tokens))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start at the release's constant."""
        nn.init.constant_(self.weights, self.initial)

    def forward(self, embeds: Tensor) -> Tensor:
        """Fuse the K vectors of each scale.

        Args:
            embeds: (N, S, K, C) projected states, of any float dtype and range.
        Returns:
            (N, S, C) of the same dtype.
        """
        return torch.einsum("k,nskc->nsc", self.weights.to(embeds.dtype), embeds)


def build_text_projection(width: int, out_width: int) -> nn.Sequential:
    """D -> C, applied to every codebook state before fusion."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out_width), nn.Dropout(0.0))


@torch.no_grad()
def start_at_unit_size(projection: nn.Sequential, fusion: TokenFusion) -> None:
    """Draw a new text projection whose fused queries are as large as the decoder's own tokens.

    Those start with standard normal entries; so do the queries then, for states with entries of size 1. PyTorch's
    default for linear layers gives smaller ones, which the decoder's tokens drown: all targets look alike, hardly any
    gradient reaches the language model, and masks stay flat for many updates.
    """
    inner, outer = cast(nn.Linear, projection[0]), cast(nn.Linear, projection[2])
    nn.init.kaiming_normal_(inner.weight, nonlinearity="relu")
    nn.init.normal_(outer.weight, std=1 / (fusion.initial * (fusion.weights.numel() * outer.in_features) ** 0.5))
    nn.init.zeros_(inner.bias)
    nn.init.zeros_(outer.bias)
