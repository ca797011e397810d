"""Attention between a few tokens and thousands of pixels is attention with projected pixels, in another order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from model.pixel_decoder import Attention

N, T, PIXELS, C, HEADS = 3, 6, 50, 32, 4


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(C, HEADS, downsample=2).double()


@pytest.fixture
def given() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"tokens": (N, T, C), "values": (N, T, C), "image": (N, PIXELS, C), "pe": (PIXELS, C)}
    return {
        name: torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }


def with_projected_pixels(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    projections = ((attention.q_proj, q), (attention.k_proj, k), (attention.v_proj, v))
    q, k, v = (
        rearrange(F.linear(x, layer.weight, layer.bias), "n t (h d) -> n h t d", h=HEADS) for layer, x in projections
    )
    out = F.scaled_dot_product_attention(q, k, v)
    layer = attention.out_proj
    return F.linear(rearrange(out, "n h t d -> n t (h d)"), layer.weight, layer.bias)


def same(found: Tensor, expected: Tensor, attention: Attention, given: dict[str, Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    parts = [*given.values(), *attention.parameters()]
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = (torch.autograd.grad((out * weights).sum(), parts, allow_unused=True) for out in (found, expected))
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_tokens_look_at_an_image(attention, given):
    tokens, image, pe = given["tokens"], given["image"], given["pe"]
    expected = with_projected_pixels(attention, tokens, image + pe, image)
    same(attention.tokens_to_image(tokens, image, pe), expected, attention, given)


def test_an_image_looks_at_tokens(attention, given):
    tokens, image, pe, values = given["tokens"], given["image"], given["pe"], given["values"]
    expected = with_projected_pixels(attention, image + pe, tokens, values)
    same(attention.image_to_tokens(image, pe, tokens, values), expected, attention, given)
