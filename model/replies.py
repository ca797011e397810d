"""What a user gets: the words of an answer and a mask for everything that it names.

Shapes: N masks, H, W size of the photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaTokenizer

from .generation import Generated
from .text.tokenizer import decode_released
from .text.tokens import SegCodebook, name_groups


@dataclass
class Target:
    """One object of a reply.

    Attributes:
        phrase: the words of the answer just before the token group.
        token_span: half-open range of the group in ``Reply.output_ids``.
        mask: (H, W) bool at the size of the photo.
        score: mean foreground probability over the mask, 0 when it is empty (the release's score).
        logits: (H, W) float, minus infinity where the network does not see the photo.
    """

    phrase: str
    token_span: tuple[int, int]
    mask: Tensor
    score: float
    logits: Tensor


@dataclass
class Reply:
    """The answer to one question.

    Attributes:
        text: the answer, with its token groups as they were generated.
        output_ids: generated ids, without the prompt.
        targets: the objects, in the order of the text.
        group: one token group as it stands in ``text``.
        reason: why there is no target, or which groups were dropped; None when all is well.
    """

    text: str
    output_ids: list[int]
    targets: list[Target]
    group: str
    reason: str | None = None

    def numbered(self) -> str:
        """The text with each token group replaced by the number of its target, ``[0]`` for the first."""
        return name_groups(self.text, self.group, [f"[{number}]" for number in range(len(self.targets))])


def make_reply(generated: Generated, logits: Tensor, *, codebook: SegCodebook, tokenizer: LlamaTokenizer) -> Reply:
    """Put words and masks together.

    Args:
        logits: (N, H, W), one mask per complete token group, in reading order.
    """
    ids = torch.tensor([generated.ids])
    starts = codebook.find_groups(ids)[1].tolist()
    spans = [(start, start + codebook.size) for start in starts]
    phrases = _phrases(tokenizer, generated.ids, spans)
    targets = [
        Target(phrase, span, of_target > 0, _foreground_score(of_target), of_target)
        for phrase, span, of_target in zip(phrases, spans, logits, strict=True)
    ]
    reason = _reason(generated, num_targets=len(targets), num_stray=codebook.count_stray(ids))
    return Reply(_answer_text(tokenizer, generated.ids), generated.ids, targets, codebook.group_text, reason)


def _answer_text(tokenizer: LlamaTokenizer, ids: Sequence[int]) -> str:
    """Words without the end mark, single-spaced."""
    kept = [token_id for token_id in ids if token_id != tokenizer.eos_token_id]
    return " ".join(decode_released(tokenizer, kept).split())


def _phrases(tokenizer: LlamaTokenizer, ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[str]:
    """The words before each group, back to the group before."""
    phrases, previous = [], 0
    for start, end in spans:
        words = _answer_text(tokenizer, ids[previous:start])
        phrases.append(words.strip(" ,.;:").removeprefix("and ").strip())
        previous = end
    return phrases


def _foreground_score(logits: Tensor) -> float:
    """Mean probability of the pixels inside the mask (release), 0 when the mask is empty."""
    inside = logits > 0
    return float((logits.sigmoid() * inside).sum() / inside.sum().clamp(min=1))


def _reason(generated: Generated, *, num_targets: int, num_stray: int) -> str | None:
    reasons = []
    if num_stray:
        reasons.append(f"{num_stray} segmentation tokens stood outside a complete group and were dropped")
    if not generated.finished:
        reasons.append(f"the answer was cut after {len(generated.ids)} tokens")
    if num_targets == 0 and not num_stray:
        reasons.append("the model answered without a segmentation token")
    return "; ".join(reasons) or None
