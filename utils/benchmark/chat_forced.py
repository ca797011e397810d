"""Known answers out of random weights, which write no sentences by themselves.

Shapes: A answers, V words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import LlamaTokenizer

from model.asking import AnswerOptions, Picker
from model.decoding import Answer, Reading
from model.PixelLM import PixelLMForCausalLM
from model.predictor import PixelLMPredictor

_WORDS = "I would take the thing in the picture along for a day at the sea because it is the one that I like"


@dataclass(frozen=True)
class ForcedPicker(Picker):
    """Chooses as always, and then takes the token that is known.

    Attributes:
        known: ids of each answer.
    """

    known: tuple[tuple[int, ...], ...]

    def __call__(self, logits: Tensor, answers: Sequence[Answer]) -> list[int]:
        super().__call__(logits, answers)
        return [self.known[answer.row][len(answer.ids)] for answer in answers]


@dataclass(frozen=True)
class ForcedOptions(AnswerOptions):
    """What a user chose, and the answers."""

    known: tuple[tuple[int, ...], ...] = ()

    def picker(self, group: Sequence[int]) -> ForcedPicker:
        return ForcedPicker(**vars(super().picker(group)), known=self.known)


class ForcedPredictor(PixelLMPredictor):
    """Gives known answers to known questions; everything else is computed as for any other.

    Attributes:
        is_writing: the first token of an answer has been chosen, and its last one has not.
    """

    def __init__(self, model: PixelLMForCausalLM, tokenizer: LlamaTokenizer) -> None:
        super().__init__(model, tokenizer)
        self._known: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._asking: list[tuple[int, ...]] = []  # answers to checked questions that are not read yet
        self.is_writing = False

    def teach(self, question: str, *, words: int, targets: int) -> list[int]:
        """Let the answer have so many words, between which token groups stand, and an end mark; returns its ids."""
        vocabulary = self.processor.tokenizer(_WORDS, add_special_tokens=False).input_ids
        places = [max(1, (target + 1) * words // (targets + 1)) for target in range(targets)]
        ids: list[int] = []
        for word in range(words):
            ids += [vocabulary[word % len(vocabulary)], *self.model.codebook.ids * places.count(word + 1)]
        ids.append(self._end_id)
        self._known[self._asked(question)] = tuple(ids)
        return ids

    def parts(self, ids: Sequence[int]) -> list[list[int]]:
        """What is read of an answer in one pass each: words, and whole groups. The end mark is never read."""
        group, parts, place = list(self.model.codebook.ids), [], 0
        while place < len(ids) - 1:
            parts.append(group if ids[place] == group[0] else [ids[place]])
            place += len(parts[-1])
        return parts

    def _asked(self, question: str) -> tuple[int, ...]:
        return tuple(self._words(self.processor.prompt_ids(question)))

    def _checked(self, prompt: list[int]) -> list[int]:
        self._asking.append(self._known[tuple(self._words(prompt))])
        return super()._checked(prompt)

    def _decode(
        self, context: Reading, states: Tensor, lengths: Sequence[int], options: AnswerOptions
    ) -> Iterator[Answer]:
        count = len(lengths)  # of several batches, all prompts are checked before the first one is read
        forced = ForcedOptions(**vars(options), known=tuple(self._asking[:count]))
        del self._asking[:count]
        self.is_writing = False
        try:
            for answer in super()._decode(context, states, lengths, forced):
                self.is_writing = True
                yield answer
        finally:
            self.is_writing = False
