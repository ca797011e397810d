"""A published folder, or an older one of ours, written anew so that transformers' Auto classes read it."""

from __future__ import annotations

from pathlib import Path

import torch

from .configuration import PixelLMConfig
from .hub import portable_path, resolve_folder
from .outputs import check_output_folder, output_folder
from .PixelLM import PixelLMForCausalLM
from .weights.bases import TOWER_PREFIX, tower_beside
from .weights.card import keep_own_card
from .weights.checkpoint import MERGED_MODEL
from .weights.tensors import read_weights


def convert(
    name: str,
    folder: Path,
    *,
    vision_tower: str | None = None,
    conv_type: str | None = None,
    save_vision_tower: bool = False,
) -> None:
    """Read a merged model and write it in today's layout, in the precision that it has; all or nothing.

    Args:
        name: folder or hub id.
        folder: to be made; of those that exist, an empty one, or a merged model of ours, which is replaced.
        vision_tower, conv_type: as of ``PixelLMForCausalLM.from_pretrained``.
        save_vision_tower: store the tower inside.
    Raises:
        InputError: if the model cannot be read, or ``folder`` may not be written.
    """
    source = resolve_folder(name, flag="--version")
    size = sum(file.stat().st_size for suffix in ("safetensors", "bin") for file in source.glob(f"*.{suffix}"))
    inputs = [source, *([vision_tower] if vision_tower else [])]
    check_output_folder(folder, kind=MERGED_MODEL, flag="--out", inputs=inputs, size=size)
    model = PixelLMForCausalLM.from_pretrained(source, vision_tower=vision_tower, conv_type=conv_type)
    model.require_processor()
    tower = vision_tower or model.config.vision_tower
    model.config.vision_tower = portable_path(str(tower_beside(tower, source) or tower))
    with output_folder(folder, kind=MERGED_MODEL) as partial:
        keep_own_card(folder, partial)
        model.save_pretrained(partial, save_vision_tower=save_vision_tower)
        _check_written(partial, model)


def _check_written(folder: Path, model: PixelLMForCausalLM) -> None:
    """What was written reads back bit for bit."""
    own, found = model.state_dict(), read_weights(folder)
    missing = {name for name in own if name not in found and not name.startswith(TOWER_PREFIX)}
    differs = missing | {name for name, tensor in found.items() if not torch.equal(tensor, own[name].cpu())}
    if differs or PixelLMConfig.from_pretrained(folder) != model.config:
        raise RuntimeError(f"{folder} does not read back as it was written: {sorted(differs)[:3] or 'config.json'}")
