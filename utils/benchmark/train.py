"""What an update of training costs, and what its time goes into: random weights, photos of noise, invented words.

Everything that training does is done by its own code, from a photo on the disk to the step of the optimizer, without
DeepSpeed. Several processes average their gradients. What is computed for nothing without the shared prefix, or to save
memory, is measured beside it in the same run (``--compare``).
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.flop_counter import FlopCounterMode

from model.configuration import PRECISIONS
from model.files import write_text
from model.image import photo_resizers
from model.losses import LossWeights, pixellm_loss
from model.outputs import check_output_file
from model.values import Attention
from utils import dist
from utils.data.collate import Collator
from utils.data.encode import Encoder
from utils.training.compilation import compile_blocks
from utils.training.costs import peak_flops, update_flops
from utils.training.start import set_checkpointing

from .clock import Clock, peak, reset_peak
from .machine import describe_machine
from .random_model import Optimizer, invent_sample, random_network, with_lora

PARTS = (
    "data", "tower and projectors", "language model", "text loss", "decoder", "mask losses", "backward",
    "communication", "optimizer",
)  # fmt: skip
_LEGEND = """\
Medians over {steps} updates, after one to warm up; the ways take turns. Seconds are {clock}, and each part is waited
for. Samples (photos) and tokens per second are those of all processes ({processes}); the rest is of one. FLOPs are
counted as 4 for each weight of the language model's layers and each token of a row: 2 forward, and 2 for the gradient
of the inputs, as the base is frozen. What is recomputed, attention itself, the tower and the decoder are left out.
MFU is their share of the peak that the data sheet gives for 16 bits. `floor` is what all matrix products of an
update, as torch counts them, would take at the {rate:.3g} TFLOP/s that a product of two large matrices reaches in
this run; on a CPU without those of attention. `held` is in memory between updates, `peak` is what an update takes
beyond. Communication is the mean of all gradients over the processes, in one piece, with the wait for the slowest;
training overlaps it with the backward pass."""


@dataclass(frozen=True)
class Way:
    """How updates are computed."""

    shared_prefix: bool
    checkpointing: bool
    compiled: bool = False

    def __str__(self) -> str:
        rows = "shared prefix" if self.shared_prefix else "rows apart"
        activations = f"{rows}, {'recomputed' if self.checkpointing else 'kept'} activations"
        return activations + (", compiled blocks" if self.compiled else "")


WAYS = tuple(Way(shared, recomputed) for shared in (True, False) for recomputed in (False, True))


@dataclass
class Measured:
    """Of one way; a number for each update.

    Attributes:
        parts: seconds by part, see ``PARTS``.
        held, peaks: bytes between updates, and beyond these.
        losses: the same for all ways, up to rounding.
        tokens: of the rows; real: those that are no padding.
        flops: of all matrix products.
    """

    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    seconds: list[float] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    real: int = 0
    flops: int = 0

    def median(self, part: str) -> float:
        return statistics.median(self.parts[part])


class Bench:
    """A network of random weights, and the data of one update of this process.

    Args:
        size: a key of ``SIZES``.
        images, conversations, masks: of an update, of an image, and of a conversation.
        photo: (height, width).
        folder: for tokenizer and photos.
    """

    def __init__(
        self, size: str, *, images: int, conversations: int, masks: int, photo: tuple[int, int], precision: str,
        device: torch.device, folder: Path, attention: Attention = "sdpa",
    ) -> None:  # fmt: skip
        self.device, self.dtype = device, PRECISIONS[precision]
        self.images, self.attention = images, attention
        network, tokenizer = random_network(size, folder, dtype=self.dtype, device=device, attention=attention)
        self.config = network.config
        self._compiled_calls: list[Any] = []  # of the blocks, once they are wanted
        self.wrapped, trained = with_lora(network)
        self._network, self._encoder = network, Encoder(tokenizer, network.codebook, self.config)
        self._pad_token_id = cast(int, tokenizer.pad_token_id)
        self._optimizer = Optimizer(trained)
        first = dist.rank() * images
        self._raw = [
            invent_sample(folder, number, conversations=conversations, masks=masks, photo=photo)
            for number in range(first, first + images)
        ]
        self.clock = Clock(device, wall=dist.world_size() > 1)
        for owner, method, part in (
            (network, "encode_images", "tower and projectors"), (network.model, "forward", "language model"),
            (network, "lm_loss", "text loss"), (network, "decode_masks", "decoder"),
        ):  # fmt: skip
            self.clock.watch(owner, method, part)

    def count_flops(self, way: Way) -> int:
        """Of all matrix products of an update, forward and backward, recomputed ones included.

        It counts what ``sdpa`` computes: a compiled kernel is none of the operations that torch counts.
        """
        self._network.set_attn_implementation("sdpa")
        with FlopCounterMode(display=False) as counter:
            self.update(replace(way, compiled=False), Measured())
        self._network.set_attn_implementation(self.attention)
        return counter.get_total_flops()

    def update(self, way: Way, found: Measured) -> None:
        """One update in this way; its numbers go to ``found``."""
        set_checkpointing(self._network.model, enabled=way.checkpointing)
        self._use_compiled(way.compiled)
        self._optimizer.forget_gradients()  # of an update that memory did not suffice for
        self.clock.parts = {}
        held = reset_peak(self.device)
        started = self.clock.now()
        with self.clock.part("data"):
            collator = Collator(self.config, self._pad_token_id, shared_prefix=way.shared_prefix)
            on_cpu = collator([self._encoder(raw, truncate=False) for raw in self._raw])
            batch = on_cpu.to(self.device, self.dtype)
        output = self.wrapped(**batch.inputs(photo_logits=False))
        assert on_cpu.rows is not None
        with self.clock.part("mask losses"):
            total = pixellm_loss(
                output.loss, output.mask_logits, batch.masks, on_cpu.rows.group_conversation, LossWeights(),
                resize=photo_resizers(on_cpu.valid_hw, on_cpu.orig_hw, size=self.config.covered_size),
            ).total  # fmt: skip
        with self.clock.part("backward"):
            total.backward()
        if dist.world_size() > 1:
            with self.clock.part("communication"):
                self._optimizer.average_gradients()
        with self.clock.part("optimizer"):
            self._optimizer.step()
        found.seconds.append(self.clock.now() - started)
        found.held.append(held)
        found.peaks.append(peak(self.device) - held)
        found.losses.append(float(total.detach()))
        found.tokens, found.real = on_cpu.rows.input_ids.numel(), int(on_cpu.rows.visible.sum())
        for part in PARTS:
            found.parts[part].append(self.clock.parts.get(part, 0.0))

    def _use_compiled(self, wanted: bool) -> None:
        """Switch between the blocks of the language model and what ``--compile`` makes of them."""
        blocks = self._network.model.layers
        if wanted and not self._compiled_calls:
            compile_blocks(self._network)
            self._compiled_calls = [block._compiled_call_impl for block in blocks]
        for block, call in zip(blocks, self._compiled_calls, strict=False):
            block._compiled_call_impl = call if wanted else None


def benchmark(
    *, size: str, images: int, conversations: int, masks: int, photo: str, precision: str, steps: int, compare: bool,
    compile: bool, attn_implementation: Attention, output_md: str,
) -> None:  # fmt: skip
    """Measure, and print a table; of several processes that a launcher started, the first one prints.

    Args:
        photo: WIDTHxHEIGHT.
        compare: also without the shared prefix, and with activations that are recomputed.
        compile: also with compiled blocks, where the prefix is shared.
        output_md: a file for the table.
    Raises:
        InputError: if the file cannot be written, or attention cannot be computed so here.
    """
    if output_md:
        check_output_file(output_md, flag="--output_md")
    device = _join()
    width, height = map(int, photo.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            size, images=images, conversations=conversations, masks=masks, photo=(height, width),
            precision=precision, device=device, folder=Path(folder), attention=attn_implementation,
        )  # fmt: skip
        ways = WAYS if compare else WAYS[:1]
        if compile:
            ways += tuple(replace(way, compiled=True) for way in ways if way.shared_prefix)
        found = measure(bench, ways, steps=steps)
    if not dist.is_main():
        return
    work = (
        f"{size}, {precision}, {attn_implementation}: {images} image(s) x {conversations} conversation(s) x {masks} "
        f"mask(s), {photo}"
    )
    report = "\n".join([work, "", *table(found, bench, steps=steps)])
    print(report)
    if output_md:
        machine = describe_machine(("torch", "transformers", "peft"))
        write_text(Path(output_md), f"# An update of training\n\n{machine}\n\n{report}\n")


def _join() -> torch.device:
    """The device of this process; those of a launcher meet."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if dist.world_size() > 1:
        dist.join("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=5))
    return device


def measure(bench: Bench, ways: Sequence[Way], *, steps: int) -> dict[Way, Measured]:
    """So many updates of each way, in turn; a way that the GPU has no memory for stays without numbers."""
    found = {way: Measured() for way in ways}
    for way in ways:
        try:
            found[way].flops = bench.count_flops(way)
            if bench.attention != "sdpa" or way.compiled:
                bench.update(way, Measured())  # to compile
        except torch.OutOfMemoryError:
            if dist.world_size() > 1:
                raise  # the others would wait for this one
    for _ in range(steps):
        for way in ways:
            if found[way].flops:
                bench.update(way, found[way])
    return found


def table(found: dict[Way, Measured], bench: Bench, *, steps: int) -> list[str]:
    """Lines of Markdown: a row for each way, and what the columns mean."""
    titles = [
        "", "s", "of the first", "loss", "samples/s", "tokens", "real", "tokens/s", "TFLOP/s", "MFU", "floor s",
        "held MiB", "peak MiB", *PARTS,
    ]  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", "|---|" + "---:|" * (len(titles) - 1)]
    rate, processes = bench.clock.matmul_flops(bench.dtype), dist.world_size()
    limit = None if bench.dtype == torch.float32 else peak_flops(bench.device)
    fastest = next((statistics.median(numbers.seconds) for numbers in found.values() if numbers.seconds), 0.0)
    for way, numbers in found.items():
        if not numbers.seconds:
            lines.append(f"| {way} | out of memory |" + " - |" * (len(titles) - 2))
            continue
        seconds = statistics.median(numbers.seconds)
        flops = update_flops(bench.config, num_tokens=numbers.tokens) / seconds
        cells = [
            str(way), f"{seconds:.3f}", f"{seconds / fastest:.2f}", f"{numbers.losses[-1]:.6f}",
            f"{processes * bench.images / seconds:.3g}", f"{numbers.tokens:,}", f"{numbers.real / numbers.tokens:.0%}",
            f"{processes * numbers.tokens / seconds:,.0f}", f"{flops / 1e12:.3f}",
            f"{flops / limit:.1%}" if limit else "-", f"{numbers.flops / rate:.3f}",
            *(f"{statistics.median(sizes) / 2**20:,.0f}" for sizes in (numbers.held, numbers.peaks)),
            *(f"{numbers.median(part):.3f} ({numbers.median(part) / seconds:.0%})" for part in PARTS),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    clock = "of the wall" if bench.clock.wall else "of the processor"
    return [*lines, "", _LEGEND.format(steps=steps, clock=clock, processes=processes, rate=rate / 1e12)]
