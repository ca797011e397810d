"""The words of the toy world's tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

from model.text.conversation import get_conversation
from utils.data.small_tokenizer import PROMPT_WORDINGS
from utils.toy_world.questions import vocabulary_text

# The prompts are a few lines beside some thousand names of objects; they would lose every merge.
_PROMPT_REPEATS = 40


def toy_corpus() -> Iterator[str]:
    """Lines that a tokenizer of the toy world learns from."""
    yield from vocabulary_text()
    rendered = get_conversation("llava_v1").render([("\n", "It is")]).text.split("\n")
    for _ in range(_PROMPT_REPEATS):
        yield from rendered
        yield from PROMPT_WORDINGS
