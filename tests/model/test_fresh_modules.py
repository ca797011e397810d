"""What a LLaVA base lacks starts with PyTorch's numbers: transformers' own rule would draw others, and seeds would
mean something else than they did."""

from __future__ import annotations

import pytest
import torch

from model.PixelLM import PixelLMForCausalLM
from model.weights.bases import FRESH_MODULES
from model.weights.released import RELEASED_CONSTANTS
from tests.support.tiny_network import make_network


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_modules_draw_what_pytorch_draws_in_the_order_of_modules(tiny_tokenizer_dir, dtype):
    network, _ = make_network(tiny_tokenizer_dir)
    whole = network.to(dtype).state_dict()
    state = {name: tensor for name, tensor in whole.items() if not name.startswith(FRESH_MODULES)}
    torch.manual_seed(5)
    built = PixelLMForCausalLM.from_state(
        network.config, state, source="test", may_initialize=FRESH_MODULES, dtype=dtype
    )
    torch.manual_seed(5)
    for name, module in network.named_modules():
        if f"{name}.".startswith(FRESH_MODULES) and hasattr(module, "reset_parameters"):
            module.reset_parameters()
    expected = network.state_dict()
    for name, tensor in built.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert set(built.load_report.initialized) == set(whole) - set(state) - set(RELEASED_CONSTANTS)


def test_a_network_of_its_own_is_whole(tiny_tokenizer_dir):
    """Made from a configuration alone, nothing of it is left at zero or undefined."""
    network = PixelLMForCausalLM(make_network(tiny_tokenizer_dir)[0].config)
    for name, tensor in network.state_dict().items():
        assert tensor.isfinite().all(), name
        if tensor.dim() > 1:
            assert tensor.std() > 0, name
