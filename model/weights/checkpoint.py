"""Merged folders, released and own: read strictly, reported in words, and written.

Parameter names inside are the released names outside, so this file has no renaming table; it decides what may be
missing, what may be left over, and says both in words.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import LlamaTokenizer

from model.configuration import PixelLMConfig
from model.errors import InputError
from model.files import read_object, write_json
from model.hub import resolve_folder
from model.outputs import output_folder
from model.text.tokenizer import add_codebook, load_tokenizer, save_tokenizer
from model.text.tokens import SegCodebook

from .bases import TOWER_PREFIX, locate_tower, read_tower
from .released import RELEASED_CONSTANTS, released_config
from .tensors import own_storage, read_weights

logger = logging.getLogger(__name__)

# Buffers of older transformers that carry no information.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "embeddings.position_ids")
_PREPROCESSOR_FILE = "preprocessor_config.json"
# The mark of the folders that are written here.
MERGED_MODEL = "merged model"


@dataclass
class LoadReport:
    """What happened to every weight of a load (docs/checkpoints.md).

    Attributes:
        loaded: tensors that were read into the model.
        initialized: names that were absent and are random now; only a new run may have some.
        constant: names that were absent and hold the release's constants.
        ignored: names in the files that the model has no use for.
    """

    source: str
    loaded: int
    initialized: list[str] = field(default_factory=list)
    constant: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """One line for the log."""
        text = f"{self.source}: {self.loaded} tensors loaded"
        if self.initialized:
            groups = sorted({".".join(name.split(".")[:2]) for name in self.initialized})
            text += f"; freshly initialized: {', '.join(groups)}"
        if self.constant:
            text += f"; at the released constants: {', '.join(self.constant)}"
        if self.ignored:
            text += f"; not used: {len(self.ignored)} (e.g. {self.ignored[0]})"
        return text


@dataclass
class ModelFolder:
    """What a merged folder holds.

    Attributes:
        tokenizer: with the codebook in it.
        state: tensors under released names, the tower's too.
        source: names the folder in messages.
    """

    config: PixelLMConfig
    tokenizer: LlamaTokenizer
    state: dict[str, Tensor]
    source: str


class Network(Protocol):
    """What is saved: PixelLMForCausalLM, or anything that holds its weights."""

    pixellm_config: PixelLMConfig

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors under released names."""
        ...


def fill(
    network: nn.Module, state: dict[str, Tensor], *, dtype: torch.dtype, source: str, may_initialize: tuple[str, ...]
) -> LoadReport:
    """Put weights into a network that was made on the meta device, without ever holding a second copy.

    Args:
        state: tensors under released names.
        dtype: of every parameter and buffer afterwards.
        source: names the weights in messages.
        may_initialize: prefixes of parameters that may be absent; they are initialized.
    Raises:
        InputError: for any other missing, left-over or wrongly shaped weight.
    """
    own = network.state_dict()
    ignored = [name for name in state if name.endswith(IGNORED_SUFFIXES)]
    state = {name: tensor for name, tensor in state.items() if name not in ignored}
    missing = [name for name in own if name not in state]
    _check_fit(own, state, missing, source=source, may_initialize=may_initialize)
    network.load_state_dict({name: t.to(dtype) for name, t in state.items()}, strict=False, assign=True)
    for module in network.modules():
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)) or any(
            buffer.is_meta for buffer in module.buffers(recurse=False)
        ):
            module.to_empty(device="cpu", recurse=False)
            cast(Any, module).reset_parameters()  # every module with parameters of its own has it
            module.to(dtype)
    constant = [name for name in missing if name in RELEASED_CONSTANTS]
    initialized = [name for name in missing if name not in RELEASED_CONSTANTS]
    return LoadReport(source, len(state), initialized, constant, ignored)


def _check_fit(
    own: dict[str, Tensor],
    state: dict[str, Tensor],
    missing: list[str],
    *,
    source: str,
    may_initialize: tuple[str, ...],
) -> None:
    fatal = [name for name in missing if not name.startswith((*may_initialize, *RELEASED_CONSTANTS))]
    extra = [name for name in state if name not in own]
    wrong = [name for name in state if name in own and state[name].shape != own[name].shape]
    no_numbers = [
        name for name in state if name in own and own[name].is_floating_point() and not state[name].is_floating_point()
    ]
    problems = []
    if fatal:
        problems.append(f"weights missing: {len(fatal)}, first {fatal[0]}")
    if extra:
        problems.append(f"weights that are not part of the model: {len(extra)}, first {extra[0]}")
    if wrong:
        name = wrong[0]
        problems.append(
            f"weights of another shape: {len(wrong)}, first {name}: found {tuple(state[name].shape)}, "
            f"expected {tuple(own[name].shape)}"
        )
    if no_numbers:
        name = no_numbers[0]
        problems.append(
            f"weights that are no floating-point numbers: {len(no_numbers)}, first {name}: {state[name].dtype}"
        )
    if problems:
        raise InputError(
            f"{source} does not fit the model: {'; '.join(problems)}. "
            "Check that config.json and the weights come from the same folder, and the flags from the same run."
        )


def read_folder(folder: str | Path, *, vision_tower: str | None = None, conv_type: str | None = None) -> ModelFolder:
    """Read a merged folder, ours or a published one.

    Args:
        vision_tower: where to read the tower when it is not inside; default is what the folder's config says.
        conv_type: template of a published folder, which does not record it (default llava_v1); a folder of ours does.
    Raises:
        InputError: if a file is missing or damaged, or the files do not belong together.
    """
    folder = resolve_folder(str(folder))
    config, tokenizer = read_architecture(folder, vision_tower=vision_tower, conv_type=conv_type)
    state = read_weights(folder)
    if not any(name.startswith(TOWER_PREFIX) for name in state):
        state |= read_tower(locate_tower(vision_tower or config.vision_tower, folder), config)
    return ModelFolder(config, tokenizer, state, str(folder))


def read_architecture(
    folder: Path, *, vision_tower: str | None = None, conv_type: str | None = None
) -> tuple[PixelLMConfig, LlamaTokenizer]:
    """What a merged folder says without its weights; arguments and errors as in ``read_folder``.

    The tokenizer has the codebook in it, and every id that it can give is checked.
    """
    flat = read_object(folder / "config.json")
    tokenizer = load_tokenizer(folder)
    if "vision_config" in flat or flat.get("model_type") == "pixellm":
        config = PixelLMConfig.read(folder)
        codebook = add_codebook(tokenizer, scales=config.image_feature_scale_num, tokens=config.seg_token_num)
        _check_codebook(codebook, config, folder)
    else:
        config = released_config(flat, tokenizer, folder=folder, tower=vision_tower, conv_type=conv_type or "llava_v1")
    _check_vocabulary(tokenizer, config, folder)
    return config, tokenizer


def _check_codebook(codebook: SegCodebook, config: PixelLMConfig, folder: Path) -> None:
    if codebook.ids != config.seg_token_ids:
        raise InputError(
            f"{folder}: its tokenizer gives the codebook ids {codebook.ids}, its config.json {config.seg_token_ids}; "
            "take both files from the same folder"
        )


def _check_vocabulary(tokenizer: LlamaTokenizer, config: PixelLMConfig, folder: Path) -> None:
    """Every id that the tokenizer gives must have a row in the embedding tables, the image marks' too."""
    rows = config.llama["vocab_size"]
    if len(tokenizer) > rows:
        last = tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)
        raise InputError(
            f"tokenizer {folder}: {last} has id {len(tokenizer) - 1} but config.json says vocab_size {rows}; "
            "copy all tokenizer files (added_tokens.json too) and config.json again from their source"
        )


def save_pretrained(
    model: Network,
    tokenizer: LlamaTokenizer,
    folder: str | Path,
    *,
    tokenizer_source: Path | None = None,
    save_vision_tower: bool = False,
) -> None:
    """Write a Hugging Face folder, complete or not at all; it may take the place of one that this wrote earlier.

    Raises:
        InputError: if ``folder`` holds anything else, which would be lost, or cannot be written.
    """
    with output_folder(folder, kind=MERGED_MODEL) as partial:
        write_pretrained(
            model, tokenizer, partial, tokenizer_source=tokenizer_source, save_vision_tower=save_vision_tower
        )


def write_pretrained(
    model: Network,
    tokenizer: LlamaTokenizer,
    folder: Path,
    *,
    tokenizer_source: Path | None = None,
    save_vision_tower: bool = False,
) -> None:
    """Write safetensors, config, tokenizer and processor settings into an existing folder.

    Args:
        tokenizer_source: a folder whose ``tokenizer.model`` is copied along.
        save_vision_tower: store the tower inside, so that the folder stands alone.
    """
    config = model.pixellm_config
    state = {
        name: own_storage(tensor)
        for name, tensor in model.state_dict().items()
        if save_vision_tower or not name.startswith(TOWER_PREFIX)
    }
    save_torch_state_dict(state, folder, metadata={"format": "pt"})
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)  # written readable by their owner alone
    config.save(folder)
    save_tokenizer(tokenizer, folder, source=tokenizer_source)
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "do_center_crop": not config.pad_train_clip_images,
        "do_pad": config.pad_train_clip_images,
        "size": {("longest_edge" if config.pad_train_clip_images else "shortest_edge"): config.image_size},
        "crop_size": {"height": config.image_size, "width": config.image_size},
        "do_normalize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
    }
    write_json(folder / _PREPROCESSOR_FILE, settings)
