"""How attention is computed: which implementations there are, and what each of them needs."""

from __future__ import annotations

import importlib.util
from typing import Literal, get_args

import torch

from .errors import InputError

Attention = Literal["sdpa", "eager", "flash_attention_2", "flex_attention"]


def check_attention(name: str | None) -> None:
    """Refuse an attention implementation that is unknown, or whose package or device is missing.

    transformers would fetch a compiled kernel from the hub in place of a missing flash-attn, or for a name that is a
    repository: foreign code that nobody asked for.

    Args:
        name: None stands for transformers' own choice.
    Raises:
        InputError: with what to install or to give instead.
    """
    if name is None:
        return
    if name not in get_args(Attention):
        raise InputError(f"attn_implementation is {name!r}; expected one of {', '.join(get_args(Attention))}")
    if name != "flash_attention_2":
        return
    if not torch.cuda.is_available():
        raise InputError("flash_attention_2 needs a CUDA GPU, and torch finds none here; use sdpa")
    if importlib.util.find_spec("flash_attn") is None:
        raise InputError(
            "flash_attention_2 needs the package flash-attn, which is not installed: see requirements-gpu.txt; "
            "sdpa needs nothing"
        )


def check_attention_of_run(name: str, *, precision: str, training: bool) -> None:
    """Refuse what an implementation cannot do, before weights are read.

    Args:
        precision: fp32, bf16 or fp16.
        training: gradients are computed.
    Raises:
        InputError: as ``check_attention``, and for an implementation without this precision or without gradients here.
    """
    check_attention(name)
    if name == "flash_attention_2" and precision == "fp32":
        raise InputError("flash_attention_2 computes in 16 bits only; give --precision bf16 or fp16, or use sdpa")
    if name == "flex_attention" and training and not torch.cuda.is_available():
        raise InputError("flex_attention has no gradients on a CPU; train with sdpa or eager")
