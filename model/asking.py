"""How an answer is to be written: what a user may choose, and the choice of a token by it.

Shapes: A answers, T tokens, V words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from .decoding import Answer
from .errors import InputError


@dataclass(frozen=True)
class AnswerOptions:
    """What a user may choose.

    Attributes:
        max_new_tokens: T at most; a token group that would not fit is not begun.
        max_targets: masks at most; then the answer goes on in words. None for any number.
        temperature: 0 takes the likeliest token; above it, tokens are drawn, from torch's random state.
        top_p: of the likeliest tokens that have this share together; with a temperature.
        repetition_penalty: above 1, makes tokens of the answer less likely; token groups are left alone.
        stop: an answer ends behind any of these texts.
        codebook_fast_path: see ``PixelLMForCausalLM.generate``.
        mask_threshold: probability above which a pixel belongs to a mask.
        keep_logits: fill ``Target.logits``, four bytes for each pixel of the photo and each target.
    """

    max_new_tokens: int = 512
    max_targets: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: Sequence[str] = ()
    codebook_fast_path: bool = True
    mask_threshold: float = 0.5
    keep_logits: bool = False

    def __post_init__(self) -> None:
        for name, value, is_met, expected in (
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "1 or more"),
            ("max_targets", self.max_targets, self.max_targets is None or self.max_targets >= 0, "0 or more, or None"),
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0, and 1 at most"),
            ("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < float("inf"), "more than 0"),
            ("mask_threshold", self.mask_threshold, 0 < self.mask_threshold < 1, "more than 0 and less than 1"),
        ):
            if not is_met:
                raise InputError(f"{name} is {value}; expected {expected}")
        if isinstance(self.stop, str) or not all(self.stop):
            raise InputError(f"stop is {self.stop!r}; expected a list of texts, none of them empty")

    @classmethod
    def of(cls, settings: GenerationConfig, **told: Any) -> Self:
        """What the user told; and of the rest, what is stored with the model, where that says anything.

        Args:
            settings: the model's; transformers' ``stop_strings`` are ``stop``, and without ``do_sample`` the
                temperature is 0.
            told: by the names above.
        Raises:
            InputError: if a value cannot be met.
        """
        temperature = 1.0 if settings.temperature is None else settings.temperature
        stop = settings.stop_strings
        stored = {
            "max_new_tokens": settings.max_new_tokens,
            "max_targets": getattr(settings, "max_targets", None),
            "temperature": temperature if settings.do_sample else None,
            "top_p": settings.top_p,
            "repetition_penalty": settings.repetition_penalty,
            "stop": [stop] if isinstance(stop, str) else stop,
            "codebook_fast_path": getattr(settings, "codebook_fast_path", None),
        }
        return cls(**{name: value for name, value in stored.items() if value is not None} | told)

    @classmethod
    def of_masks(cls, options: Mapping[str, Any]) -> AnswerOptions:
        """Those of masks whose words are given: of ``mask_threshold`` and ``keep_logits``.

        Raises:
            InputError: if there is another, or a value cannot be met.
        """
        idle = sorted(options.keys() - {"mask_threshold", "keep_logits"})
        if idle:
            raise InputError(
                f"{', '.join(idle)} cannot matter where no words are generated; expected mask_threshold or keep_logits"
            )
        return cls(**options)

    def picker(self, group: Sequence[int]) -> Picker:
        """What chooses tokens by these options.

        Args:
            group: ids of a token group, which nothing is to make less likely.
        """
        warpers = LogitsProcessorList()
        if self.temperature > 0:
            warpers.append(TemperatureLogitsWarper(float(self.temperature)))
            if self.top_p < 1:
                warpers.append(TopPLogitsWarper(float(self.top_p)))
        return Picker(warpers, float(self.repetition_penalty), self.temperature > 0, frozenset(group))


@dataclass(frozen=True)
class Picker:
    """Chooses the next token of each answer.

    Attributes:
        warpers: of transformers, which look at logits alone.
        penalty: for tokens that the answer has; 1 for none.
        draws: by chance, or the likeliest.
        spared: tokens without penalty.
    """

    warpers: LogitsProcessorList
    penalty: float
    draws: bool
    spared: frozenset[int]

    def __call__(self, logits: Tensor, answers: Sequence[Answer]) -> list[int]:
        """(A, V) logits of A answers to a token for each."""
        scores = logits.float()
        if self.penalty != 1:
            scores = torch.cat([self._penalized(mine, one) for mine, one in zip(scores.split(1), answers, strict=True)])
        if not self.draws:
            return scores.argmax(-1).tolist()
        no_ids = torch.empty(len(scores), 0, dtype=torch.long, device=scores.device)
        scores = self.warpers(cast(Any, no_ids), cast(Any, scores))
        return torch.multinomial(scores.softmax(-1), 1)[:, 0].tolist()

    def _penalized(self, scores: Tensor, answer: Answer) -> Tensor:
        said = [token for token in answer.ids if token not in self.spared]
        if not said:
            return scores
        ids = torch.tensor([said], device=scores.device)
        return RepetitionPenaltyLogitsProcessor(self.penalty)(cast(Any, ids), cast(Any, scores))
