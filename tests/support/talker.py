"""A network of random weights whose answers differ by question and photo, and often hold token groups."""

from __future__ import annotations

from pathlib import Path

import torch

from model.predictor import PixelLMPredictor
from model.replies import Reply
from tests.support.tiny_network import make_network


def make_talker(folder: Path) -> PixelLMPredictor:
    """A predictor of one scale and two tokens; ``folder`` has the tokenizer."""
    network, tokenizer = make_network(folder, scales=1, tokens=2)
    first, second = network.codebook.ids
    with torch.no_grad():
        for layer in network.model.layers:  # a few tokens of the prompt decide
            for name, factor in (("q_proj", 50), ("k_proj", 5), ("o_proj", 40)):
                getattr(layer.self_attn, name).weight *= factor
        head, table = network.lm_head.weight, network.model.embed_tokens.weight
        head[first] *= 2
        head[second] += 1.5 * table[first] / table[first].norm()
    network.lm_head.register_forward_hook(lambda module, args, logits: _forbid(logits, len(tokenizer)))
    return PixelLMPredictor(network, tokenizer)


def _forbid(logits: torch.Tensor, num_words: int) -> None:
    """The table has rows that stand for no word."""
    logits[..., num_words:] = -torch.inf


def same(found: Reply, expected: Reply, *, atol: float = 1e-4) -> None:
    """Hold a reply to another; both kept their logits."""
    assert found.output_ids == expected.output_ids
    assert (found.text, found.reason) == (expected.text, expected.reason)
    for mine, theirs in zip(found.targets, expected.targets, strict=True):
        assert (mine.phrase, mine.token_span) == (theirs.phrase, theirs.token_span)
        assert torch.allclose(mine.logits, theirs.logits, atol=atol)
