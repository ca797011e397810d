"""A GPU computes what a CPU computes: masks, losses and gradients, with every implementation of attention."""

from __future__ import annotations

import copy

import pytest
import torch

from model.image import patch_valid_mask
from model.losses import LossWeights, pixellm_loss
from model.PixelLM import PixelLMForCausalLM
from model.rows import rows_with_shared_prefixes
from model.structures import Batch, TokenRows
from tests.support.tiny_network import make_batch, make_network

TALKS = [(0, "Which thing?", "The thing is {seg} and {seg}."), (1, "What?", "{seg}."), (0, "Is it human?", "{seg}.")]
LARGEST = 1e-4  # of the largest entry


def shared_rows(network: PixelLMForCausalLM, batch: Batch) -> TokenRows:
    """The conversations of the batch, which share the prefix of their image."""
    lengths = batch.attention_mask.sum(1).tolist()
    ids, labels = (
        [row[:length] for row, length in zip(rows, lengths, strict=True)] for rows in (batch.input_ids, batch.labels)
    )
    patch_mask = patch_valid_mask(batch.valid_hw, size=network.config.covered_size, grid=network.config.llm_grid)
    return rows_with_shared_prefixes(
        ids, labels, batch.image_index.tolist(), pad_token_id=0, codebook=network.codebook,
        patch_mask=patch_mask.flatten(1),
    )  # fmt: skip


def compute(network: PixelLMForCausalLM, batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """Masks, losses and gradients of a step, by name, on the CPU."""
    network.to(device).zero_grad(set_to_none=True)
    batch = batch.to(device, torch.float32)
    output = network(**batch.inputs())
    terms = pixellm_loss(output.loss, output.photo_logits, batch.masks, output.query_index, LossWeights())
    terms.total.backward()
    found = {f"mask of photo {number}": logits for number, logits in enumerate(output.mask_logits)}
    found |= {name: getattr(terms, name) for name in ("total", "ce", "bce", "dice")}
    found |= {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {name: tensor.detach().cpu() for name, tensor in found.items()}


@pytest.mark.parametrize("shared", [False, True], ids=["rows apart", "shared prefix"])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_masks_losses_and_gradients_are_those_of_a_cpu(tiny_tokenizer_dir, device, attention, shared):
    if attention == "flex_attention" and device.type == "cpu":
        pytest.skip("flex_attention needs a GPU")
    network, tokenizer = make_network(tiny_tokenizer_dir)
    batch = make_batch(network, tokenizer, TALKS)
    if shared:
        batch.rows = shared_rows(network, batch)
    expected = compute(copy.deepcopy(network), batch, torch.device("cpu"))
    network.set_attn_implementation(attention)
    found = compute(network, batch, device)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name],
            tensor,
            atol=LARGEST * max(float(tensor.abs().max()), 1e-4),
            rtol=0,
            msg=lambda m, n=name: f"{n}: {m}",
        )
