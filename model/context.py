"""What the language model has read: keys and values of tokens, kept where they are while answers go on.

Shapes: Q rows, L tokens read so far, n tokens of a row in a pass, T of all rows, D language-model width, d of a head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_LEAST_ROOM = 128  # tokens
_ATTENTION_OF_PARTS = "sdpa_of_parts"


@dataclass(frozen=True)
class Parts:
    """Where the tokens of a pass belong that has no gaps: all parts stand one behind the other.

    Attributes:
        row, column: (T,) of each token.
        count, width: Q and n.
    """

    row: Tensor
    column: Tensor
    count: int
    width: int

    def spread(self, x: Tensor) -> Tensor:
        """(1, heads, T, d) to (Q, heads, n, d), zero in the gaps."""
        spread = x.new_zeros(self.count, x.shape[1], self.width, x.shape[3])
        spread[self.row, :, self.column] = x[0].transpose(0, 1)
        return spread


def _attend_in_parts(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, parts: Parts, **options: Any
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it: (1, heads, T, d) to (1, T, heads, d), by rows."""
    found, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, parts.spread(query), key, value, mask, **options)
    return found[parts.row, parts.column][None], None


ALL_ATTENTION_FUNCTIONS.register(_ATTENTION_OF_PARTS, _attend_in_parts)


class RoomyLayer(DynamicLayer):
    """As transformers' own, but a token is written behind those before it, where its layer copies all of them."""

    keys: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    values: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    parts: Parts | None = None  # of the present pass, if it has no gaps

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Add (Q, heads, n, d) of both, or (1, heads, T, d) in parts; returns all, as views of what is kept."""
        if self.parts is not None:
            key_states, value_states = self.parts.spread(key_states), self.parts.spread(value_states)
        count, num_new = key_states.shape[0], key_states.shape[-2]
        if not self.is_initialized:
            self._make_room(key_states[:, :, :0], value_states[:, :, :0], num_new)
        before = self.get_seq_length()
        after = before + num_new
        if after > self._room[0].shape[-2]:
            old = self.keys, self.values
            self._make_room(*old, num_new)
            for mine, copied in zip((self.keys, self.values), old, strict=True):
                mine.copy_(copied)
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:count, :, before:after] = new
        self.keys, self.values = (room[:count, :, :after] for room in self._room)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return 0 if not self.is_initialized else self.keys.shape[-2]

    def copy_rows(self, other: RoomyLayer, rows: Tensor, *, length: int | None = None) -> None:
        """Begin with these rows of another layer, or with so many of their tokens."""
        keys, values = other.keys[:, :, :length], other.values[:, :, :length]
        self._make_room(keys[:1].expand(len(rows), -1, -1, -1), values[:1].expand(len(rows), -1, -1, -1))
        for mine, its in zip((self.keys, self.values), (keys, values), strict=True):
            torch.index_select(its, 0, rows.to(its.device), out=mine)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Forget all but these rows; what stays in its place is not copied."""
        places = [(place, row) for place, row in enumerate(rows) if place != row]
        if places:
            to, of = torch.tensor(places, device=self.keys.device).unbind(1)
            self.keys[to], self.values[to] = self.keys[of], self.values[of]
        self.keys, self.values = self.keys[: len(rows)], self.values[: len(rows)]

    def join(self, other: RoomyLayer, mine: Tensor, its: Tensor) -> None:
        """Take in the rows of another layer.

        Args:
            mine: (Q, L), its: (P, L), which token of each row stands where from now on.
        """
        old = (self.keys, other.keys), (self.values, other.values)
        like_all = [one[:1, :, :1].expand(len(mine) + len(its), -1, mine.shape[1], -1) for _, one in old]
        self._make_room(like_all[0], like_all[1])
        for joined, halves in zip((self.keys, self.values), old, strict=True):
            for rows, half, order in zip((slice(len(mine)), slice(len(mine), None)), halves, (mine, its), strict=True):
                places = order.to(half.device)[:, None, :, None].expand(-1, half.shape[1], -1, half.shape[3])
                joined[rows] = half.gather(2, places)

    def _make_room(self, keys: Tensor, values: Tensor, num_new: int = 0) -> None:
        """For as many tokens, of which nothing is copied, and for others behind: those are copied seldom."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        length = keys.shape[-2]
        shape = (*keys.shape[:2], length + num_new + max(_LEAST_ROOM, length // 2), keys.shape[-1])
        self._room = keys.new_empty(shape), values.new_empty(shape)
        self.keys, self.values = (room[:, :, :length] for room in self._room)


class Context:
    """Rows of tokens that the language model has read, each of which goes on by as many tokens as it likes.

    A pass is as wide as the longest part that a row gets. Before the parts of other rows stand gaps, which nothing
    sees. On a CPU they are left out of all products but those of attention; a GPU multiplies them while it waits for
    weights.

    Args:
        language_model: takes embeddings, mask, positions and cache, as ``LlamaModel`` does.
        num_layers: of it.
    """

    def __init__(self, language_model: Callable[..., Any], *, num_layers: int) -> None:
        self._language_model = language_model
        self.layers = [RoomyLayer() for _ in range(num_layers)]
        self._cache = Cache(layers=cast(Any, self.layers))
        self._seen: Tensor | None = None  # (Q, L) bool; None while there is no gap
        self._next: Tensor | None = None  # (Q,), the position of each row's next token

    @property
    def length(self) -> int:
        """L, gaps included."""
        return self._cache.get_seq_length()

    @property
    def next_position(self) -> int:
        """Of the first row's next token."""
        assert self._next is not None, "nothing was read"
        return int(self._next[0])

    def read(self, embeds: Tensor, is_token: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Go on by a part of each row.

        Args:
            embeds: (Q, n, D); a shorter part stands at the end.
            is_token: (Q, n) bool, false in the gaps; None if there are none.
            positions: (Q, n); by default each row counts on.
        Returns:
            (Q, n, D), the states behind the tokens; anything in the gaps.
        """
        count, width = embeds.shape[:2]
        if is_token is None:
            ahead = torch.arange(width, device=embeds.device).expand(count, -1)
        else:
            is_token = is_token.to(embeds.device)
            ahead = (is_token.long().cumsum(1) - 1).clamp(min=0)
        if positions is None:
            positions = ahead if self._next is None else self._next[:, None] + ahead
        positions = positions.to(embeds.device)
        self._see(is_token, count, width, embeds.device)
        if is_token is not None and self._leaves_gaps_out(embeds.device):
            states = self._read_parts(embeds, is_token, positions)
        else:
            states = self._pass(embeds, self._seen, positions)
        after = positions[:, -1] + 1
        if is_token is not None and self._next is not None:
            after = torch.where(is_token[:, -1], after, self._next)  # a row that got nothing
        self._next = after
        return states

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone; one that stays in its place costs nothing."""
        assert self._next is not None, "nothing was read"
        for layer in self.layers:
            layer.keep_rows(rows)
        indices = torch.tensor(rows, dtype=torch.long, device=self._next.device)
        self._next = self._next[indices]
        self._seen = None if self._seen is None else self._seen[indices]

    def join(self, other: Context) -> None:
        """Go on with the rows of another context, too, behind one's own.

        Gaps are left out but for those at the start of shorter rows. So it stays as long as the longest row, and what
        was read since rows joined last, however many come and go.
        """
        assert self._next is not None, "nothing was read"
        assert other._next is not None, "nothing was read"
        seen = [one._seen_by_all() for one in (self, other)]
        width = max(int(one.sum(1).max()) for one in seen if len(one))
        # A stable sort moves gaps to the front; rows that are too short for that get some more, of any token.
        orders = [F.pad(one.long().argsort(dim=1, stable=True)[:, -width:], (width, 0))[:, -width:] for one in seen]
        joined = [F.pad(one, (width, 0)).long().sort(dim=1).values[:, -width:].bool() for one in seen]
        for mine, its in zip(self.layers, other.layers, strict=True):
            mine.join(its, *orders)
        self._next = torch.cat([self._next, other._next])
        visible = torch.cat(joined)
        self._seen = None if bool(visible.all()) else visible

    def _seen_by_all(self) -> Tensor:
        """(Q, L) bool, also while there is no gap."""
        assert self._next is not None, "nothing was read"
        if self._seen is not None:
            return self._seen
        return torch.ones(len(self._next), self.length, dtype=torch.bool, device=self._next.device)

    def copy_of(self, rows: Sequence[int], *, length: int | None = None, position: int | None = None) -> Context:
        """These rows, of which one may stand for several; they go on by themselves.

        Args:
            length: so many of their tokens, from the start, without gaps; all by default.
            position: where they go on, if tokens were left out that keep their positions.
        """
        assert self._next is not None, "nothing was read"
        assert length is None or self._seen is None, "rows with gaps begin at different places"
        indices = torch.tensor(rows, device=self._next.device)
        chosen = Context(self._language_model, num_layers=len(self.layers))
        for mine, its in zip(self.layers, chosen.layers, strict=True):
            its.copy_rows(mine, indices, length=length)
        chosen._next = self._next[indices]
        if position is not None:
            chosen._next = torch.full_like(chosen._next, position)
        chosen._seen = None if self._seen is None else self._seen[indices]
        return chosen

    def _pass(self, embeds: Tensor, mask: Tensor | None, positions: Tensor, **options: Any) -> Tensor:
        output = self._language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            **options,
        )
        return output.last_hidden_state

    def _leaves_gaps_out(self, device: torch.device) -> bool:
        return device.type == "cpu" and cast(Any, self._language_model).config._attn_implementation == "sdpa"

    def _read_parts(self, embeds: Tensor, is_token: Tensor, positions: Tensor) -> Tensor:
        """As ``_pass``; states in the gaps are zero."""
        count, width = is_token.shape
        assert self._seen is not None, "there are gaps"
        before = self._seen.shape[1] - width
        sees = self._seen[:, None].repeat(1, width, 1)
        sees[:, :, before:] &= torch.ones(width, width, dtype=torch.bool, device=sees.device).tril()
        sees[:, :, 0] |= ~sees.any(-1)  # softmax needs one; it is that of a gap, which is dropped
        parts = Parts(*is_token.nonzero(as_tuple=True), count=count, width=width)
        with self._in_parts(parts):
            states = self._pass(embeds[is_token][None], sees[:, None], positions[is_token][None], parts=parts)
        spread = states.new_zeros(count, width, states.shape[-1])
        spread[is_token] = states[0]
        return spread

    @contextlib.contextmanager
    def _in_parts(self, parts: Parts) -> Iterator[None]:
        config = cast(Any, self._language_model).config
        try:
            config._attn_implementation = _ATTENTION_OF_PARTS
            for layer in self.layers:
                layer.parts = parts
            yield
        finally:
            config._attn_implementation = "sdpa"
            for layer in self.layers:
                layer.parts = None

    def _see(self, is_token: Tensor | None, count: int, width: int, device: torch.device) -> None:
        if self._seen is None and is_token is None:
            return
        if self._seen is None:
            self._seen = torch.ones(count, self.length, dtype=torch.bool, device=device)
        new = torch.ones(count, width, dtype=torch.bool, device=device) if is_token is None else is_token
        self._seen = torch.cat([self._seen, new], 1)
