"""Conversations -> the rows of tokens that the language model reads.

Either a row for each conversation, or rows in which the conversations about an image share its prefix: system words and
image are read once, and each conversation goes on from there as a branch, which sees the prefix and itself.

Shapes: Q conversations, R rows, L tokens, B images, P image tokens of an image, T supervised tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .losses import supervised_tokens
from .structures import SHARED, TokenRows
from .text.tokens import IGNORE_INDEX, IMAGE_TOKEN_ID, SegCodebook

_LEAST_FILL = 0.9
_NOTHING = -1  # in place of an image or a patch
_KNOWN_OF_A_TOKEN = ("id", "label", "position", "is visible", "image", "conversation", "patch")
_ID, _LABEL, _POSITION, _IS_VISIBLE, _IMAGE, _CONVERSATION, _PATCH = range(len(_KNOWN_OF_A_TOKEN))


def rows_of_conversations(
    input_ids: Tensor,
    attention_mask: Tensor,
    image_index: Tensor,
    *,
    codebook: SegCodebook,
    patch_mask: Tensor | None,
    position_ids: Tensor | None = None,
    labels: Tensor | None = None,
) -> TokenRows:
    """A row for each conversation, as they come.

    Args:
        input_ids: (Q, L) with ``IMAGE_TOKEN_ID`` at every image token; a conversation has P of them, or none.
        attention_mask: (Q, L), zero on padding.
        image_index: (Q,), the image of each conversation.
        patch_mask: (B, P) bool, false where an image token lies in the padding; None if there are no images.
        position_ids: (Q, L); by default they are counted from the first real token of a row.
        labels: (Q, L), ``IGNORE_INDEX`` where nothing is supervised; None if nothing is.
    Raises:
        ValueError: if a conversation's placeholders do not number P, or there are some and no images.
    """
    is_image, visible = input_ids == IMAGE_TOKEN_ID, attention_mask.bool()
    patches = input_ids.new_zeros(0)
    if patch_mask is not None:
        counts, expected = is_image.sum(1), patch_mask.shape[1]
        if not bool(((counts == expected) | (counts == 0)).all()):
            raise ValueError(f"image placeholders per conversation {counts.tolist()} != {expected} image features")
        first = image_index[counts > 0, None] * expected
        patches = (first + torch.arange(expected, device=first.device)).flatten()
        visible = visible.masked_scatter(is_image, patch_mask.flatten().to(patches.device)[patches])
    elif bool(is_image.any()):
        raise ValueError("input_ids has image placeholders, but no images were given")
    return TokenRows(
        input_ids=input_ids,
        position_ids=positions(attention_mask) if position_ids is None else position_ids,
        visible=visible,
        image_at=is_image.flatten().nonzero()[:, 0],
        patches=patches,
        **_predictions(labels),
        **_groups(
            input_ids,
            image=image_index[:, None].expand_as(input_ids),
            conversation=torch.arange(len(input_ids), device=input_ids.device)[:, None].expand_as(input_ids),
            num_images=0 if patch_mask is None else len(patch_mask),
            codebook=codebook,
        ),
    )


def rows_with_shared_prefixes(
    input_ids: Sequence[Tensor],
    labels: Sequence[Tensor],
    image_index: Sequence[int],
    *,
    codebook: SegCodebook,
    patch_mask: Tensor,
    pad_token_id: int,
) -> TokenRows:
    """Rows of one image or several each, of which real tokens fill nine tenths or more.

    Image tokens in the padding of a photo, which nothing may look at, are left out; the others keep their positions.

    Args:
        input_ids, labels: Q conversations, 1-D, unpadded; otherwise as in ``rows_of_conversations``.
        image_index: the image of each conversation; each image has some.
        patch_mask: (B, P) bool, false where an image token lies in the padding.
    Raises:
        ValueError: if a conversation's placeholders do not number P.
    """
    trees: list[Tensor] = []
    for image, valid in enumerate(patch_mask):
        mine = [number for number, of in enumerate(image_index) if of == image]
        shared = _length_of_prefix([input_ids[number] for number in mine], [labels[number] for number in mine])
        branches = [_describe(input_ids[number], labels[number], valid, image, number) for number in mine]
        prefix = branches[0][:, :shared].clone()
        prefix[_CONVERSATION] = SHARED
        tree = torch.cat([prefix, *(branch[:, shared:] for branch in branches)], 1)
        trees.append(tree[:, tree[_IS_VISIBLE] == 1])
    lines = [torch.cat([trees[image] for image in row], 1) for row in divide_into_rows([len(t[0]) for t in trees])]
    padding = torch.tensor([pad_token_id, IGNORE_INDEX, 0, 0, _NOTHING, SHARED, _NOTHING])
    known = padding[:, None, None].repeat(1, len(lines), max(len(line[0]) for line in lines))
    for row, line in enumerate(lines):
        known[:, row, : len(line[0])] = line
    patch = known[_PATCH]
    return TokenRows(
        input_ids=known[_ID],
        position_ids=known[_POSITION],
        visible=known[_IS_VISIBLE].bool(),
        image_at=(patch != _NOTHING).flatten().nonzero()[:, 0],
        patches=patch[patch != _NOTHING],
        image=known[_IMAGE],
        conversation=known[_CONVERSATION],
        **_predictions(known[_LABEL]),
        **_groups(
            known[_ID],
            image=known[_IMAGE],
            conversation=known[_CONVERSATION],
            num_images=len(trees),
            codebook=codebook,
        ),
    )


def positions(attention_mask: Tensor) -> Tensor:
    """(Q, L) mask of real tokens -> (Q, L) positions, counted from the first real one.

    Image tokens in the padding of a photo count like any other, as in the release.
    """
    padding = (attention_mask.cumsum(1) == 0).sum(1, keepdim=True)
    return (torch.arange(attention_mask.shape[1], device=attention_mask.device) - padding).clamp(min=0)


def supervised_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(R, L) labels -> the positions of the T states that predict a supervised token, and these tokens."""
    at = F.pad(supervised_tokens(labels), (0, 1)).flatten().nonzero()[:, 0]
    return at, labels.flatten()[at + 1]


def divide_into_rows(lengths: Sequence[int]) -> list[list[int]]:
    """As many rows as can be filled to nine tenths: in a shorter row, attention computes less in vain.

    Args:
        lengths: of the parts, which stay whole; one or more.
    Returns:
        the parts of each row, in order.
    """
    longest_first = sorted(range(len(lengths)), key=lambda part: -lengths[part])
    for num_rows in range(len(lengths), 1, -1):
        rows: list[list[int]] = [[] for _ in range(num_rows)]
        filled = [0] * num_rows
        for part in longest_first:
            emptiest = filled.index(min(filled))
            rows[emptiest].append(part)
            filled[emptiest] += lengths[part]
        if sum(filled) >= _LEAST_FILL * num_rows * max(filled):
            return sorted(sorted(row) for row in rows)
    return [list(range(len(lengths)))]


def _describe(ids: Tensor, labels: Tensor, valid: Tensor, image: int, conversation: int) -> Tensor:
    """All that is known of the tokens of one conversation, a line for each of ``_KNOWN_OF_A_TOKEN``."""
    is_image, expected = ids == IMAGE_TOKEN_ID, len(valid)
    count = int(is_image.sum())
    if count not in (0, expected):
        raise ValueError(f"conversation {conversation} has {count} image placeholders != {expected} image features")
    known = torch.empty(len(_KNOWN_OF_A_TOKEN), len(ids), dtype=torch.long)
    known[_ID], known[_LABEL], known[_POSITION] = ids, labels, torch.arange(len(ids))
    known[_IS_VISIBLE], known[_IMAGE], known[_CONVERSATION], known[_PATCH] = 1, image, conversation, _NOTHING
    if count:
        known[_IS_VISIBLE, is_image] = valid.long()
        known[_PATCH, is_image] = image * expected + torch.arange(expected)
    return known


def _length_of_prefix(input_ids: Sequence[Tensor], labels: Sequence[Tensor]) -> int:
    """How many first tokens the conversations share.

    The last of them may predict no supervised token: that would be another one in each branch.
    """
    if len(input_ids) == 1:
        return 0
    ends = [len(ids) for ids in input_ids]
    for of_one in labels:
        ends += (of_one != IGNORE_INDEX).nonzero()[:1, 0].tolist()
    length = max(0, min(ends) - 1)
    first = input_ids[0][:length]
    return min(int((ids[:length] == first).long().cumprod(0).sum()) for ids in input_ids)


def _predictions(labels: Tensor | None) -> dict[str, Tensor]:
    return {} if labels is None else dict(zip(("supervised", "targets"), supervised_positions(labels), strict=True))


def _groups(
    ids: Tensor, *, image: Tensor, conversation: Tensor, num_images: int, codebook: SegCodebook
) -> dict[str, Any]:
    """Where complete token groups stand, images in order and each in reading order."""
    row, column = codebook.find_groups(ids)
    order = torch.argsort(image[row, column], stable=True)
    row, column = row[order], column[order]
    of_image = image[row, column]
    return {
        "group_at": row * ids.shape[1] + column,
        "group_image": of_image,
        "group_conversation": conversation[row, column],
        "groups_per_image": torch.bincount(of_image, minlength=num_images).tolist() if num_images else [],
    }
