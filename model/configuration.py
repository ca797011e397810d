"""PixelLMConfig: every architecture choice in one validated place, saved as config.json.

The file keeps the release's flat layout (LLaMA keys beside ``mm_*`` keys), so published folders and ours are
read by the same function.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPVisionConfig, LlamaConfig

from .errors import InputError
from .image import RELEASED_MEAN, RELEASED_STD, ImagePreprocessor
from .text.conversation import get_conversation
from .text.tokens import SegCodebook

_LLAMA_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "rope_theta", "rope_scaling", "rope_parameters", "attention_bias", "attention_dropout", "mlp_bias",
    "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings",
)  # fmt: skip
_VISION_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size",
    "patch_size", "hidden_act", "layer_norm_eps", "attention_dropout", "projection_dim",
)  # fmt: skip
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Config = TypeVar("Config", LlamaConfig, CLIPVisionConfig)
_REQUIRED_LLAMA = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
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
    vision_tower: str
    seg_token_num: int
    image_feature_scale_num: int
    seg_token_ids: tuple[int, ...]
    image_size: int
    vision_feature_layers: tuple[int, ...]
    image_token_grid: int = 16
    pad_train_clip_images: bool = True
    image_mean: tuple[float, float, float] = RELEASED_MEAN
    image_std: tuple[float, float, float] = RELEASED_STD
    vision_position_resize: str = "correct"
    separate_mm_projector: bool = True
    mm_projector_hidden_dim: int = 2
    out_dim: int = 256
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_ratio: int = 8
    conv_type: str = "llava_v1"
    model_max_length: int = 512
    recipe: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for attribute in fields(self):  # JSON has lists; the dataclass is immutable throughout
            value = getattr(self, attribute.name)
            if isinstance(value, list):
                object.__setattr__(self, attribute.name, tuple(value))
        get_conversation(self.conv_type)
        if not 1 <= self.image_feature_scale_num <= 3:
            raise InputError(f"image_feature_scale_num is {self.image_feature_scale_num}; expected 1, 2 or 3")
        if self.seg_token_num < 1:
            raise InputError(f"seg_token_num is {self.seg_token_num}; expected 1 or more")
        if len(self.seg_token_ids) != self.image_feature_scale_num * self.seg_token_num:
            raise InputError(
                f"{len(self.seg_token_ids)} codebook ids for {self.image_feature_scale_num} scales x "
                f"{self.seg_token_num} tokens; seg_token_num does not belong to this tokenizer"
            )
        vocab_size = self.llama["vocab_size"]
        if max(self.seg_token_ids) >= vocab_size:
            raise InputError(
                f"the codebook has id {max(self.seg_token_ids)} but the vocabulary has {vocab_size} rows; "
                "take the tokenizer and config.json from the same folder"
            )
        if self.image_size < self.vision["patch_size"]:
            raise InputError(
                f"image_size is {self.image_size}; expected at least the tower's patch size {self.vision['patch_size']}"
            )
        if self.out_dim % (2 * self.decoder_heads):
            raise InputError(f"out_dim is {self.out_dim}; expected a multiple of {2 * self.decoder_heads}")
        if self.vision_position_resize not in ("correct", "released"):
            raise InputError(
                f"vision_position_resize is {self.vision_position_resize!r}; expected 'correct' or 'released'"
            )
        depth = self.vision["num_hidden_layers"]
        for layer in self.vision_feature_layers:
            if not -depth - 1 <= layer <= -1:
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
        return _checked(LlamaConfig, self.llama, of="language model")

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
    def from_dict(cls, flat: dict[str, Any], **overrides: Any) -> PixelLMConfig:
        """Read a folder that we wrote; ``overrides`` win."""
        values = {attribute.name: flat[attribute.name] for attribute in fields(cls) if attribute.name in flat}
        values |= {"llama": llama_keys(flat), "vision": vision_keys(flat["vision_config"])}
        return cls(**values | overrides)

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


def llama_keys(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The LLaMA part of a flat config.

    Raises:
        InputError: if a required key is missing.
    """
    missing = [key for key in _REQUIRED_LLAMA if key not in flat]
    if missing:
        raise InputError(f"config.json lacks {', '.join(missing)}; expected a LLaMA or LLaVA folder")
    return {key: flat[key] for key in _LLAMA_KEYS if flat.get(key) is not None}


def vision_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tower part of a CLIP config.json, which may hold it under ``vision_config``.

    Raises:
        InputError: if a value is not valid.
    """
    config = config.get("vision_config", config)
    given = {key: config[key] for key in _VISION_KEYS if key in config}
    full = _checked(CLIPVisionConfig, given, of="vision tower").to_dict()
    return {key: full[key] for key in _VISION_KEYS}


def _checked(config_type: type[Config], values: dict[str, Any], *, of: str) -> Config:
    """Make a transformers configuration, whose own checks speak of values that come from a file."""
    try:
        return config_type(**values)
    except (StrictDataclassError, TypeError, ValueError) as err:
        reason = str(err).splitlines()[-1].strip()
        raise InputError(f"the {of}'s config.json is not valid: {reason} Copy it again from its source") from err
