"""One answer at a time, in passes of fixed shapes, which torch compiles and a GPU plays back as CUDA graphs.

Shapes: n tokens of a pass, W tokens that there is room for, D language-model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, StaticLayer

from .context import Context
from .errors import InputError
from .values import Attention

_LEAST_ROOM = 1024  # tokens; each further room has twice as many


@dataclass
class Places:
    """Where the tokens of the present pass are written, (n,); the layers of a room share it."""

    now: Tensor


class FixedLayer(StaticLayer):
    """As transformers' own, at addresses that stay, but any place can be written at any time."""

    keys: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    values: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, room: int, places: Places) -> None:
        super().__init__(room)
        self._places = places

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Write (1, heads, n, d) of both; returns all W, of which the mask shows what was written."""
        self.keys.index_copy_(2, self._places.now, key_states)
        self.values.index_copy_(2, self._places.now, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 0  # places, positions and mask are told


@dataclass
class Room:
    """Keys and values of W tokens, used by one answer after another."""

    places: Places
    layers: list[FixedLayer]

    def __post_init__(self) -> None:
        self.size = self.layers[0].max_cache_len
        self.cache = Cache(layers=cast(Any, self.layers))

    def fill(self, layers: Sequence[CacheLayerMixin], length: int) -> None:
        """Copy what the first row of other layers begins with."""
        for mine, its in zip(self.layers, layers, strict=True):
            for to, of in ((mine.keys, its.keys), (mine.values, its.values)):
                assert isinstance(of, Tensor), "nothing was read"
                to[:, :, :length] = of[:1, :, :length]


class CompiledPasses:
    """The language model for one answer at a time; its passes over a word and a token group are compiled.

    Args:
        language_model: takes embeddings, mask, positions and cache, as ``LlamaModel`` does.
        group_size: tokens of a token group.
        attention: of the language model.
        backend: of torch.compile.
    Raises:
        InputError: unless attention takes a mask that is told.
    """

    def __init__(
        self,
        language_model: Callable[..., Any],
        *,
        group_size: int,
        attention: Attention,
        device: torch.device,
        backend: str = "inductor",
    ) -> None:
        if attention != "sdpa":
            raise InputError(f"compiled answers need attention by sdpa, not {attention}; leave one of the two out")
        self._language_model = language_model
        self._widths = (1, group_size)  # questions have any length, and each would be compiled anew
        mode = "reduce-overhead" if device.type == "cuda" and backend == "inductor" else None
        self._compiled = torch.compile(self._pass, backend=backend, dynamic=False, mode=mode)
        self._rooms: dict[int, Room] = {}
        self.latest: FixedContext | None = None

    def begin(self, prefix: Context) -> FixedContext:
        """Go on from one row that was read, which is copied. The answer before this one cannot go on any more."""
        room = self.room(prefix.length, like=prefix.layers)
        room.fill(prefix.layers, prefix.length)
        self.latest = FixedContext(self, room, length=prefix.length, position=prefix.next_position)
        return self.latest

    def room(self, least: int, *, like: Sequence[CacheLayerMixin]) -> Room:
        """The smallest for so many tokens.

        Args:
            like: layers whose keys and values have the heads, the type and the device of those to be kept.
        """
        size = _LEAST_ROOM
        while size < least:
            size *= 2
        if size not in self._rooms:
            places = Places(torch.empty(0))
            layers = [FixedLayer(size, places) for _ in like]
            for layer, its in zip(layers, like, strict=True):
                assert isinstance(its.keys, Tensor), "nothing was read"
                assert isinstance(its.values, Tensor), "nothing was read"
                layer.lazy_initialization(its.keys[:1], its.values[:1])
            self._rooms[size] = Room(places, layers)
        return self._rooms[size]

    def read(self, room: Room, embeds: Tensor, *, length: int, position: int) -> Tensor:
        """(1, n, D) behind the tokens that a room has, to states (1, n, D)."""
        ahead = torch.arange(embeds.shape[1], device=embeds.device)
        room.places.now = ahead + length
        if embeds.shape[1] not in self._widths:
            return self._pass(embeds, ahead + position, room)
        torch.compiler.cudagraph_mark_step_begin()
        return self._compiled(embeds, ahead + position, room).clone()  # a graph writes all results to one place

    def _pass(self, embeds: Tensor, positions: Tensor, room: Room) -> Tensor:
        visible = torch.arange(room.size, device=embeds.device) <= room.places.now[:, None]
        output = self._language_model(
            inputs_embeds=embeds,
            attention_mask=visible[None, None],
            position_ids=positions[None],
            past_key_values=room.cache,
            use_cache=True,
        )
        return output.last_hidden_state


class FixedContext:
    """What ``Context`` is, for one row, in a room of ``CompiledPasses``."""

    def __init__(self, passes: CompiledPasses, room: Room, *, length: int, position: int) -> None:
        self._passes, self._room = passes, room
        self.length, self._next = length, position

    def read(self, embeds: Tensor, is_token: Tensor | None = None) -> Tensor:
        """Go on by (1, n, D); returns states of that shape.

        Raises:
            RuntimeError: if another answer was begun since.
        """
        if self._passes.latest is not self:
            raise RuntimeError("another answer was begun, so this one cannot go on; with compile, write one at a time")
        assert is_token is None or bool(is_token.all()), "one row has no gaps"
        after = self.length + embeds.shape[1]
        if after > self._room.size:
            grown = self._passes.room(after, like=self._room.layers)
            grown.fill(self._room.layers, self.length)
            self._room = grown
        states = self._passes.read(self._room, embeds, length=self.length, position=self._next)
        self.length, self._next = after, self._next + embeds.shape[1]
        return states

    def select(self, rows: Sequence[int]) -> None:
        """There is one row, which stays."""
        assert list(rows) == [0]
