"""How attention is computed: what each implementation needs, and which tokens of a row see which."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.masking_utils import create_causal_mask
from transformers.utils.import_utils import is_flash_attn_2_available

from .errors import InputError
from .structures import SHARED, TokenRows
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


def check_shared_prefix(implementation: str | None) -> None:
    """Refuse an implementation that cannot let conversations share the prefix of their image.

    Raises:
        InputError: with what to give instead.
    """
    if implementation == "flash_attention_2":
        raise InputError(
            "flash_attention_2 cannot let conversations share the prefix of their image; give --no_shared_prefix, or "
            "another --attn_implementation"
        )


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


def attention_in_rows(config: LlamaConfig, rows: TokenRows, embeds: Tensor) -> Any:
    """The attention mask of rows, in the form that the implementation of ``config`` takes.

    A token sees what stands before it in its own conversation, and in the prefix that this one shares with others.

    Args:
        embeds: (R, L, D).
    Returns:
        ``rows.visible`` where each row is one conversation: transformers makes the rest of it. Otherwise the whole
        mask; transformers would guess one from positions that start anew, and cut branches off their prefix.
    Raises:
        InputError: if conversations share rows, and the implementation takes no such mask.
    """
    if rows.image is None or rows.conversation is None:
        return rows.visible
    check_shared_prefix(config._attn_implementation)
    image, conversation = rows.image, rows.conversation

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del head
        shared = (conversation[row, key] == SHARED) | (conversation[row, key] == conversation[row, query])
        return shared & (image[row, key] == image[row, query])

    return create_causal_mask(config, embeds, None, None, and_mask_function=sees)
