"""What is read of the config.json of a language model or a CLIP tower, each key with its type and range."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Required, TypeVar

from huggingface_hub.errors import StrictDataclassError
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.activations import ACT2FN
from typing_extensions import TypedDict

from .errors import InputError
from .files import read_object
from .values import Count, InputSide, NonNegative, Positive, Schema, Share, Width

REMEDY = "Copy the file again from its source"
Config = TypeVar("Config", LlamaConfig, CLIPVisionConfig)


def _known_activation(name: str) -> str:
    if name not in ACT2FN:
        raise PydanticCustomError("activation", "an activation of transformers, such as silu or quick_gelu")
    return name


Activation = Annotated[str, AfterValidator(_known_activation)]
Blocks = Annotated[int, Field(ge=1, le=1000)]
VocabularySize = Annotated[int, Field(ge=1, le=2**22)]
TokenId = Annotated[int, Field(ge=-1, lt=2**22)]  # some LLaMA folders have pad_token_id -1
LayerFromEnd = Annotated[int, Field(ge=-1001, le=-1)]


class RopeKeys(TypedDict):
    """``rope_scaling`` or ``rope_parameters``: how positions are stretched."""

    type: NotRequired[Literal["default", "linear", "dynamic"]]
    rope_type: NotRequired[Literal["default", "linear", "dynamic"]]
    factor: NotRequired[Annotated[float, Field(ge=1, le=1e6)]]
    rope_theta: NotRequired[Positive]


class LlamaKeys(TypedDict, total=False):
    """What is read of a language model's config.json."""

    vocab_size: Required[VocabularySize]
    hidden_size: Required[Width]
    intermediate_size: Required[Width]
    num_hidden_layers: Required[Blocks]
    num_attention_heads: Required[Width]
    num_key_value_heads: Width
    head_dim: Width
    hidden_act: Activation
    max_position_embeddings: Count
    initializer_range: NonNegative
    rms_norm_eps: Required[Positive]
    rope_theta: Positive
    rope_scaling: RopeKeys
    rope_parameters: RopeKeys
    attention_bias: bool
    attention_dropout: Share
    mlp_bias: bool
    bos_token_id: TokenId
    eos_token_id: TokenId
    pad_token_id: TokenId
    tie_word_embeddings: bool


class BaseKeys(LlamaKeys, total=False):
    """What is read of a LLaVA base's config.json; ``mm_hidden_size`` is the width of the tower that it learned with."""

    mm_vision_select_layer: LayerFromEnd
    mm_hidden_size: Width


class VisionKeys(TypedDict, total=False):
    """What is read of a CLIP tower's config.json; what may be missing is the same in every published CLIP."""

    hidden_size: Required[Width]
    intermediate_size: Required[Width]
    num_hidden_layers: Required[Blocks]
    num_attention_heads: Required[Width]
    image_size: Required[InputSide]
    patch_size: Required[InputSide]
    num_channels: Annotated[int, Field(ge=3, le=3)]
    hidden_act: Activation
    layer_norm_eps: Positive
    attention_dropout: Share
    projection_dim: Width


_LLAMA, _BASE, _VISION = Schema(LlamaKeys), Schema(BaseKeys), Schema(VisionKeys)


def read_base_config(folder: Path) -> dict[str, Any]:
    """What a LLaVA or LLaMA folder's config.json says about the language model.

    Raises:
        InputError: if it is missing or damaged.
    """
    file = folder / "config.json"
    return _language_keys(_BASE, read_object(file), where=str(file))


def read_tower_config(folder: Path) -> dict[str, Any]:
    """What a CLIP folder's config.json says about the tower.

    Raises:
        InputError: if it is missing or damaged.
    """
    file = folder / "config.json"
    return vision_keys(read_object(file), where=str(file))


def llama_keys(flat: Mapping[str, Any], *, where: str = "config.json") -> dict[str, Any]:
    """The LLaMA part of a flat config.

    Args:
        where: names the file in messages.
    Raises:
        InputError: if a required key is missing, or a value does not fit.
    """
    return _language_keys(_LLAMA, flat, where=where)


def _language_keys(schema: Schema[Any], flat: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    keys = dict(
        schema.check(given_keys(flat), where=where, remedy="Take the config.json of a LLaVA or LLaMA folder as it is")
    )
    heads = keys["num_attention_heads"]
    if heads % keys.get("num_key_value_heads", heads):
        raise InputError(
            f"{where}: num_key_value_heads is {keys['num_key_value_heads']}; expected a divisor of "
            f"num_attention_heads {heads}. {REMEDY}"
        )
    transformers_config(
        LlamaConfig, {name: keys[name] for name in keys if name in LlamaKeys.__annotations__}, where=where
    )
    return keys


def llama_config(flat: Mapping[str, Any], *, where: str = "config.json") -> LlamaConfig:
    """The same as transformers reads it."""
    return transformers_config(LlamaConfig, llama_keys(flat, where=where), where=where)


def clip_config(config: Mapping[str, Any], *, where: str = "config.json") -> CLIPVisionConfig:
    """What ``vision_keys`` finds, as transformers reads it."""
    return transformers_config(CLIPVisionConfig, vision_keys(config, where=where), where=where)


def vision_keys(config: Mapping[str, Any], *, where: str = "config.json") -> dict[str, Any]:
    """The tower part of a CLIP config.json, which may hold it under ``vision_config``.

    Args:
        where: names the file in messages.
    Raises:
        InputError: if a key that tells one CLIP from another is missing, or a value does not fit.
    """
    if "vision_config" in config:
        config, where = config["vision_config"], f"{where}, vision_config"
    given = _VISION.check(given_keys(config), where=where, remedy="Take the config.json of a CLIP folder as it is")
    if given["patch_size"] > given["image_size"]:
        raise InputError(
            f"{where}: patch_size is {given['patch_size']}; expected at most the image_size, {given['image_size']}. "
            f"{REMEDY}"
        )
    full = transformers_config(CLIPVisionConfig, given, where=where).to_dict()
    return {key: full[key] for key in VisionKeys.__annotations__}


def given_keys(config: Any) -> Any:
    """Without the keys that are null, which transformers writes for "not set"."""
    return {key: value for key, value in config.items() if value is not None} if isinstance(config, dict) else config


def transformers_config(config_type: type[Config], values: Mapping[str, Any], *, where: str) -> Config:
    """Make a transformers configuration, whose own checks speak of values that come from a file.

    Args:
        where: names the file in messages.
    Raises:
        InputError: if a value is not valid.
    """
    try:
        return config_type(**values)
    except (StrictDataclassError, KeyError, TypeError, ValueError) as err:
        reason = str(err).splitlines()[-1].strip()
        raise InputError(f"{where} is not valid: {reason} {REMEDY}") from err
