"""Products on a CPU: the same numbers from either library, and training does without the other one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model import cpu_products


@pytest.mark.parametrize("shape", [(1, 512), (8, 1, 512), (2, 30, 512)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_both_give_the_same_numbers(shape, has_bias):
    x, weight = torch.randn(shape), torch.randn(600, 512)
    bias = torch.randn(600) if has_bias else None
    with torch.inference_mode():
        torch.testing.assert_close(
            cpu_products.linear(x, weight, bias), F.linear(x, weight, bias), atol=1e-4, rtol=1e-5
        )


def test_a_layer_learns_as_before():
    network = nn.Sequential(nn.Linear(512, 600), nn.Linear(600, 4))
    x = torch.randn(3, 512)
    expected = network(x)
    cpu_products.use_in(network)
    found = network(x)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    with torch.inference_mode():
        torch.testing.assert_close(network(x), expected.detach(), atol=1e-5, rtol=1e-5)


def test_a_layer_with_a_hook_of_its_own_is_left_alone():
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: x
    cpu_products.use_in(layer)
    assert torch.equal(layer(torch.ones(4)), torch.ones(4))
