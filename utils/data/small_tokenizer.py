"""A small LLaMA tokenizer: of the toy world's base, and in place of one that is not here."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from model.files import write_json

from . import prompts

# What training can ask and answer, names left out.
PROMPT_WORDINGS = (
    *(prompts.SHORT_QUESTIONS + prompts.EXPANDED_SHORT_QUESTIONS),
    *(prompts.MASK_REQUESTS + prompts.EXPANDED_MASK_REQUESTS),
    *(prompts.NAMED_ANSWERS + prompts.BARE_ANSWERS + prompts.SEPARATE_CLAUSES),
    *(prompts.NAMED_JOINT_ANSWERS + prompts.BARE_JOINT_ANSWERS),
)


def train_tokenizer(lines: Iterable[str], *, vocab_size: int = 900) -> bytes:
    """A sentencepiece model that writes these lines in few pieces; the same for one version of sentencepiece.

    Args:
        vocab_size: at most; it includes 256 bytes, with which any text can be spelled.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        hard_vocab_limit=False,
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def write_tokenizer(folder: Path, model: bytes) -> None:
    """Write a tokenizer folder as LLaMA has it."""
    (folder / "tokenizer.model").write_bytes(model)
    specials = {
        name: {"content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for name, text in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
    }
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        **{name: {"__type": "AddedToken", **token} for name, token in specials.items()},
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": 2048,
        "pad_token": None,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    write_json(folder / "special_tokens_map.json", specials)
    write_json(folder / "tokenizer_config.json", config)
