"""How weights came to be: a record that travels with a model in its config.json, and what its model card is made of.

It is written by training (``utils/training/recipe.py``) and by what reads published folders. The network does not read
it, and a folder of an earlier version has fewer keys.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from typing_extensions import TypedDict

from .values import Count, NonNegative, Positive, Share, Text

# How published models were trained where paper and release differ, and no other key of config.json says so.
RECIPE_OF_PUBLISHED_WEIGHTS = {
    "refine_alpha": 1.0,
    "loss_normalization": "local",
    "trained_set": "released",
    "projector_init": "fresh",
    "query_init": "released",
}

# What is known about the terms of the names in docs/weights.md.
_LLAMA = "made from LLaMA, whose license holds; see the base"
_LLAMA_2 = "made from Llama 2, whose license holds; see the base"
_CLIP = "MIT, says the repository of CLIP"
TERMS_OF_BASES = {
    "mmaaz60/LLaVA-7B-Lightening-v1-1": _LLAMA,
    "liuhaotian/LLaVA-Lightning-7B-delta-v1-1": _LLAMA,
    "liuhaotian/llava-llama-2-13b-chat-lightning-preview": _LLAMA_2,
    "openai/clip-vit-large-patch14-336": _CLIP,
    "openai/clip-vit-large-patch14": _CLIP,
}


class DataPart(TypedDict):
    """One part of the mixture.

    Attributes:
        name: family and part, such as ``refer_seg: refcoco``.
        share: of the samples; None if every sample was shown once per epoch.
    """

    name: Text
    share: Share | None


class DataTerms(TypedDict):
    """One download of the data: what it is called, where it comes from, what its makers say about its use."""

    title: Text
    source: Text
    license: Text


class Lora(TypedDict):
    """Of the language model; ``layers`` are the names of its linear layers."""

    rank: Count
    alpha: Count
    layers: list[Text]


class Stage(TypedDict, total=False):
    """One training run.

    Attributes:
        base, init_from: a LLaVA base, or the merged model that the run started from in place of it. A name on the hub
            (``owner/repository``), or that of a folder; never a path.
        vision_tower: likewise.
        updates: that the weights have seen; only a merge of a checkpoint knows.
        updates_per_epoch: None if every sample was shown once per epoch.
        images_per_update: of all processes.
        base_bits: of the language model under LoRA, where it was quantized.
        code: version of this code.
    """

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    release_recipe: bool
    refine_alpha: NonNegative
    loss_normalization: Text
    trained_set: Text
    projector_init: Text
    query_init: Text
    base: Text
    init_from: Text
    vision_tower: Text
    data: list[DataPart]
    data_terms: list[DataTerms]
    updates: Count
    epochs: Count
    updates_per_epoch: Count | None
    images_per_update: Count
    lora: Lora
    base_bits: Count
    precision: Literal["fp32", "bf16", "fp16"]
    optimizer: Text
    lr: Positive
    muon_lr: Positive
    code: Text


class Recipe(Stage, total=False):
    """The last run, and with ``init_from`` those before it, latest first."""

    earlier: list[Stage]
