"""What chat, evaluation and prediction can be told alike: where the model lies, and how it answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from model.errors import InputError
from model.values import Attention, Count, NonNegative, Positive, Share, ShareAboveZero

from .args import flag, settings

PrecisionOrAuto = Literal["fp32", "bf16", "fp16", "auto"]
Template = Literal["llava_v1", "llava_llama_2"]
CountOrAny = Annotated[int, Field(ge=-1, lt=2**31)]
InnerShare = Annotated[float, Field(gt=0, lt=1)]


@settings
class InferenceFlags:
    """How the language model is computed."""

    precision: PrecisionOrAuto = flag("bf16", "inference precision; auto takes what the device computes in")
    attn_implementation: Attention = flag("sdpa", "how the language model computes attention (docs/gpu.md)")
    load_in_8bit: bool = flag(False, "8-bit weights in the language model; needs bitsandbytes")
    load_in_4bit: bool = flag(False, "4-bit weights in the language model; needs bitsandbytes")
    device_map: str = flag("", "auto: over all GPUs and the memory; or one device, such as cuda:1 (docs/hardware.md)")
    offload_folder: str = flag("", "with --device_map, folder for what fits neither GPUs nor memory")
    offload_vision: bool = flag(False, "keep the vision tower on the CPU while no image is read (docs/hardware.md)")

    def __post_init__(self) -> None:
        if self.offload_folder and not self.device_map:
            raise InputError("--offload_folder needs --device_map, such as auto")
        if self.load_in_8bit and self.load_in_4bit:
            raise InputError("--load_in_8bit and --load_in_4bit exclude each other; give one of them")
        if self.bits < 16 and self.precision == "fp32":
            raise InputError(
                f"--load_in_{self.bits}bit keeps everything but the language model in 16 bits; "
                "give --precision bf16 or fp16"
            )

    @property
    def bits(self) -> int:
        """Of a weight of the language model."""
        return 8 if self.load_in_8bit else 4 if self.load_in_4bit else 16

    @property
    def placement(self) -> dict[str, Any]:
        """Where the model lies, as ``PixelLMPredictor.from_pretrained`` takes it."""
        told = {"device_map": self.device_map, "offload_folder": self.offload_folder}
        return {name: value for name, value in told.items() if value} | {"offload_vision": self.offload_vision}


@settings
class ModelFlags(InferenceFlags):
    """Which model, for all commands but chat, which keeps the defaults of the release."""

    version: str = flag("", "merged model: folder or hub id (docs/weights.md)")
    vision_tower: str = flag("", "CLIP tower, when the model folder has none", aliases=("--vision-tower",))
    conv_type: Template = flag("llava_v1", "template of a published model; a folder of ours records its own")


@settings
class AnswerFlags:
    """How an answer is written and drawn; with ``settled``, what was not given is as stored with the model."""

    max_new_tokens: Count = flag(512, "longest answer, in tokens; this and the next four by default as the model says")
    max_targets: CountOrAny = flag(-1, "masks of an answer at most; -1 for any number")
    temperature: NonNegative = flag(0.0, "0 takes the likeliest token; above it, tokens are drawn")
    top_p: ShareAboveZero = flag(1.0, "draw from the likeliest tokens with this share together; with a temperature")
    repetition_penalty: Positive = flag(1.0, "above 1, makes tokens less likely that the answer has")
    mask_threshold: InnerShare = flag(0.5, "probability above which a pixel belongs to a mask")
    alpha: Share = flag(0.2, "share of the color in a tinted pixel, in the picture of all targets")

    def settled(self, stored: Any, given: frozenset[str]) -> Self:
        """With what is stored with the model in place of the flags that were not given.

        Args:
            stored: an ``AnswerOptions`` (model/asking.py).
        """
        taken = {name: getattr(stored, name) for name in _STORED if name not in given}
        if "max_targets" in taken and taken["max_targets"] is None:
            taken["max_targets"] = -1
        return replace(self, **taken)

    @property
    def answer_options(self) -> dict[str, Any]:
        """As of ``AnswerOptions``."""
        options = {name: getattr(self, name) for name in (*_STORED, "mask_threshold")}
        return options | {"max_targets": None if self.max_targets < 0 else self.max_targets}


_STORED = ("max_new_tokens", "max_targets", "temperature", "top_p", "repetition_penalty")
ANSWER_FLAGS = tuple(AnswerFlags.__dataclass_fields__)
