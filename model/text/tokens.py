"""Token strings and ids: the tokenizer, the segmentation codebook, and prompts as ids.

Shapes: Q conversations, L tokens, N complete token groups, S scales, K tokens per scale, P image tokens.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import LlamaTokenizer

from model.errors import InputError
from model.values import shorten

from .conversation import IMAGE_MARK, OURS, Rendered

IGNORE_INDEX = -100
IMAGE_TOKEN_ID = -200  # stands in input_ids for one image token; never reaches the embedding table


def seg_strings(scales: int, tokens: int) -> tuple[str, ...]:
    """The codebook in vocabulary order: scale-major, ``[SEG]`` alone when there is only one."""
    size = scales * tokens
    return ("[SEG]",) if size == 1 else tuple(f"[SEG{i}]" for i in range(size))


def seg_text(scales: int, tokens: int) -> str:
    """One token group as it stands in an answer: S*K strings joined by a space."""
    return " ".join(seg_strings(scales, tokens))


@dataclass(frozen=True)
class SegCodebook:
    """The S x K segmentation tokens (paper: C_seg = {c_n^l}) and their vocabulary ids.

    ``ids`` is scale-major: the first K tokens belong to the deepest scale.
    """

    scales: int
    tokens: int
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != self.scales * self.tokens:
            raise InputError(
                f"the codebook has {self.scales} scales x {self.tokens} tokens but {len(self.ids)} ids were given: "
                "scales and tokens per scale do not belong to this tokenizer"
            )

    @property
    def size(self) -> int:
        """S * K."""
        return len(self.ids)

    @property
    def group_text(self) -> str:
        """One token group as it stands in an answer."""
        return seg_text(self.scales, self.tokens)

    def find_groups(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Locate the complete groups of (Q, L) ids in reading order.

        A group is the S*K ids in codebook order without a gap; anything else is a stray token and is skipped.

        Returns:
            query_index (N,) and start (N,), the position of each group's first token.
        """
        if input_ids.shape[1] < self.size:
            empty = input_ids.new_zeros(0)
            return empty, empty
        pattern = torch.tensor(self.ids, device=input_ids.device, dtype=input_ids.dtype)
        windows = input_ids.unfold(1, self.size, 1)  # (Q, L - S*K + 1, S*K)
        query_index, start = (windows == pattern).all(-1).nonzero(as_tuple=True)
        return query_index, start

    def count_stray(self, input_ids: Tensor) -> int:
        """How many codebook tokens of (Q, L) ids stand outside every complete group."""
        pattern = torch.tensor(self.ids, device=input_ids.device, dtype=input_ids.dtype)
        total = int(torch.isin(input_ids, pattern).sum())
        return total - self.size * len(self.find_groups(input_ids)[0])


def name_groups(text: str, group: str, names: Iterable[str]) -> str:
    """Replace each token group of a text by the name of its mask, in reading order.

    Args:
        group: one token group as it stands in the text.
        names: an iterator gives up as many as there are groups; a group without a name stays.
    """
    remaining = iter(names)
    first, *others = text.split(group)
    return first + "".join(next(remaining, group) + piece for piece in others)


def encode_conversation(
    tokenizer: LlamaTokenizer, rendered: Rendered, *, num_image_tokens: int
) -> tuple[list[int], list[int]]:
    """Tokenize a conversation, expand its image placeholder, and label what the assistant says.

    The text is tokenized in the pieces before and after ``<image>``, as the release does.

    Returns:
        input_ids and labels of one length; labels are ``IGNORE_INDEX`` outside the answers.
    Raises:
        InputError: if the text cannot be written as UTF-8.
    """
    try:
        rendered.marked.encode()
    except UnicodeEncodeError as err:
        place = rendered.marked[max(0, err.start - 20) : err.end + 20].replace(OURS, "")
        raise InputError(f"the text is not UTF-8 at {shorten(place)}; write it again in UTF-8") from err
    reader, ids_of_marks = _mark_reader(tokenizer, len(tokenizer))
    ids: list[int] = [cast(int, tokenizer.bos_token_id)]
    labels: list[int] = [IGNORE_INDEX]
    base, ends = 0, [end for _, end in rendered.answer_spans]
    for index, piece in enumerate(rendered.marked.split(OURS + IMAGE_MARK)):
        if index > 0:
            ids += [IMAGE_TOKEN_ID] * num_image_tokens
            labels += [IGNORE_INDEX] * num_image_tokens
            base += len(OURS + IMAGE_MARK)
        encoded = reader.encode(piece, add_special_tokens=False)
        for found, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
            token_id = ids_of_marks.get(found, found)
            ids.append(token_id)
            answer = bisect_right(ends, base + start)  # the first that does not end before the token
            said = answer < len(ends) and rendered.answer_spans[answer][0] < base + end
            labels.append(token_id if said else IGNORE_INDEX)
        base += len(piece)
    return ids, labels


@functools.lru_cache(maxsize=4)
def _mark_reader(tokenizer: LlamaTokenizer, size: int) -> tuple[Tokenizer, dict[int, int]]:
    """The same tokenizer, but its added tokens are found only where ``OURS`` stands before them.

    Args:
        size: of the vocabulary, so that tokens that are added later count.
    Returns:
        the tokenizer, and the id of each added token by the id that it gives.
    """
    backend = tokenizer.backend_tokenizer
    reader = Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer"):
        if getattr(backend, part) is not None:
            setattr(reader, part, getattr(backend, part))
    ids: dict[int, int] = {}
    for token_id, token in tokenizer.added_tokens_decoder.items():
        rules = {rule: getattr(token, rule) for rule in ("single_word", "lstrip", "rstrip", "normalized")}
        reader.add_tokens([AddedToken(OURS + token.content, **rules)])
        ids[cast(int, reader.token_to_id(OURS + token.content))] = token_id
    return reader, ids
