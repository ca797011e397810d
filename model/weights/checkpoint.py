"""Merged folders, released and own: read strictly, and reported in words.

Parameter names inside are the released names outside, so this file has no renaming table; it decides what may be
missing, what may be left over, and says both in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlamaTokenizer

from model.configuration import PixelLMConfig, is_published
from model.errors import InputError
from model.files import is_file, read_object
from model.text.tokenizer import add_codebook, load_tokenizer
from model.text.tokens import SegCodebook

from .bases import TOWER_PREFIX, locate_tower, read_tower
from .released import RELEASED_CONSTANTS, released_config
from .tensors import read_weights

# Buffers of older transformers that carry no information.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "embeddings.position_ids")
# The mark of the folders that commands write.
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

    def loading_info(self) -> dict[str, Any]:
        """The same as transformers says it with ``output_loading_info``."""
        return {
            "missing_keys": {*self.initialized, *self.constant},
            "unexpected_keys": set(self.ignored),
            "mismatched_keys": set(),
            "error_msgs": [],
        }


@dataclass(frozen=True)
class ModelDescription:
    """What a merged folder says without its weights.

    Attributes:
        tokenizer: with the codebook in it; None where a folder of ours has none.
        published: the release's layout, which does not say everything about itself.
    """

    config: PixelLMConfig
    tokenizer: LlamaTokenizer | None
    published: bool


def check_fit(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], *, source: str, may_initialize: tuple[str, ...]
) -> LoadReport:
    """Hold weights to the network that they are for, before any of them is placed.

    Args:
        own: the network's parameters and buffers, on the meta device.
        state: tensors under released names.
        source: names the weights in messages.
        may_initialize: prefixes of parameters that may be absent.
    Raises:
        InputError: for any other missing, left-over or wrongly shaped weight.
    """
    ignored = [name for name in state if name.endswith(IGNORED_SUFFIXES)]
    state = {name: tensor for name, tensor in state.items() if name not in ignored}
    missing = [name for name in own if name not in state]
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
    constant = [name for name in missing if name in RELEASED_CONSTANTS]
    initialized = [name for name in missing if name not in RELEASED_CONSTANTS]
    return LoadReport(source, len(state), initialized, constant, ignored)


def read_weights_of_folder(
    folder: Path, config: PixelLMConfig, *, vision_tower: str | None = None
) -> dict[str, Tensor]:
    """All tensors of a merged folder under released names, the tower's too; they lie in the files until they are used.

    Args:
        vision_tower: as of ``read_model``.
    Raises:
        InputError: if a file is missing or damaged.
    """
    state = read_weights(folder)
    if not _has_tower(state):
        state |= read_tower(locate_tower(vision_tower or config.vision_tower, folder), config)
    return state


def holds_tower(folder: Path) -> bool:
    """Whether the tower of a merged folder is inside.

    Raises:
        InputError: if a file of weights is missing or damaged.
    """
    return _has_tower(read_weights(folder))


def _has_tower(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(TOWER_PREFIX) for name in state)


def read_model(folder: Path, *, vision_tower: str | None = None, conv_type: str | None = None) -> ModelDescription:
    """What a merged folder, ours or a published one, says without its weights; every id of its tokenizer is checked.

    Args:
        vision_tower: where the tower is when it is not inside; default is what the folder's config says.
        conv_type: template of a published folder, which does not record it (default llava_v1); a folder of ours does.
    Raises:
        InputError: if a file is missing or damaged, or the files do not belong together.
    """
    flat = read_object(folder / "config.json")
    published = is_published(flat)
    if not published and not any(is_file(folder / name) for name in ("tokenizer.model", "tokenizer.json")):
        return ModelDescription(PixelLMConfig.from_pretrained(folder), None, published)
    tokenizer = load_tokenizer(folder)
    if published:
        config = released_config(flat, tokenizer, folder=folder, tower=vision_tower, conv_type=conv_type or "llava_v1")
    else:
        config = PixelLMConfig.from_pretrained(folder)
        codebook = add_codebook(tokenizer, scales=config.image_feature_scale_num, tokens=config.seg_token_num)
        _check_codebook(codebook, config, folder)
    _check_vocabulary(tokenizer, config, folder)
    return ModelDescription(config, tokenizer, published)


def _check_codebook(codebook: SegCodebook, config: PixelLMConfig, folder: Path) -> None:
    if codebook.ids != config.seg_token_ids:
        raise InputError(
            f"{folder}: its tokenizer gives the codebook ids {codebook.ids}, its config.json {config.seg_token_ids}; "
            "take both files from the same folder"
        )


def _check_vocabulary(tokenizer: LlamaTokenizer, config: PixelLMConfig, folder: Path) -> None:
    """Every id that the tokenizer gives must have a row in the embedding tables, the image marks' too."""
    rows = config.text_config.vocab_size
    if len(tokenizer) > rows:
        last = tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)
        raise InputError(
            f"tokenizer {folder}: {last} has id {len(tokenizer) - 1} but config.json says vocab_size {rows}; "
            "copy all tokenizer files (added_tokens.json too) and config.json again from their source"
        )
