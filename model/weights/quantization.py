"""An 8-bit or 4-bit language model under 16-bit eyes and hands: what transformers may quantize, and what not.

Masks suffer from rounding where answers do not: tower, projectors, decoder, embedding tables and head keep their 16
bits. They are a small part of the memory.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import sys
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from model.errors import InputError

# The only part of ``model`` whose layers are quantized.
QUANTIZED = "layers"
# Sizes that the 4-bit kernel for CPUs with AVX512-BF16 divides a layer into: outputs, inputs.
_CPU_TILE = (32, 64)


def sixteen_bit_modules(network: nn.Module) -> list[str]:
    """Names of the modules that are never quantized: all but the language model's blocks."""
    inside = [f"model.{name}" for name, _ in network.get_submodule("model").named_children() if name != QUANTIZED]
    beside = [name for name, _ in network.named_children() if name != "model"]
    return sorted(inside + beside)


def check_quantization(wanted: Any) -> BitsAndBytesConfig | None:
    """A quantization that can be done here.

    Args:
        wanted: a ``BitsAndBytesConfig`` or its dictionary; None quantizes nothing.
    Raises:
        InputError: for another method, for no or two numbers of bits, or if bitsandbytes is not installed.
    """
    if wanted is None:
        return None
    if isinstance(wanted, dict) and wanted.get("quant_method", "bitsandbytes") == "bitsandbytes":
        try:
            wanted = BitsAndBytesConfig(**{key: value for key, value in wanted.items() if key != "quant_method"})
        except (TypeError, ValueError, AttributeError) as err:
            raise InputError(f"quantization_config is not one of bitsandbytes: {err}") from err
    if not isinstance(wanted, BitsAndBytesConfig):
        found = repr(wanted.get("quant_method")) if isinstance(wanted, dict) else f"a {type(wanted).__name__}"
        raise InputError(f"quantization_config is {found}; expected a BitsAndBytesConfig: other methods are not read")
    if wanted.load_in_8bit == wanted.load_in_4bit:
        raise InputError("quantization_config says neither load_in_8bit nor load_in_4bit; give one of them")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "8-bit and 4-bit weights need the package bitsandbytes: pip install -c constraints.txt bitsandbytes"
        )
    return wanted


def language_model_only(wanted: Any, network: nn.Module) -> BitsAndBytesConfig | None:
    """A quantization that leaves everything but the language model's blocks alone.

    Args:
        wanted: as ``check_quantization`` takes it; modules that it skips itself stay skipped.
        network: names the modules.
    Raises:
        InputError: as ``check_quantization``.
    """
    checked = check_quantization(wanted)
    if checked is None:
        return None
    import_bitsandbytes()
    limited = copy.deepcopy(checked)
    limited.llm_int8_skip_modules = sorted({*(checked.llm_int8_skip_modules or ()), *sixteen_bit_modules(network)})
    return limited


def quantization(bits: int, *, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """What ``--load_in_8bit`` and ``--load_in_4bit`` stand for: LLM.int8() and NF4 with double quantization (release).

    Args:
        bits: 8 or 4; 16 quantizes nothing.
        dtype: of everything else, and in which 4-bit layers compute.
    Raises:
        InputError: if that is not a 16-bit type.
    """
    if bits == 16:
        return None
    if dtype == torch.float32:
        raise InputError(f"a {bits}-bit language model needs the rest in 16 bits; give --precision bf16 or fp16")
    return BitsAndBytesConfig(load_in_8bit=True) if bits == 8 else nf4(dtype)


def nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantization (QLoRA, arXiv:2305.14314): 4.127 bits for each weight.

    Args:
        dtype: in which the layers compute; float32 works, too.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def import_bitsandbytes() -> None:
    """Import bitsandbytes, if it is installed, without the compiled kernel that it fetches from the hub for some CPUs.

    Nobody asked for that code. bitsandbytes has no switch for it, but does without where there is no package
    ``kernels``. Whatever imports bitsandbytes by itself, as peft does, comes after this. Its warnings stay untold:
    one is about that kernel, another comes once for every 8-bit layer and token.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return
    logger = logging.getLogger("bitsandbytes")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)
    modules: dict[str, Any] = sys.modules
    hidden = {"kernels": modules["kernels"]} if "kernels" in modules else {}
    modules["kernels"] = None  # an import of it fails
    try:
        import bitsandbytes  # noqa: F401
    finally:
        del modules["kernels"]
        modules.update(hidden)


def use_kernels_that_fit(network: nn.Module) -> None:
    """Layers that the 4-bit kernel of CPUs with AVX512-BF16 cannot divide are computed as on any other CPU.

    bitsandbytes does not look before it begins, and stops with an assertion.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear) and hasattr(module, "support_avx512bf16_for_cpu"):
            sizes = (module.out_features, module.in_features)
            fits = all(size % tile == 0 for size, tile in zip(sizes, _CPU_TILE, strict=True))
            cast(Any, module).support_avx512bf16_for_cpu &= fits


def keep_layout(network: nn.Module) -> None:
    """Weights that are trained upon stay as they were quantized.

    On CPUs with AVX512-BF16, bitsandbytes lays 4-bit weights out anew for the first pass in evaluation mode, such as a
    validation, and rounds their scales to bfloat16 for good. Gradients cannot be computed with that layout.
    """
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            cast(Any, module).support_avx512bf16_for_cpu = False


def quantized_weights(network: nn.Module) -> set[str]:
    """Names of the parameters that are 4-bit weights; of their scales, only a state dict has names."""
    return {name for name, parameter in network.named_parameters() if hasattr(parameter, "quant_state")}


def bytes_of_scales(module: nn.Module) -> int:
    """What bitsandbytes keeps beside the weights of a layer; LoRA around it, which shows its weight, keeps none."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    state = getattr(weight, "quant_state", None)
    kept = [] if state is None else list(state.as_dict().values())
    # LLM.int8() moves its scales from the weight to the layer when it is first used.
    kept += [getattr(place, "SCB", None) for place in (weight, getattr(module, "state", None))]
    return sum(tensor.nbytes for tensor in kept if isinstance(tensor, Tensor))
