"""Greedy generation with a key-value cache.

Shapes: T generated tokens, L prompt tokens, D language-model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from .PixelLM import PixelLMForCausalLM
from .structures import VisionFeatures


@dataclass(frozen=True)
class Generated:
    """A greedy answer.

    Attributes:
        ids: T token ids, the end mark included when there is one.
        states: (T, D), the last hidden state that predicted each of them; masks are decoded from these.
        finished: the model ended the answer itself.
    """

    ids: list[int]
    states: Tensor
    finished: bool


@torch.inference_mode()
def generate(
    network: PixelLMForCausalLM, prompt: Sequence[int], features: VisionFeatures, *, end_id: int, max_new_tokens: int
) -> Generated:
    """Continue a prompt about the one image of ``features``.

    Args:
        prompt: L ids, image placeholders expanded.
        end_id: the token that ends an answer.
        max_new_tokens: 1 or more.
    Raises:
        ValueError: if the prompt's placeholders do not fit the image.
    """
    device = network.device
    input_ids = torch.tensor([list(prompt)], device=device)
    attention = torch.ones_like(input_ids, dtype=torch.bool)
    step, attention = network.embed(input_ids, attention, features, torch.zeros(1, dtype=torch.long, device=device))
    cache = DynamicCache()
    start = 0
    ids: list[int] = []
    states: list[Tensor] = []
    while len(ids) < max_new_tokens:
        positions = torch.arange(start, start + step.shape[1], device=device)[None]
        hidden = network.model(
            inputs_embeds=step, attention_mask=attention, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]  # (1, D)
        ids.append(int(network.lm_head(hidden).argmax(-1)))
        states.append(hidden[0])
        if ids[-1] == end_id:
            break
        start += step.shape[1]
        step = network.model.embed_tokens(torch.tensor([[ids[-1]]], device=device))
        attention = torch.cat([attention, attention.new_ones(1, 1)], dim=1)
    return Generated(ids, torch.stack(states), ids[-1] == end_id)
