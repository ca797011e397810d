"""LLaVA's linear projector keeps its meaning in PixelLM's two-layer one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.projector import build_projector, widen_linear_projector


@pytest.mark.parametrize("hidden_width", [16, 24])
def test_widened_projector_computes_the_linear_map(hidden_width):
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(8, 6, generator=generator), torch.randn(8, generator=generator)
    projector = build_projector(6, hidden_width, 8)
    projector.load_state_dict(widen_linear_projector(weight, bias, hidden_width=hidden_width))
    features = 10 * torch.randn(5, 6, generator=generator)
    torch.testing.assert_close(projector(features), F.linear(features, weight, bias), rtol=1e-5, atol=1e-5)


def test_too_narrow_hidden_layer_is_refused():
    with pytest.raises(ValueError, match="hidden width of 15"):
        widen_linear_projector(torch.zeros(8, 6), torch.zeros(8), hidden_width=15)
