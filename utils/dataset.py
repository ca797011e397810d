"""The import names of the release. The names are kept; most of the arguments are not.

- ``HybridDataset(base_image_dir, tokenizer, ...)`` takes opened sources, their rates, an encoder and a seed. Call
  ``Mixture(*build_train_sources(options), encoder, seed)`` instead.
- ``ValDataset(base_image_dir, tokenizer, ...)`` takes one opened source and an encoder. Call
  ``ValDataset(build_val_source(dataset_dir, name), encoder)`` instead.
- ``collate_fn(batch, tokenizer, ...)`` takes the released arguments, but ``Sample`` objects instead of tuples, and
  returns a ``Batch`` instead of a dict. ``Collator(config, pad_token_id)`` does the same, and lays the
  conversations out for the language model.

``Mixture`` and ``ValDataset`` are in ``utils.data.mixture``, ``build_train_sources`` and ``build_val_source`` in
``utils.data.registry``, ``DataOptions`` (``options``) in ``utils.data.options``, ``Encoder`` in ``utils.data.encode``
and ``Collator`` in ``utils.data.collate``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import LlamaTokenizer

from model.structures import Batch
from model.text.tokens import SegCodebook
from utils.data.collate import collate
from utils.data.encode import Sample
from utils.data.mixture import Mixture
from utils.data.mixture import ValDataset as _ValDataset

__all__ = ["HybridDataset", "ValDataset", "collate_fn"]


class HybridDataset(Mixture):
    """``utils.data.mixture.Mixture`` under its released name.

    It takes ``(sources, rates, encoder, seed)``. The release opened the datasets itself, drew samples from the global
    random state and returned tuples; here a sample is a function of (seed, index) and a ``Sample`` object.

    Raises:
        TypeError: if it is called with the released arguments.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _refuse_released("HybridDataset", "Mixture(*build_train_sources(options), encoder, seed)", args, kwargs)
        super().__init__(*args, **kwargs)


class ValDataset(_ValDataset):
    """``utils.data.mixture.ValDataset`` under its released import path.

    It takes ``(source, encoder)``. The release opened the set that ``val_dataset`` names itself.

    Raises:
        TypeError: if it is called with the released arguments.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _refuse_released("ValDataset", "ValDataset(build_val_source(dataset_dir, name), encoder)", args, kwargs)
        super().__init__(*args, **kwargs)


def _refuse_released(name: str, instead: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The released classes begin with ``base_image_dir``, a path; these ones never take a path."""
    if "base_image_dir" in kwargs or (args and isinstance(args[0], (str, Path))):
        raise TypeError(f"{name} does not take the arguments of the release; call {instead}, see utils/dataset.py")


def collate_fn(
    batch: Sequence[Sample],
    tokenizer: LlamaTokenizer | None = None,
    conv_type: str = "llava_v1",
    use_mm_start_end: bool = True,
    local_rank: int = -1,
) -> Batch:
    """Put samples together with the released arguments.

    Args:
        batch: samples of ``HybridDataset`` or ``ValDataset``.
        tokenizer: needed: the one that the samples were encoded with. It says how to pad and which ids are [SEG]
            tokens.
        conv_type, use_mm_start_end, local_rank: without effect. The samples are encoded already, by an ``Encoder``
            whose configuration decides the template and the image marks.
    Raises:
        TypeError: if the tokenizer is missing or has no [SEG] tokens, or the samples are tuples, as in the release.
    """
    if tokenizer is None:
        raise TypeError("collate_fn needs tokenizer=...; without one, call utils.data.collate.Collator")
    if not all(isinstance(sample, Sample) for sample in batch):
        raise TypeError("collate_fn takes Sample objects of utils.data.encode.Encoder, not the tuples of the release")
    seg_ids = sorted(id_ for text, id_ in tokenizer.get_added_vocab().items() if re.fullmatch(r"\[SEG\d*\]", text))
    if not seg_ids:
        raise TypeError("the tokenizer has no [SEG] tokens; add them with model.text.tokenizer.add_codebook")
    pad_token_id = tokenizer.pad_token_id
    if not isinstance(pad_token_id, int):
        raise TypeError("the tokenizer has no pad token; load it with model.text.tokenizer.load_tokenizer")
    # How the ids divide into scales does not matter here: a group is all of them in order.
    return collate(batch, SegCodebook(1, len(seg_ids), tuple(seg_ids)), pad_token_id)
