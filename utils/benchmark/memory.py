"""What training a published size takes on each GPU, with the presets of ``configs/hardware/``: arithmetic on shapes.

Nothing of that size is loaded. ``MemoryNeed`` (utils/training/memory.py) has what lies there between the passes;
``kept_by_a_pass`` has what a forward pass leaves for its backward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.configuration import PixelLMConfig
from model.files import read_object, write_text
from model.outputs import check_output_file
from model.PixelLM import PixelLMForCausalLM
from model.sizes import PUBLISHED
from model.structures import SegQueries
from utils.cli.config import RunConfig
from utils.training.deepspeed_config import deepspeed_settings
from utils.training.lora import wrap_as_told
from utils.training.memory import MemoryNeed

from .machine import describe_machine
from .published import published_network
from .quantization import memory_of

_CONFIGS = Path(__file__).resolve().parents[2] / "configs"
HARDWARE = ("8x80gb", "8x24gb", "1x80gb", "1x24gb")
# Of one image, as sem_seg and refer_seg ask about it: system words, a square photo, three questions with answers.
_TOKENS = 40 + 256 + 3 * 60
_SUPERVISED, _MASKS = 3 * 25, 3 * 3
_LOGIT_BYTES = 2 + 3 * 4  # in training precision, in float32, their softmax and its gradient
_MASK_LOSSES = 6 * 4 * 2**23  # a block of masks at the size of the photo, in float32 (model/losses.py)
# DeepSpeed's own numbers of weights that ZeRO-3 may hold whole at a time, and fetches ahead.
_LIVE, _PREFETCHED = 1_000_000_000, 50_000_000
_LIBRARIES = 2 * 2**30  # CUDA, kernels, NCCL, and what the allocator cannot use
_USABLE = 0.98 * 2**30  # of a GB on the box
GROUPS = {
    "weights": ("frozen weights", "trained weights"),
    "gradients": ("gradients",),
    "optimizer": ("master weights", "moments"),
    "buffers": ("buffers", "gathered weights"),
    "decoder": ("decoder", "logits", "mask losses"),
}
_LEGEND = """\
Of one GPU, in GiB. `weights` are frozen and trained ones; `gradients` and `optimizer` (float32 weights and AdamW's
moments) belong to the trained ones. `buffers` are DeepSpeed's, and under ZeRO-3 the weights that are gathered for a
moment. `decoder` is what the tower's projectors, the decoder, the logits and the mask losses keep. `kept` and
`recomputed` are the activations of the language model, kept or computed again in the backward pass
(`--activation_checkpointing`), for images with 476 tokens (a square photo, three questions) and 9 masks. `fits` leaves
2 GiB to libraries and to what the allocator cannot use, and takes a GB on the box for 0.98 GiB. `host` is what each
process keeps in the memory of the machine (offload). What a kernel takes while it runs is not counted."""


@dataclass(frozen=True)
class Need:
    """Of one GPU.

    Attributes:
        parts: bytes by what they are for, activations of the language model apart.
        kept, recomputed: bytes of these activations.
        host: bytes in the memory of the machine, for each process.
    """

    parts: Mapping[str, int]
    kept: int
    recomputed: int
    host: int

    def group(self, name: str) -> int:
        return sum(self.parts.get(part, 0) for part in GROUPS[name])

    def total(self, *, recomputed: bool) -> int:
        return sum(self.parts.values()) + (self.recomputed if recomputed else self.kept)

    def fits(self, gigabytes: int) -> str:
        """How activations have to be treated on a GPU of that size."""
        room = gigabytes * _USABLE - _LIBRARIES
        if self.total(recomputed=False) <= room:
            return "kept"
        return "recomputed" if self.total(recomputed=True) <= room else "no"


def benchmark(run: RunConfig | None, *, size: str, output_md: str) -> None:
    """Print a table of the presets, or of one run.

    Args:
        run: flags that were given; None takes the presets.
        size: ``7b`` or ``13b``, with a run.
        output_md: a file for the table.
    Raises:
        InputError: if a file of flags cannot be used, or the table not be written.
    """
    if output_md:
        check_output_file(output_md, flag="--output_md")
    if run:
        name = f"PixelLM-{size.upper()}"
        rows = [("these flags", name, *_described(sized(name, run), run, bits=_bits_of(run)), "")]
    else:
        rows = [row for name in PUBLISHED for row in _preset_rows(name)]
    report = "\n".join(["Computed from shapes, not measured:", "", table(rows), "", _LEGEND])
    print(report)
    if output_md:
        machine = describe_machine(("torch", "transformers", "peft", "deepspeed"))
        write_text(Path(output_md), f"# Memory of the presets\n\n{machine}\n\n{report}\n")


Row = tuple[str, str, str, Need, str]


def _preset_rows(name: str) -> list[Row]:
    rows = []
    wrapped = sized(name, preset(HARDWARE[0], name)[0])  # hardware changes nothing of it
    for hardware in HARDWARE:
        run, bits = preset(hardware, name)
        settings, need = _described(wrapped, run, bits=bits)
        rows.append((hardware, name, settings, need, need.fits(int(hardware.split("x")[1].removesuffix("gb")))))
    return rows


def preset(hardware: str, name: str) -> tuple[RunConfig, int]:
    """The flags of ``configs/pixellm_7b.json`` or its sibling with those of a hardware preset; and bits per weight."""
    files = (_CONFIGS / f"{name.lower().replace('-', '_')}.json", _CONFIGS / "hardware" / f"{hardware}.json")
    values: dict[str, Any] = {}
    for file in files:
        values |= read_object(file)
    run = RunConfig(**values)
    return run, _bits_of(run)


def _bits_of(run: RunConfig) -> int:
    return 4 if run.load_in_4bit else 16


def sized(name: str, run: RunConfig) -> nn.Module:
    """A network of a published size with LoRA, and ``requires_grad`` set on what is trained; on the meta device."""
    network = published_network(name, _in_16_bits(run))
    with torch.device("meta"):
        wrapped, _ = wrap_as_told(network, run)
    return wrapped.to(network.dtype)  # as DeepSpeed does


def _in_16_bits(run: RunConfig) -> RunConfig:
    """With ``--precision auto``, what today's GPUs make of it."""
    return dataclasses.replace(run, precision="bf16") if run.precision == "auto" else run


def _described(wrapped: nn.Module, run: RunConfig, *, bits: int) -> tuple[str, Need]:
    run = _in_16_bits(run)
    processes = processes_of(run)
    stage = deepspeed_settings(run).get("zero_optimization", {}).get("stage", 0)
    settings = f"{processes} x {run.batch_size} x {run.grad_accumulation_steps}, ZeRO-{stage}"
    return settings + (f", {bits}-bit base" if bits < 16 else ""), need_of(wrapped, run, processes=processes, bits=bits)


def processes_of(run: RunConfig) -> int:
    """For how many processes flags are made, by ``--images_per_update``; 1 if they do not say."""
    return max(1, run.images_per_update // (run.batch_size * run.grad_accumulation_steps))


def need_of(wrapped: nn.Module, run: RunConfig, *, processes: int, bits: int = 16) -> Need:
    """What each of so many processes needs, one on each GPU.

    Args:
        wrapped: as ``sized`` makes it.
        bits: of a frozen weight of the language model's blocks.
    """
    network = next(module for module in wrapped.modules() if isinstance(module, PixelLMForCausalLM))
    settings = deepspeed_settings(run)
    zero = settings.get("zero_optimization", {})
    found = MemoryNeed.of(wrapped, settings, world_size=processes, on_gpu=True)
    parts = dict(found.device)
    if "weights" in parts:
        divided = processes if zero.get("stage") == 3 else 1
        quantized = sum(memory_of(network).values()) - sum(memory_of(network, bits=bits).values())
        trained = sum(weight.nbytes for weight in wrapped.parameters() if weight.requires_grad) // divided
        parts = {
            "frozen weights": parts.pop("weights") - trained - quantized // divided,
            "trained weights": trained,
            **parts,
        }
    itemsize = network.dtype.itemsize
    if zero.get("stage") == 3 and processes > 1:
        whole = zero.get("stage3_max_live_parameters", _LIVE) + zero.get("stage3_prefetch_bucket_size", _PREFETCHED)
        parts["gathered weights"] = min(whole, sum(weight.numel() for weight in wrapped.parameters())) * itemsize
    kept, recomputed = kept_by_a_pass(network.config, run, itemsize=itemsize)
    parts["decoder"] = run.batch_size * kept_by_decoder(network)
    parts["logits"] = run.batch_size * _SUPERVISED * network.config.text_config.vocab_size * _LOGIT_BYTES
    parts["mask losses"] = _MASK_LOSSES
    return Need(parts, kept, recomputed, sum(found.host.values()))


def kept_by_a_pass(config: PixelLMConfig, run: RunConfig, *, itemsize: int) -> tuple[int, int]:
    """Bytes that a forward pass of ``--batch_size`` images leaves in the language model.

    For each token, a block keeps the states that its two norms have read, in float32; q, k, v and what attention gives;
    gate, its activation and up; and for LoRA the input of its layers, with dropout one for each and its mask. Frozen
    layers keep no input, as their weights get no gradient. The last norm keeps what it has read.

    Returns:
        if activations are kept; if they are computed again from the input of each block, one block at a time.
    """
    text = config.text_config
    width, inner = text.hidden_size, text.intermediate_size
    with_lora = [name.strip() for name in run.lora_target_modules.split(",")]
    if run.lora_dropout:
        lora = sum(inner if name == "down_proj" else width for name in with_lora) * (itemsize + 1)
    else:  # layers that read the same states share them; attention and MLP keep what o and down read
        read = {name in ("q_proj", "k_proj", "v_proj") for name in with_lora if name not in ("o_proj", "down_proj")}
        lora = len(read) * width * itemsize
    of_norm = 4 * width
    of_block = 2 * of_norm + 4 * itemsize * width + 3 * itemsize * inner + lora
    tokens = run.batch_size * _TOKENS
    inputs = text.num_hidden_layers * itemsize * width
    return tokens * (text.num_hidden_layers * of_block + of_norm), tokens * (inputs + of_block + of_norm)


@lru_cache(maxsize=1)
def kept_by_decoder(network: PixelLMForCausalLM) -> int:
    """Bytes that projectors, token fusion and decoder keep of one image for the backward pass.

    Args:
        network: on the meta device, with ``requires_grad`` set on what is trained.
    """
    config = network.config

    def forward() -> None:
        pixels = torch.zeros(1, 3, config.image_size, config.image_size, dtype=network.dtype, device="meta")
        features = network.encode_images(pixels, torch.tensor([[config.image_size, config.image_size]]))
        shape = (_MASKS, config.image_feature_scale_num, config.seg_token_num, config.text_config.hidden_size)
        states = torch.zeros(shape, dtype=network.dtype, device="meta", requires_grad=True)
        of_mask = torch.zeros(_MASKS, dtype=torch.long, device="meta")
        network.decode_masks(features, SegQueries(network.fuse(states), of_mask, of_mask))

    return bytes_saved(forward, network)


def bytes_saved(forward: Callable[[], None], network: nn.Module) -> int:
    """Bytes that autograd keeps of a forward pass, each memory once and parameters apart."""
    parameters = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    saved: dict[int, Tensor] = {}  # holds them, so that no other tensor gets their address

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in parameters)


def table(rows: Sequence[Row]) -> str:
    """One row per preset and model, in Markdown; a GiB is 2^30 bytes."""
    head = ["Preset", "Model", "GPUs x images x passes", *GROUPS, "kept", "recomputed", "sum, kept", "sum, recomputed"]
    lines = [f"| {' | '.join([*head, 'host', 'fits'])} |", "|---|---|---|" + "---:|" * (len(head) - 2) + "---|"]
    for preset_name, name, settings, need, fits in rows:
        numbers = [need.group(group) for group in GROUPS]
        numbers += [need.kept, need.recomputed, need.total(recomputed=False), need.total(recomputed=True), need.host]
        sizes = [f"{number / 2**30:.1f}" for number in numbers]
        lines.append(f"| {' | '.join([preset_name, name, settings, *sizes, fits])} |")
    return "\n".join(lines)
