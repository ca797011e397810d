"""Which parameters are trained, and the LoRA wrapping of the language model.

peft is imported only where a model is wrapped.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from model.errors import InputError
from model.weights.quantization import import_bitsandbytes
from utils import dist
from utils.cli.config import RunConfig

PEFT_PREFIX = "base_model.model."

# Fully trained beside LoRA (released set). The released code meant to train the neck and the "no mask" embedding,
# but left them frozen at random; see ALSO_TRAINED.
RELEASED_TRAINED = ("embed_tokens", "lm_head", "mask_decoder", "text_hidden_fcs", "mm_projector", "out_mm_projector")
ALSO_TRAINED = ("image_feature_neck", "prompt_encoder.no_mask_embed", "token_fusion", "mask_decoder.scale_weights")
# Constants in the release, which never registered them as parameters.
UNREGISTERED_IN_RELEASE = ("token_fusion", "mask_decoder.scale_weights")


def lora_targets(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Full names of the language model's linear layers whose last part is in ``names``.

    Raises:
        InputError: if one of ``names`` is the name of no layer.
    """
    pattern = re.compile(r"(^|\.)model\.layers\.\d+\.")
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and pattern.search(name) and name.rsplit(".", 1)[-1] in names
    ]
    found = {name.rsplit(".", 1)[-1] for name in targets}
    unknown = [name for name in names if name not in found]
    if unknown:
        raise InputError(
            f"--lora_target_modules names {', '.join(unknown)}, which no layer of the language model is called; "
            "LLaMA has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
        )
    return targets


def wrap_lora(model: nn.Module, *, rank: int, alpha: int, dropout: float, names: Sequence[str]) -> nn.Module:
    """Freeze the model and add LoRA to the language model; parameters get the ``base_model.model.`` prefix.

    Args:
        names: last parts of the names of the layers that get LoRA, such as ``q_proj``.
    Raises:
        InputError: if one of ``names`` is the name of no layer, or ``rank`` is larger than a layer.
    """
    import_bitsandbytes()  # which peft would import otherwise
    dist.tell_deepspeed_the_device()
    from peft import LoraConfig, get_peft_model

    targets = lora_targets(model, names)
    layers = [cast(nn.Linear, model.get_submodule(name)) for name in targets]
    narrowest = min(min(layer.in_features, layer.out_features) for layer in layers)
    if rank > narrowest:
        raise InputError(f"--lora_r is {rank}, but a layer with LoRA is only {narrowest} wide; expected that or less")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        bias="none",
    )
    with warnings.catch_warnings():
        # peft asks transformers under a name that transformers has given up.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return get_peft_model(model, config)


def wrap_as_told(model: nn.Module, run: RunConfig) -> tuple[nn.Module, dict[str, int]]:
    """LoRA and the trained set by the flags of a run.

    Returns:
        the wrapped model, and what ``set_trained`` returns.
    Raises:
        InputError: as ``wrap_lora``.
    """
    names = [name.strip() for name in run.lora_target_modules.split(",")]
    wrapped = wrap_lora(model, rank=run.lora_r, alpha=run.lora_alpha, dropout=run.lora_dropout, names=names)
    return wrapped, set_trained_as_told(wrapped, run)


def is_trained(name: str, *, train_mask_decoder: bool = True, released_set: bool = False) -> bool:
    """Whether the parameter of this name is updated in training.

    Args:
        released_set: leave frozen what the release left frozen (docs/paper_to_code.md, row 9).
    """
    if "vision_tower" in name:
        return False
    if "lora_" in name:
        return True
    if released_set:
        if any(part in name for part in UNREGISTERED_IN_RELEASE):
            return False
        groups = RELEASED_TRAINED
    else:
        groups = RELEASED_TRAINED + ALSO_TRAINED
    if not train_mask_decoder and "mask_decoder" in name:
        return False
    return any(f".{group}." in f".{name}." for group in groups)


def set_trained(model: nn.Module, *, train_mask_decoder: bool = True, released_set: bool = False) -> dict[str, int]:
    """Set ``requires_grad`` of every parameter; return the number of trained parameters per group."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad = is_trained(name, train_mask_decoder=train_mask_decoder, released_set=released_set)
        if parameter.requires_grad:
            group = _group_of(name)
            counts[group] = counts.get(group, 0) + parameter.numel()
    return counts


def set_trained_as_told(model: nn.Module, run: RunConfig) -> dict[str, int]:
    """``set_trained`` by the flags of a run."""
    return set_trained(model, train_mask_decoder=run.train_mask_decoder, released_set=run.trained_set == "released")


def trained_names(network: nn.Module) -> set[str]:
    """Names of the parameters that ``set_trained`` has set."""
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def _group_of(name: str) -> str:
    if "lora_" in name:
        return "lora"
    parts = name.removeprefix(PEFT_PREFIX).split(".")
    return parts[0] if parts[0] != "model" else parts[1]


def split_training_state(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Training checkpoint -> (plain model weights, LoRA weights), both under released names.

    Reads the names of any peft version: with or without ``.base_layer`` and the ``base_model.model.`` prefix.
    LoRA names come back without the adapter's name: ``...q_proj.lora_A.weight``.
    """
    base, lora = {}, {}
    for name, tensor in state.items():
        name = plain_name(name)
        if ".lora_" in name:
            lora[name.replace(".default.", ".")] = tensor
        else:
            base[name] = tensor
    return base, lora


def plain_name(name: str) -> str:
    """The released name of a weight, from the one that it has in a network with LoRA."""
    return name.removeprefix("module.").removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")


def lora_rank(lora: dict[str, Tensor]) -> int:
    """The rank of LoRA weights.

    Raises:
        InputError: if the weights have several ranks.
    """
    ranks = {tensor.shape[0] for name, tensor in lora.items() if ".lora_A." in name}
    if len(ranks) != 1:
        raise InputError(f"expected LoRA weights of one rank in the checkpoint, found ranks {sorted(ranks)}")
    return ranks.pop()


def lora_module_names(lora: dict[str, Tensor]) -> list[str]:
    """``q_proj``, ``v_proj``, ...: the layers that LoRA weights belong to."""
    return sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in lora})


def load_lora(wrapped: nn.Module, lora: dict[str, Tensor]) -> None:
    """Put LoRA weights into a model that ``wrap_lora`` made.

    Args:
        lora: as ``split_training_state`` returns them.
    Raises:
        InputError: if the names of the weights are not those of the model's LoRA parameters.
    """
    own = {name: parameter for name, parameter in wrapped.named_parameters() if "lora_" in name}
    renamed = {PEFT_PREFIX + re.sub(r"\.lora_([AB])\.", r".lora_\1.default.", name): t for name, t in lora.items()}
    if set(own) != set(renamed):
        difference = sorted(set(own) ^ set(renamed))
        raise InputError(f"LoRA weights do not fit the model: {len(difference)} names differ, first {difference[0]}")
    for name, tensor in renamed.items():
        own[name].data.copy_(tensor)


def merge_lora(wrapped: nn.Module) -> None:
    """Add LoRA to the weights of the model that ``wrap_lora`` wrapped, and take its layers out, in place."""
    from peft import PeftModel

    assert isinstance(wrapped, PeftModel)
    wrapped.merge_and_unload()
