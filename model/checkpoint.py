"""Weights on disk <-> the network: LLaVA bases, CLIP towers, released and own merged folders.

Parameter names inside are the released names outside, so this file has no renaming table; it decides what may be
missing, what may be left over, and says both in words.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaTokenizer
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from .configuration import PixelLMConfig, vision_keys
from .errors import InputError
from .files import atomic_folder, read_object, resolve_folder
from .PixelLM import PixelLMForCausalLM
from .projector import widen_linear_projector
from .tokens import SegCodebook, add_codebook, load_tokenizer, save_tokenizer
from .vision_tower import resize_position_table

logger = logging.getLogger(__name__)

TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model."
# Buffers of older transformers that carry no information.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "embeddings.position_ids")
# Constants of the release that are parameters here; see codebook.TokenFusion and pixel_decoder.MaskDecoder.
RELEASED_CONSTANTS = ("model.token_fusion.weights", "model.mask_decoder.scale_weights")
_LLAVA_PROJECTOR = "model.mm_projector"
_PREPROCESSOR_FILE = "preprocessor_config.json"
# All that a model folder of ours may hold.
_MODEL_FILES = (
    "config.json", _PREPROCESSOR_FILE, "model*.safetensors", "model.safetensors.index.json", "tokenizer.model",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


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
        text = f"{self.source}: {self.loaded} tensors loaded"
        if self.initialized:
            groups = sorted({".".join(name.split(".")[:2]) for name in self.initialized})
            text += f"; freshly initialized: {', '.join(groups)}"
        if self.constant:
            text += f"; at the released constants: {', '.join(self.constant)}"
        if self.ignored:
            text += f"; not used: {len(self.ignored)} (e.g. {self.ignored[0]})"
        return text


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of one file, or of all shards of a folder. Files are never allowed to run code.

    Args:
        path: a .safetensors or .bin file, or a folder with one file, or shards and their index.
    """
    files = [path] if path.is_file() else _weight_files(path)
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                state |= load_file(file)
            else:
                state |= torch.load(file, map_location="cpu", weights_only=True)
        except (SafetensorError, RuntimeError, EOFError, TypeError, ValueError, OSError, KeyError) as err:
            raise _unreadable(file, err) from err
        except Exception as err:  # pickle.UnpicklingError and its relatives: not tensors, or not only tensors
            raise _unreadable(file, err) from err
    return state


def _unreadable(file: Path, err: Exception) -> InputError:
    reason = str(err).splitlines()[0] if str(err) else type(err).__name__
    return InputError(f"weights {file} cannot be read ({reason}); expected tensors only. Copy the file again.")


def _weight_files(folder: Path) -> list[Path]:
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            names = sorted(set(read_object(index)["weight_map"].values()))
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise InputError(f"{folder} lacks {len(missing)} of {len(names)} shards, first {missing[0]}; copy them")
            return [folder / name for name in names]
        if (folder / f"{stem}.{suffix}").is_file():
            return [folder / f"{stem}.{suffix}"]
    raise InputError(
        f"no weights in {folder}: expected model.safetensors or pytorch_model.bin (or their shards with an index)"
    )


def build_model(
    config: PixelLMConfig, state: dict[str, Tensor], *, dtype: torch.dtype, source: str, may_initialize: tuple[str, ...]
) -> tuple[PixelLMForCausalLM, LoadReport]:
    """Make the network from weights, without ever holding a second copy.

    Args:
        state: tensors under released names.
        may_initialize: prefixes of parameters that may be absent and are then freshly initialized.
    Raises:
        InputError: for any other missing, left-over or wrongly shaped weight.
    """
    with torch.device("meta"):
        model = PixelLMForCausalLM(config)
    own = model.state_dict()
    ignored = [name for name in state if name.endswith(_IGNORED_SUFFIXES)]
    state = {name: tensor for name, tensor in state.items() if name not in ignored}
    missing = [name for name in own if name not in state]
    _check_fit(own, state, missing, source=source, may_initialize=may_initialize)
    model.load_state_dict({name: t.to(dtype) for name, t in state.items()}, strict=False, assign=True)
    # Its tables are not in the state dict, so they must be made on a real device.
    model.model.rotary_emb = LlamaRotaryEmbedding(model.model.config)
    for module in model.modules():
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)) or any(
            buffer.is_meta for buffer in module.buffers(recurse=False)
        ):
            module.to_empty(device="cpu", recurse=False)
            module.reset_parameters()
            module.to(dtype)
    constant = [name for name in missing if name in RELEASED_CONSTANTS]
    initialized = [name for name in missing if name not in RELEASED_CONSTANTS]
    return model.eval(), LoadReport(source, len(state), initialized, constant, ignored)


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
    problems = []
    if fatal:
        problems.append(f"{len(fatal)} weights are missing, first {fatal[0]}")
    if extra:
        problems.append(f"{len(extra)} weights are not part of the model, first {extra[0]}")
    if wrong:
        name = wrong[0]
        problems.append(
            f"{len(wrong)} weights have another shape, first {name}: found {tuple(state[name].shape)}, "
            f"expected {tuple(own[name].shape)}"
        )
    if problems:
        raise InputError(
            f"{source} does not fit the model: {'; '.join(problems)}. "
            "Check that config.json and the weights come from the same folder, and the flags from the same run."
        )


def read_tower(folder: Path, config: PixelLMConfig) -> dict[str, Tensor]:
    """A CLIP folder's vision weights under released names, its position table resized to the input size."""
    state = read_weights(folder)
    vision = {name.removeprefix("vision_model."): t for name, t in state.items() if name.startswith("vision_model.")}
    if not vision:  # transformers 5 saves a bare CLIPVisionModel without the prefix
        vision = state
    key = "embeddings.position_embedding.weight"
    if key not in vision:
        raise InputError(f"--vision-tower {folder}: found no {key}; expected a CLIP vision model")
    vision[key] = resize_position_table(vision[key], grid=config.patch_grid, rule=config.vision_position_resize)
    return {TOWER_PREFIX + name: tensor for name, tensor in vision.items()}


def read_base(
    folder: Path, config: PixelLMConfig, *, keep_projector: bool = True
) -> tuple[dict[str, Tensor], list[str]]:
    """A LLaVA base: its weights with rows for the added tokens, and the names that PixelLM has no use for.

    New rows of the embedding tables start at the mean of the old rows plus noise.

    Args:
        keep_projector: a linear ``mm_projector`` of the right width becomes an equal two-layer one, so that the
            language model goes on seeing images as LLaVA taught it; the release starts its projector afresh.
    """
    state = read_weights(folder)
    refuse_delta(folder, state)
    unused = [name for name in state if name.startswith("model.vision_tower.")]
    weight, bias = (state.get(f"{_LLAVA_PROJECTOR}.{part}") for part in ("weight", "bias"))
    if weight is not None or not keep_projector:
        unused += [name for name in state if name.startswith(f"{_LLAVA_PROJECTOR}.")]
    width, hidden = config.llama["hidden_size"], config.mm_projector_hidden_dim * config.llama["hidden_size"]
    if (
        keep_projector
        and bias is not None
        and weight.shape == (width, config.vision["hidden_size"])
        and hidden >= 2 * width
    ):
        widened = widen_linear_projector(weight, bias, hidden_width=hidden)
        state |= {f"{_LLAVA_PROJECTOR}.{name}": tensor for name, tensor in widened.items()}
    for name in unused:
        del state[name]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name not in state:
            raise InputError(f"--version {folder}: no {name} in its weights; expected a LLaVA or LLaMA folder")
        state[name] = _grow_rows(state[name], config.llama["vocab_size"])
    return state, unused


def _grow_rows(table: Tensor, rows: int) -> Tensor:
    if len(table) >= rows:
        return table  # a padded vocabulary keeps its rows; the shape check speaks if the config disagrees
    mean = table.float().mean(0, keepdim=True)
    noise = torch.randn(rows - len(table), table.shape[1]) * 0.02
    return torch.cat([table, (mean + noise).to(table.dtype)])


def refuse_delta(folder: Path, state: dict[str, Tensor]) -> None:
    """Delta weights (target minus LLaMA) load without an error and answer with noise; refuse them."""
    norm = state.get("model.norm.weight")
    is_delta = norm is not None and float(norm.float().abs().mean()) < 0.05
    if is_delta or "delta" in folder.name.lower():
        raise InputError(
            f"--version {folder} holds delta weights, not a model. Add them to the original LLaMA first: "
            f"python -m llava.model.apply_delta --base PATH_TO_LLAMA --target PATH_TO_LLaVA --delta {folder}"
        )


def load_pretrained(folder: str | Path, **options: Any) -> PixelLMForCausalLM:
    """Read a merged folder and log what was loaded; see ``load_with_report``."""
    model, _, report = load_with_report(folder, **options)
    logger.info("%s", report.describe())
    return model


def load_with_report(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    vision_tower: str | None = None,
    conv_type: str | None = None,
) -> tuple[PixelLMForCausalLM, LlamaTokenizer, LoadReport]:
    """Read a merged folder, ours or a published one, strictly.

    Args:
        vision_tower: where to read the tower when it is not inside; default is what the folder's config says.
        conv_type: template of a published folder, which does not record it (default llava_v1); a folder of ours does.
    """
    folder = resolve_folder(str(folder), flag="--version")
    config, tokenizer = read_architecture(folder, vision_tower=vision_tower, conv_type=conv_type)
    state = read_weights(folder)
    if not any(name.startswith(TOWER_PREFIX) for name in state):
        state |= read_tower(locate_tower(vision_tower or config.vision_tower, folder), config)
    model, report = build_model(config, state, dtype=dtype, source=str(folder), may_initialize=())
    return model, tokenizer, report


def read_architecture(
    folder: Path, *, vision_tower: str | None = None, conv_type: str | None = None
) -> tuple[PixelLMConfig, LlamaTokenizer]:
    """What a merged folder says without its weights; arguments as in ``load_with_report``.

    The tokenizer has the codebook in it, and every id that it can give is checked.
    """
    flat = read_object(folder / "config.json")
    tokenizer = load_tokenizer(folder)
    if "vision_config" in flat:
        config = PixelLMConfig.from_dict(flat)
        codebook = add_codebook(tokenizer, scales=config.image_feature_scale_num, tokens=config.seg_token_num)
        _check_codebook(codebook, config, folder)
    else:
        tower = vision_tower or flat.get("mm_vision_tower") or flat.get("vision_tower")
        config = _released_config(flat, tokenizer, folder=folder, tower=tower, conv_type=conv_type or "llava_v1")
    _check_vocabulary(tokenizer, config, folder)
    return config, tokenizer


def locate_tower(name: str | None, folder: Path) -> Path:
    """The tower that a merged folder speaks of: beside it or one folder up, where it says, or on the hub."""
    if not name:
        raise InputError(f"{folder} has no vision tower and does not say where it is; give --vision-tower")
    try:
        return tower_beside(name, folder) or resolve_folder(name, flag="--vision-tower")
    except InputError as err:
        raise InputError(f"{folder} was made with another folder for its tower: {err}") from err


def tower_beside(name: str, folder: Path) -> Path | None:
    """The tower of that name next to a merged folder, or one folder up."""
    places = [parent / name for parent in list(folder.absolute().parents)[:2]]
    return next((place for place in places if place.is_dir()), None)


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


def _released_config(
    flat: dict[str, Any], tokenizer: LlamaTokenizer, *, folder: Path, tower: str | None, conv_type: str
) -> PixelLMConfig:
    vision = vision_keys(read_object(locate_tower(tower, folder) / "config.json"))
    added = [text for text in tokenizer.get_added_vocab() if text.startswith("[SEG")]
    scales = flat.get("image_feature_scale_num", 1)
    if not added or len(added) % scales:
        raise InputError(
            f"{folder}: its tokenizer has {len(added)} [SEG] tokens for {scales} scales; "
            "copy added_tokens.json of the published model"
        )
    codebook = add_codebook(tokenizer, scales=scales, tokens=len(added) // scales)
    return PixelLMConfig.from_released(
        flat, vision=vision, vision_tower=tower, seg_token_ids=codebook.ids, conv_type=conv_type
    )


def save_pretrained(
    model: PixelLMForCausalLM,
    tokenizer: LlamaTokenizer,
    folder: str | Path,
    *,
    tokenizer_source: Path | None = None,
    save_vision_tower: bool = False,
) -> None:
    """Write a Hugging Face folder, complete or not at all; it may take the place of another model folder of ours.

    Raises:
        InputError: if ``folder`` is anything else, which would be lost.
    """
    check_model_target(Path(folder))
    with atomic_folder(Path(folder)) as partial:
        write_pretrained(
            model, tokenizer, partial, tokenizer_source=tokenizer_source, save_vision_tower=save_vision_tower
        )


def write_pretrained(
    model: PixelLMForCausalLM,
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
        name: _own_storage(tensor)
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
    (folder / _PREPROCESSOR_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def check_model_target(folder: Path, *, flag: str = "", inputs: Sequence[Path] = ()) -> None:
    """Refuse a place for a model where something else would be lost: only another model folder of ours is replaced.

    Args:
        flag: names the place in messages.
        inputs: files and folders that are still needed, such as the weights that are merged.
    Raises:
        InputError: if ``folder`` is a file, holds anything that is not a model's, or contains an input or the
            working directory.
    """
    place = f"{flag} {folder}".strip()
    advice = "Nothing was written; give a new folder, or one that holds nothing but a merged model"
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        raise InputError(f"{place} is not a folder. {advice}")
    needed = [(Path.cwd(), "the working directory"), *((path, str(path)) for path in inputs if path.exists())]
    for path, what in needed:
        if path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{place} is or contains {what}, which would be lost. {advice}")
    if folder.is_dir():
        foreign = sorted(path.name for path in folder.iterdir() if not _is_model_file(path))
        if foreign:
            raise InputError(f"{place} exists and holds {foreign[0]}, which is not part of a merged model. {advice}")
        if any(folder.iterdir()) and not _is_model_folder(folder):
            raise InputError(f"{place} exists and is not a model folder of this code. {advice}")


def _is_model_folder(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and read_object(config).get("model_type") == "pixellm"


def _is_model_file(path: Path) -> bool:
    return path.is_file() and any(path.match(pattern) for pattern in _MODEL_FILES)


def _own_storage(tensor: Tensor) -> Tensor:
    """safetensors refuses slices of a larger storage, which is what ``zero_to_fp32.py`` writes."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
