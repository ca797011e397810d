"""What an 8-bit and a 4-bit language model save, and how they change answers and masks.

Memory is that of weights and buffers, by part of the model: ``blocks`` (of the language model, the only part that is
quantized), ``tables`` (its embedding table and head), ``tower``, and ``masks`` (projectors, fusion and decoder).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.files import write_text
from model.outputs import check_output_file
from model.PixelLM import PixelLMForCausalLM
from model.predictor import PixelLMPredictor
from model.sizes import PUBLISHED
from model.weights.quantization import bytes_of_scales, check_quantization, quantization
from utils.data.names import split_names
from utils.data.paths import check_data_kept
from utils.data.registry import build_val_source
from utils.data.sources import Source
from utils.evaluation.asking import ask_all
from utils.evaluation.matching import match_masks
from utils.evaluation.records import QuestionRecord
from utils.evaluation.scores import ScoringOptions, score_records
from utils.masks.rle import decode_rles

from .machine import describe_machine
from .published import published_network, published_run

BITS = (16, 8, 4)
PARTS: tuple[str, ...] = ("blocks", "tables", "tower", "masks")
_LEGEND = """\
Blocks are those of the language model, the only part that is quantized; tables are its embedding table and head; masks
are projectors, token fusion and decoder. Their memory includes the scales of quantized weights, which transformers'
`get_memory_footprint` (footprint) leaves out. IoU compares masks with those of 16 bits, matched one to one, and a mask
without partner counts as 0. Seconds include reading the photo and its true masks."""
_MIB = 2**20


@dataclass(frozen=True)
class Measurement:
    """A model with so many bits per weight of its blocks.

    Attributes:
        footprint: bytes that transformers' ``get_memory_footprint`` counts, scales left out.
        memory: bytes by part, scales included.
        giou: of the validation questions, as ``scripts/evaluate.py`` counts it.
        same_masks: mean IoU with the masks of 16 bits, matched one to one; a mask without partner counts as 0.
        same_answers: share of questions that are answered with the words of 16 bits.
        seconds: per question, with reading the photo and its true masks.
    """

    bits: int
    footprint: int
    memory: dict[str, int]
    giou: float
    same_masks: float
    same_answers: float
    seconds: float


def benchmark(
    *,
    version: str,
    vision_tower: str,
    conv_type: str,
    precision: str,
    dataset_dir: str,
    val_dataset: str,
    limit: int,
    max_new_tokens: int,
    output_md: str,
) -> None:
    """Print the tables of a model folder, and of the published sizes.

    Args:
        limit: photos per set; 0 takes all.
        output_md: a file for the tables.
    Raises:
        InputError: if bitsandbytes, model or data are missing, or the file cannot be written.
    """
    check_quantization(quantization(4, dtype=torch.bfloat16))
    if output_md:
        check_output_file(output_md, flag="--output_md")
        check_data_kept(output_md, [dataset_dir], flag="--output_md")
    sources = [build_val_source(dataset_dir, name) for name in split_names(val_dataset)]
    base: list[QuestionRecord] = []
    found: list[Measurement] = []
    for bits in BITS:
        predictor = PixelLMPredictor.from_pretrained(
            version, precision=precision, bits=bits, vision_tower=vision_tower or None, conv_type=conv_type
        )
        footprint, memory = int(predictor.model.get_memory_footprint()), memory_of(predictor.model)
        records, seconds = _ask(predictor, sources, limit=limit, max_new_tokens=max_new_tokens)
        base = base or records
        found.append(Measurement(bits, footprint, memory, _giou(records), *agreement(base, records), seconds))
    questions = f"{len(base)} questions of {val_dataset}" + (f", {limit} photos each" if limit else "")
    report = "\n".join([f"Measured with {precision}, {questions}:", "", table(found), "", _LEGEND, "", *_computed()])
    print(report)
    if output_md:
        machine = describe_machine(("torch", "transformers", "bitsandbytes"))
        write_text(Path(output_md), f"# Language models of 16, 8 and 4 bits\n\n{machine}\n\n{report}\n")


def _ask(
    predictor: PixelLMPredictor, sources: Sequence[Source], *, limit: int, max_new_tokens: int
) -> tuple[list[QuestionRecord], float]:
    """Every question's record, and seconds per question; one photo before goes uncounted."""
    ask_all(predictor, sources[0], limit=1, max_new_tokens=max_new_tokens)
    started = time.perf_counter()
    records = [
        record
        for source in sources
        for record in ask_all(predictor, source, limit=limit, max_new_tokens=max_new_tokens)
    ]
    return records, (time.perf_counter() - started) / len(records)


def _giou(records: Sequence[QuestionRecord]) -> float:
    giou = score_records(records, "matched", options=ScoringOptions())[0]["all"]["giou"]
    return giou if isinstance(giou, float) else float("nan")


def agreement(base: Sequence[QuestionRecord], other: Sequence[QuestionRecord]) -> tuple[float, float]:
    """Mean IoU of the masks of two runs over the same questions (nan without masks), and the share of equal answers."""
    ious: list[float] = []
    for mine, theirs in zip(base, other, strict=True):
        codes = [*mine.predictions, *theirs.predictions]
        if codes:
            height, width = codes[0]["size"]
            first, second = (decode_rles(record.predictions, hw=(height, width)) for record in (mine, theirs))
            ious += match_masks(second, first).iou.tolist()
    same = [mine.answer == theirs.answer for mine, theirs in zip(base, other, strict=True)]
    return float(np.mean(ious)) if ious else float("nan"), float(np.mean(same))


def memory_of(network: PixelLMForCausalLM, *, bits: int = 16) -> dict[str, int]:
    """Bytes of weights and buffers by part, with the scales of quantized weights.

    Args:
        bits: count the blocks' layers of a 16-bit network as if they were quantized; it may lie on the meta device.
    """
    memory = dict.fromkeys(PARTS, 0)
    for name, module in network.named_modules():
        part = part_of(name)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            is_weight = isinstance(module, nn.Linear) and tensor is module.weight and "lora_" not in name
            counted = bits if part == "blocks" and is_weight else 16
            memory[part] += tensor.nbytes if counted == 16 else _quantized(tensor, counted)
        memory[part] += bytes_of_scales(module)
    return memory


def part_of(name: str) -> str:
    """Where a module of this name belongs."""
    if name.startswith("model.layers."):
        return "blocks"
    if name.startswith(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")):
        return "tables"
    return "tower" if name.startswith("model.vision_tower") else "masks"


def _quantized(weight: Tensor, bits: int) -> int:
    """Bytes of a weight in LLM.int8(), or in NF4 with double quantization, scales included."""
    if bits == 8:
        return weight.numel() + 4 * len(weight)  # one float32 for each output
    groups = -(-weight.numel() // 64)
    tables = 4 * (16 + 256)  # the values that 4 and 8 bits stand for
    return -(-weight.numel() // 2) + groups + 4 * -(-groups // 256) + tables


def table(measurements: Sequence[Measurement]) -> str:
    """One row per number of bits, in Markdown."""
    lines = [
        "| Bits | Footprint, MiB | " + " | ".join(f"{part}, MiB" for part in PARTS)
        + " | gIoU | IoU with 16 bits | Same answer | Seconds per question |",
        "|---|" + "---:|" * (len(PARTS) + 5),
    ]  # fmt: skip
    for row in measurements:
        sizes = [f"{size / _MIB:.2f}" for size in (row.footprint, *row.memory.values())]
        shares = [f"{share:.1%}" for share in (row.giou, row.same_masks, row.same_answers)]
        lines.append(f"| {' | '.join([str(row.bits), *sizes, *shares, f'{row.seconds:.2f}'])} |")
    return "\n".join(lines)


def _computed() -> list[str]:
    """Memory of the published sizes, from their shapes: nothing of that size was loaded."""
    lines = [
        "Computed from shapes, not measured: weights of the published sizes at 448 px. Activations and the cache of a",
        "conversation come on top.",
        "",
        "| Model | Bits | All, GiB | " + " | ".join(f"{part}, GiB" for part in PARTS) + " |",
        "|---|---:|" + "---:|" * (len(PARTS) + 1),
    ]
    for name in PUBLISHED:
        network = published_network(name, published_run(name))
        for bits in BITS:
            memory = memory_of(network, bits=bits)
            sizes = [f"{size / 2**30:.2f}" for size in (sum(memory.values()), *memory.values())]
            lines.append(f"| {' | '.join([name, str(bits), *sizes])} |")
    return lines
