"""PixelLMConfig: every architecture choice in one validated place, saved as config.json.

The file keeps the release's flat layout (LLaMA keys beside ``mm_*`` keys), so published folders and ours are
read by the same function.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

import torch
from pydantic import Field
from transformers import CLIPVisionConfig, LlamaConfig

from .errors import InputError
from .files import read_object
from .image import RELEASED_MEAN, RELEASED_STD, ImagePreprocessor
from .part_configs import REMEDY, LayerFromEnd, llama_keys, transformers_config, vision_keys
from .text.conversation import get_conversation
from .text.tokens import SegCodebook
from .values import (
    Count,
    DecoderWidth,
    Finite,
    InputSide,
    NonNegativeInt,
    Positive,
    Scales,
    Text,
    TokenGrid,
    TokensPerScale,
    checked_dataclass,
    shorten,
)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MOST_PATCHES = 512  # per side
Class = TypeVar("Class")


@dataclass_transform(frozen_default=True)
def _checked_fields(cls: type[Class]) -> type[Class]:
    return checked_dataclass(cls, lambda name, problem: InputError(f"{name} {problem}"))


@_checked_fields
class PixelLMConfig:
    """Architecture of one model (paper: L = ``image_feature_scale_num``, N = ``seg_token_num``).

    Attributes:
        llama: keys of ``LlamaConfig``; ``vocab_size`` counts the added tokens.
        vision: keys of ``CLIPVisionConfig`` as the tower's own folder has them (native image size).
        vision_tower: where the tower's weights are when they are not inside the checkpoint.
        seg_token_num: K tokens per scale.
        image_feature_scale_num: S scales.
        seg_token_ids: vocabulary ids of the S*K tokens, scale-major.
        image_size: R, input side in pixels.
        vision_feature_layers: tower hidden state of each scale, deepest first, as negative indices.
        image_token_grid: the language model reads at most this many image tokens per side.
        pad_train_clip_images: pad to a square instead of center-cropping.
        image_mean, image_std: per channel, for pixel values in 0..1.
        vision_position_resize: ``correct`` interpolates the patch rows of the position table; ``released`` takes the
            last row for the class token, as the release does.
        separate_mm_projector: the decoder has a projector of its own.
        mm_projector_hidden_dim: hidden width of a projector, in multiples of the language model's width.
        out_dim: C, width of the pixel decoder.
        decoder_depth, decoder_heads, decoder_mlp_ratio: its two-way attention blocks.
        conv_type: conversation template.
        model_max_length: token budget of a conversation, image included.
        recipe: how the weights were trained where paper and release differ; a record, the network does not read it.
    """

    llama: dict[str, Any]
    vision: dict[str, Any]
    vision_tower: Text
    seg_token_num: TokensPerScale
    image_feature_scale_num: Scales
    seg_token_ids: tuple[NonNegativeInt, ...]
    image_size: InputSide
    vision_feature_layers: tuple[LayerFromEnd, ...]
    image_token_grid: TokenGrid = 16
    pad_train_clip_images: bool = True
    image_mean: tuple[Finite, Finite, Finite] = RELEASED_MEAN
    image_std: tuple[Positive, Positive, Positive] = RELEASED_STD
    vision_position_resize: Literal["correct", "released"] = "correct"
    separate_mm_projector: bool = True
    mm_projector_hidden_dim: Annotated[int, Field(ge=1, le=64)] = 2
    out_dim: DecoderWidth = 256
    decoder_depth: Annotated[int, Field(ge=1, le=100)] = 2
    decoder_heads: Annotated[int, Field(ge=1, le=1024)] = 8
    decoder_mlp_ratio: Annotated[int, Field(ge=1, le=64)] = 8
    conv_type: Text = "llava_v1"
    model_max_length: Count = 512
    recipe: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        get_conversation(self.conv_type)
        self._check_codebook()
        self._check_input()
        if self.out_dim % (2 * self.decoder_heads):
            raise InputError(f"out_dim is {self.out_dim}; expected a multiple of {2 * self.decoder_heads}")

    def _check_codebook(self) -> None:
        if len(self.seg_token_ids) != self.image_feature_scale_num * self.seg_token_num:
            raise InputError(
                f"{len(self.seg_token_ids)} codebook ids for {self.image_feature_scale_num} scales x "
                f"{self.seg_token_num} tokens; seg_token_num does not belong to this tokenizer"
            )
        if len(set(self.seg_token_ids)) != len(self.seg_token_ids):
            raise InputError(f"seg_token_ids is {shorten(self.seg_token_ids)}; expected every id once")
        vocab_size = self.llama["vocab_size"]
        if max(self.seg_token_ids) >= vocab_size:
            raise InputError(
                f"the codebook has id {max(self.seg_token_ids)} but the vocabulary has {vocab_size} rows; "
                "take the tokenizer and config.json from the same folder"
            )

    def _check_input(self) -> None:
        patch, depth = self.vision["patch_size"], self.vision["num_hidden_layers"]
        if self.image_size < patch:
            raise InputError(f"image_size is {self.image_size}; expected at least the tower's patch size {patch}")
        if self.patch_grid > _MOST_PATCHES:
            raise InputError(
                f"image_size is {self.image_size} with patches of {patch} pixels; expected at most {_MOST_PATCHES} "
                "patches per side"
            )
        if len(self.vision_feature_layers) != self.image_feature_scale_num:
            raise InputError(
                f"vision_feature_layers has {len(self.vision_feature_layers)} entries for "
                f"{self.image_feature_scale_num} scales; expected one for each"
            )
        for layer in self.vision_feature_layers:
            if layer < -depth - 1:
                raise InputError(f"vision feature layer {layer} does not exist in a tower of {depth} blocks")

    @property
    def patch_grid(self) -> int:
        """Patches per side of the tower."""
        return self.image_size // self.vision["patch_size"]

    @property
    def covered_size(self) -> int:
        """Pixels per side that patches cover, from the top left; CLIP leaves a remainder unseen (512 px: 504)."""
        return self.patch_grid * self.vision["patch_size"]

    @property
    def llm_grid(self) -> int:
        """Image tokens per side that the language model reads."""
        return min(self.image_token_grid, self.patch_grid)

    @property
    def num_image_tokens(self) -> int:
        """P."""
        return self.llm_grid**2

    @property
    def has_released_normalization(self) -> bool:
        """What the release does to padded images, whatever its preprocessor file says."""
        return (self.image_mean, self.image_std) == (RELEASED_MEAN, RELEASED_STD)

    @property
    def preprocessor(self) -> ImagePreprocessor:
        """Photo -> network input."""
        return ImagePreprocessor(self.image_size, self.pad_train_clip_images, self.image_mean, self.image_std)

    def llama_config(self) -> LlamaConfig:
        """The language model's part as transformers reads it.

        Raises:
            InputError: if a value is not valid.
        """
        return transformers_config(LlamaConfig, self.llama, where="the language model's config.json")

    def vision_config(self) -> CLIPVisionConfig:
        """The tower's part as transformers reads it."""
        return CLIPVisionConfig(**self.vision)

    def to_dict(self) -> dict[str, Any]:
        """The flat layout of config.json."""
        flat = asdict(self)
        llama, vision = flat.pop("llama"), flat.pop("vision")
        return {
            "architectures": ["PixelLMForCausalLM"],
            "model_type": "pixellm",
            **llama,
            **flat,
            "mm_hidden_size": vision["hidden_size"],
            "mm_vision_tower": self.vision_tower,
            "mm_use_im_start_end": True,
            "resize_vision_tower": True,
            "resize_vision_tower_size": self.image_size,
            "vision_tower_for_mask": True,
            "vision_config": vision,
        }

    def save(self, folder: Path) -> None:
        """Write config.json into an existing folder."""
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> PixelLMConfig:
        """The config.json of a folder that we wrote.

        Raises:
            InputError: if it is missing or damaged.
        """
        file = folder / "config.json"
        return cls.from_dict(read_object(file), where=str(file))

    @classmethod
    def from_dict(cls, flat: dict[str, Any], *, where: str = "config.json", **overrides: Any) -> PixelLMConfig:
        """Take a whole config.json of ours apart; ``overrides`` win.

        Args:
            where: names the file in messages.
        Raises:
            InputError: for a key that is missing or a value that does not fit; nothing is filled in.
        """
        sections = {"llama", "vision"}
        needed = {attribute.name for attribute in fields(cls)} - sections - set(overrides) | {"vision_config"}
        missing = sorted(needed - set(flat))
        if missing:
            raise InputError(f"{where} lacks {', '.join(missing)}. {REMEDY}")
        values = {name: _immutable(flat[name]) for name in needed - {"vision_config"}}
        values |= {"llama": llama_keys(flat, where=where), "vision": vision_keys(flat, where=where)}
        try:
            return cls(**values | overrides)
        except InputError as err:
            raise InputError(f"{where}: {err}. {REMEDY}") from err

    @classmethod
    def assemble(
        cls,
        base: Mapping[str, Any],
        tower: Mapping[str, Any],
        codebook: SegCodebook,
        *,
        vision_tower: str,
        image_size: int | None = None,
        **choices: Any,
    ) -> PixelLMConfig:
        """Put a configuration together from what a model is made of.

        Args:
            base: flat config.json of the language model, LLaVA's keys among it.
            tower: config.json of the CLIP tower.
            codebook: gives S, K and the ids.
            image_size: R; default is the tower's own input size.
            choices: every other attribute that does not keep its default.
        Raises:
            InputError: if a file lacks a key or a value does not fit.
        """
        vision = vision_keys(tower)
        return cls(
            llama=llama_keys(base),
            vision=vision,
            vision_tower=vision_tower,
            seg_token_num=codebook.tokens,
            image_feature_scale_num=codebook.scales,
            seg_token_ids=codebook.ids,
            image_size=image_size or vision["image_size"],
            vision_feature_layers=feature_layers(
                codebook.scales, depth=vision["num_hidden_layers"], first=base.get("mm_vision_select_layer", -2)
            ),
            **choices,
        )


def feature_layers(scales: int, *, depth: int, first: int = -2) -> tuple[int, ...]:
    """The tower's hidden state that each scale reads, deepest first.

    The release reads layers -2 and -11: steps of 9 blocks. A shallower tower is divided evenly.

    Raises:
        InputError: if the tower has too few blocks.
    """
    if scales == 1:
        return (first,)
    step = min(9, (depth + first) // (scales - 1))
    if step < 1:
        raise InputError(f"a tower of {depth} blocks is too shallow for {scales} scales; choose fewer")
    return tuple(first - step * scale for scale in range(scales))


def _immutable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
