"""What a checkpoint need not hold: weights that are, bit for bit, those of the folder the run started from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from model.configuration import PRECISIONS, PixelLMConfig
from model.errors import InputError
from model.hub import resolve_folder
from model.weights.bases import read_base, read_tower
from model.weights.checkpoint import read_weights_of_folder
from model.weights.quantization import quantized_weights
from utils.cli.config import RunConfig

from .lora import plain_name, trained_names
from .parts import FROZEN
from .stored import StoredState, WeightRecord

# Computed from the tower's table rather than copied: another version of torch may round it otherwise.
COMPUTED = "position_embedding.weight"


def read_start(run: RunConfig, config: PixelLMConfig, folder: Path) -> dict[str, Tensor]:
    """The weights that a run starts from, the tower's too, under released names; they lie in the files.

    Args:
        folder: of ``--init_from`` or ``--version``.
    Raises:
        InputError: if a folder is missing or damaged.
    """
    if run.init_from:
        return read_weights_of_folder(folder, config, vision_tower=run.vision_tower)
    with torch.random.fork_rng(devices=[]):  # rows for added tokens are drawn; they are trained, so not used here
        state, _ = read_base(folder, config, keep_projector=run.projector_init == "llava")
    return state | read_tower(resolve_folder(run.vision_tower, flag="--vision-tower"), config)


def fingerprint(network: nn.Module, start: dict[str, Tensor], *, dtype: torch.dtype) -> dict[str, str]:
    """The untrained weights and buffers that are equal to the base's, by the names of the network.

    Quantized weights are left to the base, too: each start makes them anew of the base's, and a merge takes these.

    Args:
        network: before ZeRO divides it, with ``requires_grad`` set.
        start: as ``read_start`` gives it.
        dtype: of training, to which the base was cast.
    Returns:
        name -> fingerprint of the base's tensor as it lies in its file.
    """
    trained, quantized = trained_names(network), quantized_weights(network)
    found = {}
    for name, tensor in network.state_dict().items():
        own = start.get(plain_name(name))
        if name in trained or own is None or name.endswith(COMPUTED):
            continue
        same_shape = own.shape == tensor.shape
        if name in quantized or (same_shape and torch.equal(_cast(own, dtype), tensor.detach().cpu())):
            found[name] = own
    return dict(zip(found, _digests(found.values()), strict=True))


def check_base(found: dict[str, str], expected: dict[str, str], *, step: Path, base: str) -> None:
    """Hold the base of this start to the one that a checkpoint relies on.

    Args:
        found, expected: as ``fingerprint`` gives them.
        base: what the user named it, for the message.
    Raises:
        InputError: if a weight is missing or another one.
    """
    differ = [name for name, digest in expected.items() if found.get(name) != digest]
    if differ:
        raise InputError(
            f"{base} is not what {step} was trained from: {len(differ)} of {len(expected)} weights differ, first "
            f"{plain_name(differ[0])}; give the folders that the run started from"
        )


def still_of_base(base: dict[str, str], network: nn.Module, stored: StoredState) -> dict[str, str]:
    """The part of ``base`` that is still equal to the base once a checkpoint with weights of its own is loaded.

    A checkpoint of ``--save_frozen`` or of DeepSpeed has its own frozen weights. They may be of another base than this
    start's, or were rounded to another precision; then they have to be saved again.

    Args:
        base: as ``fingerprint`` gives it.
        network: that it was taken of.
    """
    state = network.state_dict()

    def is_same(name: str) -> bool:
        own, tensor = stored.read(FROZEN, name), state[name].detach().cpu()
        return own.shape == tensor.shape and torch.equal(own.to(tensor.dtype), tensor)

    return {name: digest for name, digest in base.items() if name not in stored.weights["frozen"] or is_same(name)}


def take_from_base(record: WeightRecord, start: dict[str, Tensor], *, step: Path, base: str) -> dict[str, Tensor]:
    """The weights that a step leaves to its base, cast as training cast them, by the names of the network.

    Args:
        start: as ``read_start`` gives it.
        step, base: for the message.
    Raises:
        InputError: if a weight is missing or another one.
    """
    names = {name: plain_name(name) for name in record["base"]}
    own = {name: start[plain] for name, plain in names.items() if plain in start}
    check_base(dict(zip(own, _digests(own.values()), strict=True)), record["base"], step=step, base=base)
    return {name: _cast(tensor, PRECISIONS[record["precision"]]) for name, tensor in own.items()}


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _digests(tensors: Iterable[Tensor]) -> list[str]:
    with ThreadPoolExecutor() as pool:  # hashing needs no lock of Python's
        return list(pool.map(_digest, tensors))


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
