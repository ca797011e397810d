"""A small LLaMA tokenizer that writes the words of the toy world and of its prompts in few pieces."""

import io
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from model.files import write_json
from model.text.conversation import get_conversation
from utils.data import prompts

from .questions import vocabulary_text

VOCAB_SIZE = 900
_PROMPT_WORDINGS = (
    *(prompts.SHORT_QUESTIONS + prompts.EXPANDED_SHORT_QUESTIONS),
    *(prompts.MASK_REQUESTS + prompts.EXPANDED_MASK_REQUESTS),
    *(prompts.NAMED_ANSWERS + prompts.BARE_ANSWERS + prompts.SEPARATE_CLAUSES),
    *(prompts.NAMED_JOINT_ANSWERS + prompts.BARE_JOINT_ANSWERS),
)
# The prompts are a few lines beside some thousand names of objects; they would lose every merge.
_PROMPT_REPEATS = 40


def _corpus() -> Iterator[str]:
    yield from vocabulary_text()
    rendered = get_conversation("llava_v1").render([("\n", "It is")]).text.split("\n")
    for _ in range(_PROMPT_REPEATS):
        yield from rendered
        yield from _PROMPT_WORDINGS


def train_tokenizer() -> bytes:
    """A sentencepiece model of the toy world's words; the same for one version of sentencepiece."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_corpus(),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
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
