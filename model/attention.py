"""How attention is computed: what each implementation needs."""

from __future__ import annotations

from typing import Any, get_args

import torch
from transformers.utils.import_utils import is_flash_attn_2_available

from .errors import InputError
from .values import Attention


def check_attention(wanted: Any, *, dtype: torch.dtype | str | None = None) -> None:
    """Refuse an attention implementation that is unknown, or whose package, device or precision is missing.

    transformers would fetch a compiled kernel from the hub in place of a missing flash-attn, or for a name that is a
    repository: foreign code that nobody asked for.

    Args:
        wanted: a name, or transformers' dictionary of names by part of the model; None is transformers' own choice.
        dtype: of the weights, if it is known.
    Raises:
        InputError: with what to install or to give instead.
    """
    for name in wanted.values() if isinstance(wanted, dict) else [wanted]:
        if isinstance(name, dict):
            check_attention(name, dtype=dtype)
        elif name is not None and name not in get_args(Attention):
            raise InputError(f"attn_implementation is {name!r}; expected one of {', '.join(get_args(Attention))}")
        elif name in ("flash_attention_2", "flex_attention"):
            _check_gpu(name)
        if name == "flash_attention_2":
            _check_flash(dtype)


def _check_gpu(name: str) -> None:
    if torch.cuda.is_available():
        return
    # On a CPU torch 2.13 compiles flex_attention for prompts alone, in 15 s per length, and not for single new tokens;
    # there are no gradients.
    raise InputError(f"{name} needs a CUDA GPU, and torch finds none here; use sdpa")


def _check_flash(dtype: torch.dtype | str | None) -> None:
    if not is_flash_attn_2_available():
        raise InputError(
            "flash_attention_2 needs the package flash-attn, which is not installed: see requirements-gpu.txt; "
            "sdpa needs nothing"
        )
    if dtype in (torch.float32, "float32", "fp32"):
        raise InputError("flash_attention_2 computes in 16 bits only; give bf16 or fp16 as the precision, or use sdpa")
