"""What an update of training costs, and what its time goes into: random weights, photos of noise, invented words.

Everything that training does is done by its own code, from a photo on the disk to the step of the optimizer, in one
process and without DeepSpeed. What is computed for nothing without the shared prefix, or to save memory, is measured
beside it in the same run (``--compare``).
"""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from model.configuration import PRECISIONS, PixelLMConfig
from model.files import write_text
from model.image import photo_resizers
from model.losses import LossWeights, pixellm_loss
from model.outputs import check_output_file
from model.PixelLM import PixelLMForCausalLM
from model.text.tokenizer import add_codebook, load_tokenizer
from utils.data.collate import Collator
from utils.data.encode import Encoder
from utils.data.records import RawSample, Turn
from utils.data.small_tokenizer import PROMPT_WORDINGS, train_tokenizer, write_tokenizer
from utils.training.lora import set_trained, wrap_lora
from utils.training.start import set_checkpointing

from .machine import STATUS, describe_machine, kilobytes
from .published import LLAMA, VISION, VOCABULARY

# Of language model and tower; the rest follows the presets: 448 px, 2 scales x 3 tokens, a decoder of width 256.
SIZES: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "tiny": (
        {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 4, "num_attention_heads": 4},
        {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4},
    ),
    "mid": (
        {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8},
        {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 4},
    ),
    "7b": (LLAMA["PixelLM-7B"], VISION),
    "13b": (LLAMA["PixelLM-13B"], VISION),
}
PARTS = (
    "data", "tower and projectors", "language model", "text loss", "decoder", "mask losses", "backward", "optimizer",
)  # fmt: skip
# Of matrix products in 16 bits without sparsity, by the data sheets.
_PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
_LEGEND = """\
Medians over {steps} updates, after one to warm up; the ways take turns. Seconds are {clock}. `peak` is what an update
takes beyond what is held between updates. FLOPs are counted as 4 for each weight of the language model's layers and
each token of a row: 2 forward, and 2 for the gradient of the inputs, as the base is frozen. What is recomputed,
attention itself, the tower and the decoder are left out."""


@dataclass(frozen=True)
class Way:
    """How updates are computed."""

    shared_prefix: bool
    checkpointing: bool

    def __str__(self) -> str:
        rows = "shared prefix" if self.shared_prefix else "rows apart"
        return f"{rows}, {'recomputed' if self.checkpointing else 'kept'} activations"


WAYS = tuple(Way(shared, recomputed) for shared in (True, False) for recomputed in (False, True))


@dataclass
class Measured:
    """Of one way; a number for each update.

    Attributes:
        parts: seconds by part, see ``PARTS``.
        peaks: bytes.
        losses: the same for all ways, up to rounding.
        tokens: of the rows; real: those that are no padding.
    """

    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    seconds: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    real: int = 0

    def median(self, part: str) -> float:
        return statistics.median(self.parts[part])


class Clock:
    """Seconds: of the processor on a CPU, where other load does not count, and of the wall beside a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.parts: dict[str, float] = {}

    def now(self) -> float:
        """Once everything that was started on the device has ended."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return time.perf_counter()
        return time.process_time()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add what happens inside to a part; the innermost counts."""
        started, before = self.now(), sum(self.parts.values())
        yield
        inside = sum(self.parts.values()) - before
        self.parts[name] = self.parts.get(name, 0.0) + self.now() - started - inside

    def watch(self, owner: Any, method: str, part: str) -> None:
        """Add every call of a method to a part."""
        call: Callable[..., Any] = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.part(part):
                return call(*arguments, **options)

        setattr(owner, method, timed)


class Bench:
    """A network of random weights, and the data of one update.

    Args:
        size: a key of ``SIZES``.
        images, conversations, masks: of an update, of an image, and of a conversation.
        photo: (height, width).
    """

    def __init__(
        self, size: str, *, images: int, conversations: int, masks: int, photo: tuple[int, int], precision: str,
        device: torch.device, folder: Path,
    ) -> None:  # fmt: skip
        write_tokenizer(folder, train_tokenizer(PROMPT_WORDINGS))
        tokenizer = load_tokenizer(folder)
        codebook = add_codebook(tokenizer, scales=2, tokens=3)
        llama, tower = SIZES[size]
        self.config = PixelLMConfig.assemble(
            {**llama, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5},
            {**tower, "image_size": 336, "patch_size": 14},
            codebook,
            vision_tower="none", image_size=448, image_token_grid=16, separate_mm_projector=True, out_dim=256,
            pad_train_clip_images=True, model_max_length=2048,
        )  # fmt: skip
        self.device, self._dtype = device, PRECISIONS[precision]
        torch.manual_seed(0)
        with torch.device(device):
            network = cast(PixelLMForCausalLM, PixelLMForCausalLM(self.config).to(dtype=self._dtype))  # pyright: ignore[reportCallIssue]
        self.wrapped = wrap_lora(network, rank=8, alpha=16, dropout=0.0, names=("q_proj", "v_proj"))
        set_trained(self.wrapped)
        self.wrapped.train()
        self._network, self._encoder = network, Encoder(tokenizer, codebook, self.config)
        self._pad_token_id = cast(int, tokenizer.pad_token_id)
        trained = [parameter for parameter in self.wrapped.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=0.0)  # the same losses in every update
        self._raw = [_invent(folder, number, conversations, masks, photo) for number in range(images)]
        self.clock = Clock(device)
        for owner, method, part in (
            (network, "encode_images", "tower and projectors"), (network.model, "forward", "language model"),
            (network, "lm_loss", "text loss"), (network, "decode_masks", "decoder"),
        ):  # fmt: skip
            self.clock.watch(owner, method, part)

    @property
    def num_layer_weights(self) -> int:
        """Of the linear layers in the language model's blocks, LoRA apart."""
        return sum(p.numel() for name, p in self._network.model.layers.named_parameters() if "lora_" not in name)

    def update(self, way: Way, found: Measured) -> None:
        """One update in this way; its numbers go to ``found``."""
        set_checkpointing(self._network.model, enabled=way.checkpointing)
        self.clock.parts = {}
        started, held = self.clock.now(), _reset_peak(self.device)
        with self.clock.part("data"):
            collator = Collator(self.config, self._pad_token_id, shared_prefix=way.shared_prefix)
            on_cpu = collator([self._encoder(raw, truncate=False) for raw in self._raw])
            batch = on_cpu.to(self.device, self._dtype)
        output = self.wrapped(**batch.inputs(photo_logits=False))
        assert on_cpu.rows is not None
        with self.clock.part("mask losses"):
            total = pixellm_loss(
                output.loss, output.mask_logits, batch.masks, on_cpu.rows.group_conversation, LossWeights(),
                resize=photo_resizers(on_cpu.valid_hw, on_cpu.orig_hw, size=self.config.covered_size),
            ).total  # fmt: skip
        with self.clock.part("backward"):
            total.backward()
        with self.clock.part("optimizer"):
            self._optimizer.step()
            self._optimizer.zero_grad()
        found.seconds.append(self.clock.now() - started)
        found.peaks.append(_peak(self.device) - held)
        found.losses.append(float(total.detach()))
        found.tokens, found.real = on_cpu.rows.input_ids.numel(), int(on_cpu.rows.visible.sum())
        for part in PARTS:
            found.parts[part].append(self.clock.parts.get(part, 0.0))


def benchmark(
    *, size: str, images: int, conversations: int, masks: int, photo: str, precision: str, steps: int, compare: bool,
    output_md: str,
) -> None:  # fmt: skip
    """Measure, and print a table.

    Args:
        compare: also without the shared prefix, and with activations that are recomputed.
        output_md: a file for the table.
    Raises:
        InputError: if the file cannot be written.
    """
    if output_md:
        check_output_file(output_md, flag="--output_md")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    height, width = map(int, photo.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            size, images=images, conversations=conversations, masks=masks, photo=(height, width),
            precision=precision, device=device, folder=Path(folder),
        )  # fmt: skip
        found = measure(bench, WAYS if compare else WAYS[:1], steps=steps)
    work = f"{size}, {precision}: {images} image(s) x {conversations} conversation(s) x {masks} mask(s), {photo}"
    clock = "of the wall" if device.type == "cuda" else "of the processor"
    report = "\n".join([work, "", table(found, bench), "", _LEGEND.format(steps=steps, clock=clock)])
    print(report)
    if output_md:
        machine = describe_machine(("torch", "transformers", "peft"))
        write_text(Path(output_md), f"# An update of training\n\n{machine}\n\n{report}\n")


def measure(bench: Bench, ways: Sequence[Way], *, steps: int) -> dict[Way, Measured]:
    """So many updates of each way, in turn."""
    found = {way: Measured() for way in ways}
    for way in ways:
        bench.update(way, Measured())
    for _ in range(steps):
        for way in ways:
            bench.update(way, found[way])
    return found


def table(found: dict[Way, Measured], bench: Bench) -> str:
    """A row for each way, in Markdown."""
    titles = ["", "s", "of the first", "loss", "tokens", "real", "tokens/s", "TFLOP/s", "MFU", "peak MiB", *PARTS]
    lines = [f"| {' | '.join(titles)} |", "|---|" + "---:|" * (len(titles) - 1)]
    fastest = statistics.median(next(iter(found.values())).seconds)
    for way, numbers in found.items():
        seconds = statistics.median(numbers.seconds)
        flops = 4 * bench.num_layer_weights * numbers.tokens / seconds
        peak = _peak_flops(bench.device)
        cells = [
            str(way), f"{seconds:.3f}", f"{seconds / fastest:.2f}", f"{numbers.losses[-1]:.6f}", f"{numbers.tokens:,}",
            f"{numbers.real / numbers.tokens:.0%}", f"{numbers.tokens / seconds:,.0f}", f"{flops / 1e12:.3f}",
            f"{flops / peak:.1%}" if peak else "-", f"{statistics.median(numbers.peaks) / 2**20:,.0f}",
            *(f"{numbers.median(part):.3f}" for part in PARTS),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _invent(folder: Path, number: int, conversations: int, masks: int, photo: tuple[int, int]) -> RawSample:
    """A photo of noise, and questions of some thirty words about blots in it."""
    rng = np.random.default_rng(number)
    path = folder / f"{number}.png"
    Image.fromarray(rng.integers(0, 256, (*photo, 3), dtype=np.uint8)).save(path, compress_level=1)
    truth = np.zeros((conversations * masks, *photo), dtype=bool)
    for mask in truth:
        top, left = (int(rng.integers(0, side - side // 3)) for side in photo)
        mask[top : top + photo[0] // 3, left : left + photo[1] // 3] = True
    talks = []
    for talk in range(conversations):
        answer = " and ".join(["the thing in the picture {seg}"] * masks) or "nothing that is in the picture"
        question = "Which of the things in this picture would you take along for a day at the sea, and why?"
        targets = tuple(range(talk * masks, (talk + 1) * masks))
        talks.append((Turn(f"{talk}. {question}", f"I would take {answer}.", targets),))
    return RawSample(path.name, path, tuple(talks), truth)


def _peak_flops(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in _PEAK_FLOPS.items() if part in name), None)


def _reset_peak(device: torch.device) -> int:
    """Forget the highest use of memory so far; returns the present one, in bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system, else it counts as held
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): the peak becomes the present use
    return _bytes("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _bytes("VmHWM")


def _bytes(name: str) -> int:
    """Of ``STATUS``; 0 where there is no such file."""
    with contextlib.suppress(OSError):
        return 1024 * kilobytes(STATUS, name)
    return 0
