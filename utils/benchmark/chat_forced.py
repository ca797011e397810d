"""Known answers out of random weights, which write no sentences by themselves.

Shapes: A answers, V words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import LlamaTokenizer

from model.asking import AnswerOptions, Picker
from model.decoding import Answer, Begun
from model.PixelLM import PixelLMForCausalLM
from model.predictor import PixelLMPredictor
from model.writing import Writer

_WORDS = "I would take the thing in the picture along for a day at the sea because it is the one that I like"


@dataclass
class ForcedAnswer(Answer):
    """An answer whose tokens are known."""

    known: tuple[int, ...] = ()


@dataclass(frozen=True)
class ForcedPicker(Picker):
    """Chooses as always, and then takes the token that is known."""

    def __call__(self, logits: Tensor, answers: Sequence[Answer]) -> list[int]:
        super().__call__(logits, answers)
        return [answer.known[len(answer.ids)] for answer in answers if isinstance(answer, ForcedAnswer)]


class ForcedOptions(AnswerOptions):
    """What a user chose."""

    def picker(self, group: Sequence[int]) -> ForcedPicker:
        return ForcedPicker(**vars(super().picker(group)))


class ForcedWriter(Writer):
    """Gives known answers to known questions; everything else is computed as for any other.

    Attributes:
        known: the answer to the words of each question.
        is_writing: the first token of an answer has been chosen, and its last one has not.
    """

    def __init__(self, model: PixelLMForCausalLM, tokenizer: LlamaTokenizer) -> None:
        super().__init__(model, tokenizer)
        self.known: dict[tuple[int, ...], tuple[int, ...]] = {}
        self.is_writing = False

    def blank(self, words: Sequence[int], *arguments: Any, **options: Any) -> ForcedAnswer:
        return ForcedAnswer(**vars(super().blank(words, *arguments, **options)), known=self.known[tuple(words)])

    def write(self, begun: Begun, options: AnswerOptions, **others: Any) -> Iterator[Answer]:
        self.is_writing = False
        try:
            for answer in super().write(begun, ForcedOptions(**vars(options)), **others):
                self.is_writing = True
                yield answer
        finally:
            self.is_writing = False


class ForcedPredictor(PixelLMPredictor):
    """A predictor that writes so."""

    writer: ForcedWriter

    def __init__(self, model: PixelLMForCausalLM, tokenizer: LlamaTokenizer, *, compile: bool = False) -> None:
        super().__init__(model, tokenizer, compile=compile)
        self.writer = ForcedWriter(model, tokenizer)

    def teach(self, question: str, *, words: int, targets: int) -> list[int]:
        """Let the answer have so many words, between which token groups stand, and an end mark; returns its ids."""
        vocabulary = self.processor.tokenizer(_WORDS, add_special_tokens=False).input_ids
        places = [max(1, (target + 1) * words // (targets + 1)) for target in range(targets)]
        ids: list[int] = []
        for word in range(words):
            ids += [vocabulary[word % len(vocabulary)], *self.model.codebook.ids * places.count(word + 1)]
        ids.append(self.writer.end_id)
        self.writer.known[tuple(self.writer.words(question))] = tuple(ids)
        return ids

    def parts(self, ids: Sequence[int]) -> list[list[int]]:
        """What is read of an answer in one pass each: words, and whole groups. The end mark is never read."""
        group, parts, place = list(self.model.codebook.ids), [], 0
        while place < len(ids) - 1:
            parts.append(group if ids[place] == group[0] else [ids[place]])
            place += len(parts[-1])
        return parts
