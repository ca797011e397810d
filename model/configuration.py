"""PixelLMConfig: every architecture choice in one validated place, saved as config.json.

The language model's part is a ``LlamaConfig``, the tower's a ``CLIPVisionConfig``, as in every vision-language model of
transformers. Nothing is filled in when a file is read: a key that is missing is an error.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

import pydantic
import torch
from pydantic import Field
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedConfig
from typing_extensions import TypedDict

from .errors import InputError
from .files import read_object
from .hub import resolve_folder, take_hub_options
from .image import RELEASED_MEAN, RELEASED_STD, ImagePreprocessor
from .part_configs import (
    REMEDY,
    LayerFromEnd,
    LlamaKeys,
    VisionKeys,
    clip_config,
    given_keys,
    llama_config,
    vision_keys,
)
from .recipe import Recipe
from .text.conversation import get_conversation
from .text.tokens import IMAGE_TOKEN_ID, SegCodebook
from .values import (
    Count,
    DecoderWidth,
    Finite,
    InputSide,
    NonNegativeInt,
    Positive,
    Scales,
    Schema,
    Text,
    TokenGrid,
    TokensPerScale,
    first_problem,
    shorten,
)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MOST_PATCHES = 512  # per side


class TransformersKeys(TypedDict, total=False):
    """What transformers keeps in config.json beside a model's own choices."""

    architectures: list[Text]
    dtype: Literal["float32", "bfloat16", "float16", "float64"]
    transformers_version: Text


_OF_TRANSFORMERS = Schema(TransformersKeys)


class PixelLMConfig(PreTrainedConfig):
    """Architecture of one model (paper: L = ``image_feature_scale_num``, N = ``seg_token_num``).

    Raises:
        InputError: by its constructor, for a value of another type, out of range, or at odds with another one.

    Attributes:
        text_config: of the language model; ``vocab_size`` counts the added tokens.
        vision_config: of the tower, as its own folder has it (native image size).
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
        recipe: how the weights were trained; a record, the network does not read it.
    """

    model_type = "pixellm"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": LlamaConfig, "vision_config": CLIPVisionConfig}
    has_no_defaults_at_init: ClassVar[bool] = True  # transformers 5.17 would make one without arguments
    image_token_id: ClassVar[int] = IMAGE_TOKEN_ID

    text_config: LlamaConfig
    vision_config: CLIPVisionConfig
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
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self, **others: Any) -> None:
        # A part belongs to one configuration: transformers writes into it.
        text, vision = copy.deepcopy(self.text_config), copy.deepcopy(self.vision_config)
        self.text_config = llama_config(text, where="text_config") if isinstance(text, dict) else text
        self.vision_config = clip_config(vision, where="vision_config") if isinstance(vision, dict) else vision
        for name in CHOICES:
            setattr(self, name, _immutable(getattr(self, name)))
        super().__post_init__(**others)
        self.check()

    def check(self) -> None:
        """Hold every choice to its type and range, and to the others.

        Raises:
            InputError: for the first that does not fit.
        """
        for name, expected in _CHECKS.items():
            try:
                expected.validate_python(getattr(self, name), strict=True)
            except pydantic.ValidationError as err:
                place, problem = first_problem(err)
                raise InputError(f"{name}{place} {problem}") from err
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
        vocab_size = self.text_config.vocab_size
        if max(self.seg_token_ids) >= vocab_size:
            raise InputError(
                f"the codebook has id {max(self.seg_token_ids)} but the vocabulary has {vocab_size} rows; "
                "take the tokenizer and config.json from the same folder"
            )

    def _check_input(self) -> None:
        patch, depth = self.patch_size, self.vision_config.num_hidden_layers
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
    def patch_size(self) -> int:
        """Pixels per side of a patch; CLIP's are square."""
        return cast(int, self.vision_config.patch_size)

    @property
    def patch_grid(self) -> int:
        """Patches per side of the tower."""
        return self.image_size // self.patch_size

    @property
    def covered_size(self) -> int:
        """Pixels per side that patches cover, from the top left; CLIP leaves a remainder unseen (512 px: 504)."""
        return self.patch_grid * self.patch_size

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

    @property
    def codebook(self) -> SegCodebook:
        """The S x K segmentation tokens."""
        return SegCodebook(self.image_feature_scale_num, self.seg_token_num, self.seg_token_ids)

    def __eq__(self, other: object) -> bool:
        """Whether both describe the same network, whatever version of transformers wrote them."""
        return isinstance(other, PixelLMConfig) and self._architecture() == other._architecture()

    def _architecture(self) -> dict[str, Any]:
        return {name: value for name, value in self.to_diff_dict().items() if name in (*CHOICES, *self.sub_configs)}

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json holds: every choice, defaults too, so that a later default changes no saved model."""
        whole = self.to_dict()
        text = {name: whole["text_config"][name] for name in LlamaKeys.__annotations__ if name in whole["text_config"]}
        vision = {name: whole["vision_config"][name] for name in VisionKeys.__annotations__}
        return {
            **{
                name: whole[name]
                for name in (*TransformersKeys.__annotations__, *CHOICES)
                if whole.get(name) is not None
            },
            "model_type": self.model_type,
            "image_token_id": self.image_token_id,
            "text_config": {"model_type": "llama", **text},
            "vision_config": {"model_type": "clip_vision_model", **vision},
        }

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The config.json of a folder of ours, here or on the hub.

        Args:
            options: ``subfolder`` and ``revision`` as in transformers, the rest as of ``from_dict``.
        Raises:
            InputError: if it is missing or damaged, or a published folder's, which does not say everything.
        """
        folder = resolve_folder(str(name), **take_hub_options(options))
        return cls.from_dict(read_object(folder / "config.json"), **{"name_or_path": str(folder), **options})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
        """Take a whole config.json of ours apart.

        Args:
            options: choices, which win over the file's, and what transformers takes here: ``name_or_path`` (names the
                file in messages), ``dtype``, ``attn_implementation``, ``return_unused_kwargs``.
        Raises:
            InputError: for a key that is missing or a value that does not fit; nothing is filled in.
        """
        folder = options.get("name_or_path")
        where = str(Path(folder, "config.json")) if folder else "config.json"
        if is_published(config_dict):
            raise InputError(
                f"{where} is of a model that the release published, which does not say everything about itself: "
                "PixelLMForCausalLM.from_pretrained reads the folder, and scripts/convert_to_hf.py converts it"
            )
        given = {name: options.pop(name) for name in CHOICES if name in options}
        missing = sorted({*CHOICES, "vision_config"} - set(config_dict) - set(given))
        if missing:
            raise InputError(f"{where} lacks {', '.join(missing)}. {REMEDY}")
        try:
            return super().from_dict(
                {
                    **_OF_TRANSFORMERS.check(given_keys(config_dict), where=where, remedy=REMEDY),
                    **{name: config_dict[name] for name in CHOICES if name in config_dict},
                    # Folders from before there was a text_config have its keys at the top.
                    "text_config": llama_config(config_dict.get("text_config", config_dict), where=where),
                    "vision_config": clip_config(config_dict, where=where),
                    **given,
                },
                **options,
            )
        except InputError as err:
            raise err if str(err).startswith(where) else InputError(f"{where}: {err}. {REMEDY}") from err

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
            text_config=llama_config(base),
            vision_config=clip_config(vision),
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


def is_published(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of the release's layout: LLaVA's keys and PixelLM's in one, and nothing of the tower."""
    return config.get("model_type") != PixelLMConfig.model_type and "vision_config" not in config


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


# The attributes that are no configurations of their own.
CHOICES = tuple(
    member.name
    for member in fields(PixelLMConfig)
    if member.name in PixelLMConfig.__annotations__ and member.name not in PixelLMConfig.sub_configs
)
_HINTS = inspect.get_annotations(PixelLMConfig, eval_str=True)
_CHECKS: dict[str, pydantic.TypeAdapter[Any]] = {name: pydantic.TypeAdapter(_HINTS[name]) for name in CHOICES}
