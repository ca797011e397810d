"""An 8-bit or 4-bit language model under 16-bit eyes and hands: what transformers may quantize, and what not.

Masks suffer from rounding where answers do not: tower, projectors, decoder, embedding tables and head keep their 16
bits. They are a small part of the memory.
"""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from model.errors import InputError

# The only part of ``model`` whose layers are quantized.
QUANTIZED = "layers"


def sixteen_bit_modules(network: nn.Module) -> list[str]:
    """Names of the modules that are never quantized: all but the language model's blocks."""
    inside = [f"model.{name}" for name, _ in network.get_submodule("model").named_children() if name != QUANTIZED]
    beside = [name for name, _ in network.named_children() if name != "model"]
    return sorted(inside + beside)


def language_model_only(wanted: Any, network: nn.Module) -> Any:
    """A quantization that leaves everything but the language model's blocks alone.

    Args:
        wanted: a ``BitsAndBytesConfig`` or its dictionary; None quantizes nothing.
        network: names the modules.
    Raises:
        InputError: for another method, or if bitsandbytes is not installed.
    """
    if wanted is None:
        return None
    if isinstance(wanted, dict):
        wanted = BitsAndBytesConfig(**{key: value for key, value in wanted.items() if key != "quant_method"})
    if not isinstance(wanted, BitsAndBytesConfig):
        raise InputError(f"quantization_config is a {type(wanted).__name__}; expected a BitsAndBytesConfig")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "8-bit and 4-bit weights need the package bitsandbytes: pip install -c constraints.txt bitsandbytes"
        )
    limited = copy.deepcopy(wanted)
    limited.llm_int8_skip_modules = sorted({*(wanted.llm_int8_skip_modules or ()), *sixteen_bit_modules(network)})
    return limited


def quantization(bits: int, *, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """What ``--load_in_8bit`` and ``--load_in_4bit`` stand for: LLM.int8() and NF4 with double quantization (release).

    Args:
        bits: 8 or 4; 16 quantizes nothing.
        dtype: in which 4-bit layers compute.
    """
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    if bits == 4:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return None
