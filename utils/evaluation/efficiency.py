"""What an answer costs: parameters and floating-point operations of every part, beside LISA's layout with SAM.

Nothing is loaded: the modules of ``model/`` and transformers' SAM run on torch's meta device, and torch counts their
matrix products, convolutions and attention. A multiplication and its addition are two operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import SamConfig, SamModel

from model.context import Context
from model.PixelLM import PixelLMForCausalLM
from model.sizes import network_of_size
from model.structures import SegQueries

SYSTEM, QUESTION = 40, 30  # tokens of the words before the image, and of the question
SENTENCE, DESCRIPTION = 10, 13  # tokens of an answer beside its targets, and of the words for each of them
TARGETS = tuple(range(1, 11))
SIZES = ("7B", "13B")
# Segment Anything (Kirillov et al. 2023), ViT-H.
SAM_ENCODER: dict[str, Any] = {
    "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "mlp_dim": 5120, "image_size": 1024,
    "patch_size": 16, "window_size": 14, "global_attn_indexes": [7, 15, 23, 31], "output_channels": 256,
}  # fmt: skip
SAM_DECODER: dict[str, Any] = {
    "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8, "mlp_dim": 2048,
}  # fmt: skip
# "TFLOPs" that the paper is said to print for PixelLM and for LISA. Nobody here has read them in the paper itself.
CLAIMED = {"7B": (3.57, 7.16), "13B": (6.65, 10.24)}
LANGUAGE_MODEL = ("language model, prompt", "language model, answer", "lm_head")
_CLIP_OF_LISA = 224  # pixels, of which CLIP makes 16 x 16 patches: as many image tokens as PixelLM has

_LEGEND = f"""\
The photo is square, and the question is the first about it. The prompt has {SYSTEM} tokens before the image, 256 of the
image and {QUESTION} of the question. The answer has {SENTENCE} tokens, and {DESCRIPTION} more for the words of each
target, about as many as the descriptions of MUSE. Each target then has 6 tokens of PixelLM's codebook, or one of
LISA's. These lengths are assumptions.

LISA's layout is CLIP ViT-L/14 at 224 px with a linear projector, the same LLaMA, and SAM ViT-H at 1024 px. SAM's mask
decoder runs once for each target. Both models skip the last block of CLIP, which they do not read.

Counted are matrix products, convolutions and attention. A multiplication and its addition are 2 operations. Norms,
activations, softmax and the resizing of images, features and masks are not counted. A causal mask saves nothing in this
count. `lm_head` runs for every token that is chosen; of a token group that is the first."""

_READING = """\
The figures of the paper are **unverified**: nobody here has read them in the paper. The answer that they are of is not
known, nor what they count.

- They must be multiply-adds. As operations, the figure of PixelLM-7B would be below the {least:.1f} x 10^12 of its
  tower, its projectors and 256 image tokens.
- 7B and 13B are {step:.2f} apart, for PixelLM and for LISA. That is what {tokens:.0f} tokens of the language model
  take. Here the answer with 8 targets has {ours} tokens (PixelLM) or {theirs} (LISA), prompt included.
- Without the language model, LISA takes {apart:.2f} more than PixelLM here, and {gap:.2f} more in the paper. Its LISA
  was adapted to many targets; what that added is not known.
- So PixelLM saves less here than in the paper: {less:.0%} for 8 targets (7B), not {claimed:.0%}."""

Costs = dict[str, int]  # part -> how many parameters it has, or operations it takes


@dataclass(frozen=True)
class Layout:
    """A model and what it costs.

    Attributes:
        parameters: of every part; together all that the model has.
        flops: by the number of targets of an answer, the operations of every part.
    """

    name: str
    parameters: Costs
    flops: Mapping[int, Costs]

    def total(self, targets: int) -> int:
        """Operations of all parts."""
        return sum(self.flops[targets].values())


@dataclass(frozen=True)
class Reading:
    """Operations of the language model's blocks.

    Attributes:
        prompt: for all of it, image included.
        first: for the token behind it.
        more: what every further token costs above the one before it, which it sees too.
    """

    prompt: int
    first: int
    more: int

    @classmethod
    def of(cls, network: PixelLMForCausalLM) -> Reading:
        """Count with a prompt of ``SYSTEM``, image and ``QUESTION`` tokens; the network is on the meta device."""
        text = network.config.text_config
        context = Context(network.model, num_layers=text.num_hidden_layers)
        tokens = [_zeros(network, 1, SYSTEM + network.config.llm_grid**2 + QUESTION, text.hidden_size)]
        tokens += [_zeros(network, 1, 1, text.hidden_size)] * 2
        prompt, first, second = (counted(context.read, part)[0] for part in tokens)
        return cls(prompt, first, second - first)

    def answer(self, tokens: int) -> int:
        """For so many tokens behind the prompt, one after the other."""
        return tokens * self.first + self.more * (tokens * (tokens - 1) // 2)


def efficiency_table() -> str:
    """Parameters and operations of PixelLM and LISA, 7B and 13B, for answers with 1 to 10 targets; Markdown."""
    sam = sam_vit_h()
    layouts: dict[str, tuple[Layout, Layout]] = {}
    per_token: dict[str, int] = {}
    for size in SIZES:
        network = network_of_size(f"PixelLM-{size}")
        small = network_of_size(f"PixelLM-{size}", scales=1, tokens=1, image_size=_CLIP_OF_LISA)
        reading = Reading.of(network)
        per_token[size] = reading.first
        layouts[size] = (
            pixellm_layout(f"PixelLM-{size}", network, reading, TARGETS),
            lisa_layout(f"LISA-{size}", small, sam, reading, TARGETS),
        )
    parts = [
        f"## {layout.name}, GFLOPs by targets\n\n{_table_of_parts(layout)}"
        for pair in layouts.values()
        for layout in pair
    ]
    return "\n\n".join(
        [
            "Computed from shapes: parameters, and operations by the number of targets of an answer. A GFLOP is 10^9\n"
            "operations, a TFLOP 10^12.",
            *parts,
            f"## All parts together, TFLOPs\n\n{_table_of_totals(layouts)}",
            "## What is assumed, and what is counted",
            _LEGEND,
            f"## Beside the paper's figures\n\n{_table_of_claims(layouts)}",
            _read_claims(layouts, per_token),
        ]
    )


def pixellm_layout(name: str, network: PixelLMForCausalLM, reading: Reading, targets: Sequence[int]) -> Layout:
    """Count what this repository's network costs.

    Args:
        network: on the meta device, with a projector of the decoder's own.
        reading: of its language model.
        targets: of an answer, each number by itself.
    """
    config, model = network.config, network.model
    pixels, valid_hw = _photo(network)
    tower, seen = counted(model.vision_tower, pixels, valid_hw)
    projectors, features = counted(lambda: network.encode_images(None, valid_hw, tower_features=seen))
    width = config.text_config.hidden_size

    def flops(count: int) -> Costs:
        states = _zeros(network, count, config.image_feature_scale_num, config.seg_token_num, width)
        fusion, queries = counted(network.fuse, states)
        image = torch.zeros(count, dtype=torch.long, device="meta")
        return {
            "vision tower": tower,
            "projectors": projectors,
            **_language_flops(network, reading, count, group=network.codebook.size),
            "token fusion": fusion,
            "pixel decoder": counted(network.decode_masks, features, SegQueries(queries, image, image))[0],
        }

    parameters = {
        "vision tower": num_parameters(model.vision_tower),
        "projectors": num_parameters(model.mm_projector, model.out_mm_projector),
        **_language_parameters(network),
        "token fusion": num_parameters(model.text_hidden_fcs, model.token_fusion),
        "pixel decoder": num_parameters(model.image_feature_neck, model.prompt_encoder, model.mask_decoder),
    }
    return Layout(name, parameters, {count: flops(count) for count in targets})


def lisa_layout(
    name: str, network: PixelLMForCausalLM, sam: SamModel, reading: Reading, targets: Sequence[int]
) -> Layout:
    """Count LISA's layout: every target has one token, whose projected state is a prompt of SAM.

    Args:
        network: its tower, language model and token projection count; on the meta device.
        sam: on the meta device.
        reading, targets: as ``pixellm_layout`` takes them.
    """
    config, model = network.config, network.model
    tower_width, width = config.vision_config.hidden_size, config.text_config.hidden_size
    projector = nn.Linear(tower_width, width, device="meta", dtype=network.dtype)
    side = cast(Any, sam.config.vision_config).image_size
    tower, _ = counted(model.vision_tower, *_photo(network))
    projection, _ = counted(projector, _zeros(network, config.llm_grid**2, tower_width))
    encoder, encoded = counted(sam.vision_encoder, torch.zeros(1, 3, side, side, device="meta"))
    features = encoded.last_hidden_state
    encoding, positions = counted(sam.get_image_wide_positional_embeddings)

    def flops(count: int) -> Costs:
        decoder, _ = counted(
            sam.mask_decoder,
            image_embeddings=features,
            image_positional_embeddings=positions,
            sparse_prompt_embeddings=features.new_zeros(1, count, 1, features.shape[1]),
            dense_prompt_embeddings=torch.zeros_like(features),
            multimask_output=False,
        )
        return {
            "vision tower": tower,
            "projectors": projection,
            **_language_flops(network, reading, count, group=1),
            "token projection": counted(model.text_hidden_fcs[0], _zeros(network, count, width))[0],
            "SAM image encoder": encoder,
            "SAM prompt encoder and mask decoder": encoding + decoder,
        }

    parameters = {
        "vision tower": num_parameters(model.vision_tower),
        "projectors": num_parameters(projector),
        **_language_parameters(network),
        "token projection": num_parameters(model.text_hidden_fcs),
        "SAM image encoder": num_parameters(sam.vision_encoder),
        "SAM prompt encoder and mask decoder": num_parameters(sam.prompt_encoder, sam.mask_decoder),
    }
    return Layout(name, parameters, {count: flops(count) for count in targets})


def sam_vit_h() -> SamModel:
    """SAM ViT-H on the meta device."""
    with torch.device("meta"):
        return SamModel(SamConfig(vision_config=SAM_ENCODER, mask_decoder_config=SAM_DECODER))


def counted(compute: Callable[..., Any], *given: Any, **named: Any) -> tuple[int, Any]:
    """Operations of a computation without gradients, and its result."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        found = compute(*given, **named)
    return counter.get_total_flops(), found


def num_parameters(*modules: nn.Module) -> int:
    """Of modules that share none."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _language_parameters(network: PixelLMForCausalLM) -> Costs:
    model = network.model
    return {
        "embedding table": num_parameters(model.embed_tokens),
        "language model, prompt": num_parameters(model.layers, model.norm),
        "lm_head": num_parameters(cast(nn.Module, network.lm_head)),
    }


def _language_flops(network: PixelLMForCausalLM, reading: Reading, targets: int, *, group: int) -> Costs:
    """Of an answer with so many targets, each with a group of tokens."""
    words = SENTENCE + targets * DESCRIPTION
    chosen = words + targets + 1  # of a group the first token; and the end, which nothing reads
    return {
        "language model, prompt": reading.prompt,
        "language model, answer": reading.answer(words + targets * group),
        "lm_head": counted(network.lm_head, _zeros(network, chosen, network.config.text_config.hidden_size))[0],
    }


def _photo(network: PixelLMForCausalLM) -> tuple[Tensor, Tensor]:
    """(1, 3, R, R) pixels and (1, 2), the size of what they show: all of it."""
    side = network.config.image_size
    return _zeros(network, 1, 3, side, side), torch.tensor([[side, side]])


def _zeros(network: PixelLMForCausalLM, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=network.dtype, device="meta")


def _table_of_parts(layout: Layout) -> str:
    """A row per part, a column per number of targets."""
    lines = _head("Part", "parameters, M", *layout.flops)
    for part in dict.fromkeys([*next(iter(layout.flops.values())), *layout.parameters]):
        parameters = f"{layout.parameters[part] / 1e6:.2f}" if part in layout.parameters else "the same"
        lines.append(_row(part, parameters, *(f"{costs.get(part, 0) / 1e9:.2f}" for costs in layout.flops.values())))
    whole = f"{sum(layout.parameters.values()) / 1e6:.2f}"
    lines.append(_row("sum", whole, *(f"{layout.total(targets) / 1e9:.2f}" for targets in layout.flops)))
    return "\n".join(lines)


def _table_of_totals(layouts: Mapping[str, tuple[Layout, Layout]]) -> str:
    """A row per number of targets: both models of each size, and what the first one saves."""
    names = [name for pair in layouts.values() for name in (pair[0].name, pair[1].name, "less by")]
    lines = _head("Targets", *names)
    for targets in TARGETS:
        cells = []
        for pair in layouts.values():
            ours, theirs = (layout.total(targets) for layout in pair)
            cells += [f"{ours / 1e12:.2f}", f"{theirs / 1e12:.2f}", f"{1 - ours / theirs:.0%}"]
        lines.append(_row(targets, *cells))
    return "\n".join(lines)


def _table_of_claims(layouts: Mapping[str, tuple[Layout, Layout]]) -> str:
    lines = _head("Model", "paper, unverified", "counted here, TFLOPs", "as multiply-adds, 10^12")
    for size, pair in layouts.items():
        for layout, claim in zip(pair, CLAIMED[size], strict=True):
            ends = [layout.total(targets) / 1e12 for targets in (TARGETS[0], TARGETS[-1])]
            spans = [f"{ends[0] / unit:.2f} to {ends[1] / unit:.2f}" for unit in (1, 2)]
            lines.append(_row(layout.name, f"{claim:.2f}", *spans))
    return "\n".join(lines)


def _read_claims(layouts: Mapping[str, tuple[Layout, Layout]], per_token: Mapping[str, int]) -> str:
    """What the paper's figures can mean, by what is counted here."""
    (ours, lisa), (small, large) = layouts["7B"], (CLAIMED["7B"], CLAIMED["13B"])
    step, words = large[0] - small[0], SYSTEM + 256 + QUESTION + SENTENCE + 8 * DESCRIPTION
    seen = ours.flops[8]["vision tower"] + ours.flops[8]["projectors"]
    apart = sum(
        sign * number
        for sign, layout in ((1, lisa), (-1, ours))
        for part, number in layout.flops[8].items()
        if part not in LANGUAGE_MODEL
    )
    return _READING.format(
        least=(seen + 256 * per_token["7B"]) / 1e12,
        step=step,
        tokens=2 * step * 1e12 / (per_token["13B"] - per_token["7B"]),
        ours=words + 8 * 6,
        theirs=words + 8,
        apart=apart / 2e12,
        gap=small[1] - small[0],
        less=1 - ours.total(8) / lisa.total(8),
        claimed=1 - small[0] / small[1],
    )


def _head(*names: object) -> list[str]:
    return [_row(*names), "|---" + "|---:" * (len(names) - 1) + "|"]


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
