"""FLOPs are those of the network's own layers, and the peak that of the device's data sheet."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support.tiny_network import make_network
from utils.training.costs import num_layer_weights, peak_flops, peak_flops_of, peak_memory, update_flops


def test_flops_count_the_linear_layers_of_the_language_model(tiny_world):
    network, _ = make_network(tiny_world.llava)
    linear = [module for module in network.model.layers.modules() if isinstance(module, nn.Linear)]
    num_weights = sum(module.weight.numel() for module in linear)
    assert num_layer_weights(network.config.text_config) == num_weights
    assert update_flops(network.config, num_tokens=10) == 40 * num_weights


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_the_peak_is_that_of_the_data_sheet(name, flops):
    assert peak_flops_of(name) == flops


def test_a_cpu_has_no_peak_but_a_memory():
    assert peak_flops(torch.device("cpu")) is None
    assert 2**20 < peak_memory(torch.device("cpu")) < 2**40
