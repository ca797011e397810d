"""What a 4-bit base under LoRA costs and saves: the same updates on 16 and on 4 bits, and a merge of the latter."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import torch

from model.configuration import PRECISIONS
from model.files import write_text
from model.outputs import check_output_file
from model.sizes import PUBLISHED
from model.weights.quantization import bytes_of_scales, check_quantization, nf4
from utils.cli.config import MergeConfig, RunConfig
from utils.data.paths import check_data_kept
from utils.training.deepspeed_config import deepspeed_settings
from utils.training.lora import wrap_as_told
from utils.training.memory import MemoryNeed
from utils.training.merge import merge
from utils.training.start import build_for_training

from .machine import describe_machine
from .published import published_network, published_run
from .quantization import memory_of
from .training_runs import losses_of, told_flags

WINDOWS = 4
_LEGEND = """\
Both runs saw the same batches. Losses are means over a quarter of the updates. Blocks are those of the language model,
without LoRA; with 4 bits, their memory includes the scales. The merged model has the 16-bit base; its distance to the
4-bit model that was trained is the norm of the difference of logits over the norm of the logits, likewise of masks, for
one fixed photo and conversation."""


@dataclass(frozen=True)
class Measured:
    """A run.

    Attributes:
        bits: 16 stands for all bits of ``--precision``.
        blocks: bytes of the language model's blocks.
        losses: total loss of each update.
    """

    bits: int
    blocks: int
    losses: list[float]

    @property
    def means(self) -> list[float]:
        """Of each quarter of the updates."""
        size = len(self.losses) / WINDOWS
        return [fmean(self.losses[round(size * part) : round(size * (part + 1))]) for part in range(WINDOWS)]


def benchmark(run: RunConfig, given: Collection[str], *, updates: int, output_md: str) -> None:
    """Train twice and merge once, and print the table.

    Args:
        run: flags of training; ``given`` names those that were given.
        output_md: a file for the table.
    Raises:
        InputError: if bitsandbytes is missing, a run stops, with its own last words, or the file cannot be written.
    """
    check_quantization(nf4(PRECISIONS[run.precision]))
    if output_md:
        check_output_file(output_md, flag="--output_md")
        check_data_kept(output_md, [run.dataset_dir], flag="--output_md")
    with tempfile.TemporaryDirectory() as folder:
        found = [measure(run, given, bits, updates=updates, folder=Path(folder)) for bits in (16, 4)]
        trained = Path(folder, "4-bits")
        distance = merge(MergeConfig(weight=str(trained / "ckpt_model"), save_path=str(trained / "hf_model")), given=())
    told = ", ".join(f"{name} {value:.1e}" for name, value in distance.items())
    parts = [table(found), "", f"Distance of the merged model: {told}.", "", _LEGEND, "", *_computed()]
    report = "\n".join(parts)
    print(report)
    if output_md:
        images = run.batch_size * run.grad_accumulation_steps
        work = f"{updates} updates of {images} images, --precision {run.precision}."
        machine = describe_machine(("torch", "transformers", "peft", "deepspeed", "bitsandbytes"))
        write_text(Path(output_md), f"# Training on a 4-bit language model\n\n{machine} {work}\n\n{report}\n")


def measure(run: RunConfig, given: Collection[str], bits: int, *, updates: int, folder: Path) -> Measured:
    """One run with one checkpoint.

    Args:
        folder: for the run.
    Raises:
        InputError: if it stops.
    """
    name = f"{bits}-bits"
    how = {
        "load_in_4bit": bits == 4, "steps_per_epoch": updates, "epochs": 1, "no_eval": True, "epoch_mode": "rates",
        "overwrite_run": False, "resume": "", "auto_resume": False, "log_base_dir": str(folder), "exp_name": name,
    }  # fmt: skip
    losses = losses_of(told_flags(run, given) | how, label=name)
    return Measured(bits, bytes_of_blocks(replace(run, load_in_4bit=bits == 4)), losses)


def bytes_of_blocks(run: RunConfig) -> int:
    """Of the language model's blocks as they are trained upon, LoRA apart."""
    layers = build_for_training(run).network.model.layers
    weights = sum(parameter.nbytes for name, parameter in layers.named_parameters() if "lora_" not in name)
    return weights + sum(map(bytes_of_scales, layers.modules()))


def table(found: Sequence[Measured]) -> str:
    """One row for each run, and one for how far the second is from the first, in Markdown."""
    updates = len(found[0].losses)
    ends = [round(updates / WINDOWS * part) for part in range(WINDOWS + 1)]
    spans = " | ".join(f"loss of updates {first + 1} to {last}" for first, last in pairwise(ends))
    lines = [f"| Bits | Blocks, MiB | {spans} |", "|---|" + "---:|" * (WINDOWS + 1)]
    for row in found:
        means = " | ".join(f"{mean:.4f}" for mean in row.means)
        lines.append(f"| {row.bits} | {row.blocks / 2**20:.2f} | {means} |")
    exact, rounded = found
    differences = [f"{other / own - 1:+.2%}" for own, other in zip(exact.means, rounded.means, strict=True)]
    lines.append(f"| difference | {rounded.blocks / exact.blocks - 1:+.0%} | {' | '.join(differences)} |")
    return "\n".join(lines)


def _computed() -> list[str]:
    """Memory of the published sizes, from their shapes: nothing of that size was loaded."""
    lines = [
        "Computed from shapes, not measured: what training keeps before activations on one GPU, in bf16, with",
        "`configs/pixellm_7b.json`, `configs/pixellm_13b.json` and `configs/ds_zero2.json`.",
        "",
        "| Model | 16 bits, GiB | 4 bits, GiB |",
        "|---|---:|---:|",
    ]
    for name in PUBLISHED:
        run = published_run(name, "--precision=bf16")
        network = published_network(name, run)
        exact, rounded = (memory_of(network, bits=bits)["blocks"] for bits in (16, 4))
        with torch.device("meta"):
            wrapped, _ = wrap_as_told(network, run)
        need = MemoryNeed.of(wrapped.bfloat16(), deepspeed_settings(run), world_size=1, on_gpu=True)
        total = sum(need.device.values())
        lines.append(f"| {name} | {total / 2**30:.1f} | {(total - exact + rounded) / 2**30:.1f} |")
    return lines
