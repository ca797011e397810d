"""What an update costs: floating-point operations, the share of the device's peak that they reach, and memory.

Two operations for each weight of the language model's layers and each token of a row in the forward pass, and two for
the gradient of its inputs: the base is frozen, so no gradient of its weights is computed. What is recomputed, attention
itself, LoRA, the tower and the decoder are left out, so the numbers are lower bounds.
"""

from __future__ import annotations

import resource

import torch
from transformers import LlamaConfig

from model.configuration import PixelLMConfig

_FLOPS_PER_WEIGHT_AND_TOKEN = 4
# Of dense matrix products in 16 bits, by the data sheets; the first name that a device's own contains counts.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "V100": 125e12,
}


def num_layer_weights(llama: LlamaConfig) -> int:
    """Weights of the linear layers in the language model's blocks, without LoRA."""
    width, heads = llama.hidden_size, llama.num_attention_heads
    head_width = getattr(llama, "head_dim", None) or width // heads
    key_heads = llama.num_key_value_heads or heads
    attention = 2 * width * head_width * (heads + key_heads)
    return llama.num_hidden_layers * (attention + 3 * width * llama.intermediate_size)


def update_flops(config: PixelLMConfig, *, num_tokens: int) -> int:
    """Operations of the forward and the backward passes over so many tokens of rows, padding included."""
    return _FLOPS_PER_WEIGHT_AND_TOKEN * num_layer_weights(config.text_config) * num_tokens


def peak_flops(device: torch.device) -> float | None:
    """Operations per second that the device can do in 16 bits; None if its data sheet is not in the table."""
    return peak_flops_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_flops_of(name: str) -> float | None:
    """The same by the name of the device."""
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: on the device, or on a CPU in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
