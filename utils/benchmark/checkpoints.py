"""How large a checkpoint of the published sizes is, by arithmetic on shapes.

A step holds each trained weight and AdamW's two moments of it in float32, and in training precision what is frozen and
in no base (``utils/training/checkpoints.py``). Descriptions of tensors and of the run come on top, less than 1 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from model.configuration import PRECISIONS
from model.files import write_text
from model.outputs import check_output_file
from model.sizes import PUBLISHED
from model.weights.bases import FRESH_MODULES
from model.weights.released import RELEASED_CONSTANTS
from utils.cli.config import RunConfig
from utils.training.base_weights import COMPUTED
from utils.training.checkpoints import BYTES_PER_TRAINED_PARAMETER, Contents
from utils.training.lora import plain_name, set_trained_as_told, trained_names, wrap_as_told

from .machine import describe_machine
from .published import published_network, published_run

RECIPES: dict[str, tuple[str, ...]] = {
    "as configured": (),
    "`--release_recipe`": ("--release_recipe",),
    "`--no_train_mask_decoder`": ("--no_train_mask_decoder",),
}
_LEGEND = """\
A slim checkpoint is what `train_ds.py` writes: the trained weights and AdamW's two moments of each in float32 (12 bytes
per parameter), and what is frozen and in no base. `--save_frozen` adds every frozen weight in training precision.
Earlier versions let DeepSpeed write: all weights in training precision, trained ones too, beside the 12 bytes. From a
GPU at ZeRO-2, the stage of `configs/ds_zero2.json`, it writes frozen weights twice: among the model's weights, and
copied to the CPU as `frozen_param_fragments`."""


@dataclass(frozen=True)
class Sizes:
    """Of one step; bytes of its tensors.

    Attributes:
        trained: parameters.
        kept: bytes of what is frozen and in no base; they are part of ``slim``.
        slim: what is written by default.
        whole: with ``--save_frozen``.
        earlier: what earlier versions wrote.
        earlier_gpu: the same from a GPU at ZeRO-2 (DeepSpeed 0.19.8, ``DeepSpeedEngine._get_param_fragment_func``).
    """

    trained: int
    kept: int
    slim: int
    whole: int
    earlier: int
    earlier_gpu: int


def benchmark(*, precision: str, output_md: str) -> None:
    """Print a table of the published sizes.

    Args:
        output_md: a file for the table.
    Raises:
        InputError: if the file cannot be written.
    """
    if output_md:
        check_output_file(output_md, flag="--output_md")
    rows = [
        (name, recipe, sizes)
        for name in PUBLISHED
        for recipe, sizes in _sizes_by_recipe(name, f"--precision={precision}").items()
    ]
    report = "\n".join(
        [f"Computed from shapes, not measured, for `--precision {precision}`:", "", table(rows), "", _LEGEND]
    )
    print(report)
    if output_md:
        machine = describe_machine(("torch", "transformers", "peft"))
        write_text(Path(output_md), f"# Bytes of a checkpoint\n\n{machine}\n\n{report}\n")


def _sizes_by_recipe(name: str, *flags: str) -> dict[str, Sizes]:
    run = published_run(name, *flags)
    network = published_network(name, run)
    with torch.device("meta"):
        wrapped, _ = wrap_as_told(network, run)
    found = {}
    for recipe, own in RECIPES.items():
        run = published_run(name, *flags, *own)
        set_trained_as_told(wrapped, run)
        found[recipe] = sizes_of(wrapped, run)
    return found


def sizes_of(network: nn.Module, run: RunConfig) -> Sizes:
    """What a step of a run takes.

    Args:
        network: with LoRA, and ``requires_grad`` set on what is trained; it may lie on the meta device.
    """
    dtype = PRECISIONS[run.precision]
    state, parameters = network.state_dict(), dict(network.named_parameters())
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    num_trained = sum(parameter.numel() for parameter in trained)
    optimizer = BYTES_PER_TRAINED_PARAMETER * num_trained
    slim, whole = (
        Contents.of(network, dict.fromkeys(base, ""), base_place=run.version, precision=run.settled_precision).frozen
        for base in (base_names(network), [])
    )
    kept, frozen = (sum(_bytes(state[name], dtype) for name in names) for names in (slim, whole))
    earlier = optimizer + sum(_bytes(tensor, dtype) for tensor in state.values())
    copied = sum(_bytes(parameter, dtype) for parameter in parameters.values() if not parameter.requires_grad)
    return Sizes(num_trained, kept, optimizer + kept, optimizer + frozen, earlier, earlier + copied)


def base_names(network: nn.Module) -> list[str]:
    """Untrained weights that a LLaVA base or a CLIP tower has, as far as names tell; ``fingerprint`` reads them."""
    trained = trained_names(network)
    own = (*FRESH_MODULES, *RELEASED_CONSTANTS)
    return [
        name
        for name in network.state_dict()
        if name not in trained and not plain_name(name).startswith(own) and not name.endswith(COMPUTED)
    ]


def _bytes(tensor: Tensor, dtype: torch.dtype) -> int:
    return tensor.numel() * dtype.itemsize if tensor.is_floating_point() else tensor.nbytes


def table(rows: Sequence[tuple[str, str, Sizes]]) -> str:
    """One row per model and recipe, in Markdown; a GB is 10^9 bytes."""
    lines = [
        "| Model | Recipe | Trained parameters | Frozen and in no base, MB | Slim, GB | `--save_frozen`, GB "
        "| Earlier versions, GB | Earlier, from a GPU at ZeRO-2, GB |",
        "|---|---|" + "---:|" * 6,
    ]
    for name, recipe, sizes in rows:
        numbers = [f"{size / 1e9:.2f}" for size in (sizes.slim, sizes.whole, sizes.earlier, sizes.earlier_gpu)]
        lines.append(f"| {' | '.join([name, recipe, f'{sizes.trained:,}', f'{sizes.kept / 1e6:.2f}', *numbers])} |")
    return "\n".join(lines)
