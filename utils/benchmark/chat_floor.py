"""The least that answers take: the arithmetic of the same parts in a flat loop, with nothing around it.

Shapes: T tokens of a pass, D language-model width, L tokens of a context.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaModel

from model.codebook import gather_seg_states
from model.cpu_products import linear
from model.generation import without_gaps
from model.PixelLM import PixelLMForCausalLM
from model.predictor import PixelLMPredictor
from model.rows import rows_of_conversations
from model.structures import SegQueries, VisionFeatures
from model.text.tokens import IMAGE_TOKEN_ID

from .clock import Clock

Parts = list[list[int]]


class FlatLayers:
    """The blocks of a language model as a loop over their weights, and a cache that is there beforehand.

    Each row has a context of its own: no pass reads padding.

    Args:
        model: whose weights are read.
        rows: contexts.
        room: L at most.
    """

    def __init__(self, model: LlamaModel, *, rows: int, room: int) -> None:
        config = cast(Any, model.config)
        self._model, self._heads = model, config.num_attention_heads
        self._lengths = [0] * rows
        like = model.embed_tokens.weight
        shape = (len(model.layers), 2, rows, self._heads, room, config.hidden_size // self._heads)
        self._cache = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self._sees = torch.ones(room, room, dtype=torch.bool, device=like.device).tril()
        longest = config.max_position_embeddings
        cos, sin = model.rotary_emb(like, torch.arange(longest, device=like.device)[None])
        self._cos, self._sin = cos[0, :, None], sin[0, :, None]  # (longest, 1, d)

    def read(self, embeds: Tensor, positions: Tensor, counts: dict[int, int]) -> Tensor:
        """One pass.

        Args:
            embeds: (T, D), tokens of several rows, one row behind the other.
            positions: (T,).
            counts: tokens of each row that has any.
        Returns:
            (T, D), the states behind them.
        """
        cos, sin, x = self._cos[positions], self._sin[positions], embeds
        for layer, cache in zip(cast(Any, self._model.layers), self._cache, strict=True):
            attention, mlp = layer.self_attn, layer.mlp
            normed = _norm(x, layer.input_layernorm)
            queries, keys, values = (
                linear(normed, projection.weight).unflatten(-1, (self._heads, -1))
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            queries, keys = (_rotate(part, cos, sin) for part in (queries, keys))
            seen = self._attend(queries, keys, values, cache, counts)
            x = x + linear(seen, attention.o_proj.weight)
            normed = _norm(x, layer.post_attention_layernorm)
            gated = F.silu(linear(normed, mlp.gate_proj.weight)) * linear(normed, mlp.up_proj.weight)
            x = x + linear(gated, mlp.down_proj.weight)
        for row, count in counts.items():
            self._lengths[row] += count
        return _norm(x, self._model.norm)

    def copy(self, source: int, row: int) -> None:
        """Let a row go on from what another one has read."""
        if row == source:
            return
        length = self._lengths[row] = self._lengths[source]
        self._cache[:, :, row, :, :length] = self._cache[:, :, source, :, :length]

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, cache: Tensor, counts: dict[int, int]) -> Tensor:
        """(T, heads, d) of each and the (2, rows, heads, room, d) of a block -> (T, D)."""
        found = []
        sizes = list(counts.values())
        for row, q, k, v in zip(counts, queries.split(sizes), keys.split(sizes), values.split(sizes), strict=True):
            before, after = self._lengths[row], self._lengths[row] + len(q)
            cache[0, row, :, before:after] = k.transpose(0, 1)
            cache[1, row, :, before:after] = v.transpose(0, 1)
            is_masked = before > 0 and len(q) > 1
            seen = F.scaled_dot_product_attention(
                q.transpose(0, 1)[None], cache[0, row, None, :, :after], cache[1, row, None, :, :after],
                attn_mask=self._sees[before:after, :after] if is_masked else None, is_causal=before == 0,
            )  # fmt: skip
            found.append(seen[0].transpose(0, 1).flatten(1))
        return found[0] if len(found) == 1 else torch.cat(found)


def _norm(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(T, heads, d) with the angles (T, 1, d)."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


@dataclass(frozen=True)
class Asked:
    """One question whose answer is known.

    Attributes:
        photo: the same object where it is the same image.
        parts: of the answer, each read in one pass.
    """

    photo: np.ndarray
    question: str
    parts: Parts


@dataclass(frozen=True)
class _Prompt:
    """A question with its image, and what stands before both.

    Attributes:
        embeds: (L, D); positions: (L,).
        num_system: tokens before the image.
        num_shared: those up to its end.
    """

    embeds: Tensor
    positions: Tensor
    num_system: int
    num_shared: int


class Floor:
    """Runs the parts of answers one after the other, and times each; what stands between them is not timed.

    Args:
        predictor: for its network and its prompts.
    """

    def __init__(self, predictor: PixelLMPredictor, clock: Clock) -> None:
        self._network, self._processor, self._clock = predictor.model, predictor.processor, clock

    @torch.inference_mode()
    def answer(self, requests: Sequence[Asked]) -> list[Tensor]:
        """Answer together; the seconds are added to the parts of the clock.

        Returns:
            (N, H, W) mask logits of each.
        """
        network, clock, device = self._network, self._clock, self._network.device
        photos = list({id(one.photo): one.photo for one in requests}.values())
        images = [next(at for at, photo in enumerate(photos) if photo is one.photo) for one in requests]
        inputs = self._processor.image_processor(photos)
        pixel_values, valid_hw = inputs["pixel_values"].to(device, network.dtype), inputs["valid_hw"].to(device)
        with clock.part("tower"):
            features = network.encode_images(pixel_values, valid_hw)
        prompts = [self._prompt(one.question, image, features) for one, image in zip(requests, images, strict=True)]
        ends = [sum(map(len, one.parts)) for one in requests]
        room = max(len(prompt.embeds) + end for prompt, end in zip(prompts, ends, strict=True))
        layers = FlatLayers(cast(LlamaModel, network.model), rows=len(requests), room=room)
        with clock.part("prefill"):
            states = _read_prompts(layers, prompts, images)
        known = [[state] for state in states]  # of each answer, the states that predicted its tokens
        with clock.part("lm_head"):
            network.lm_head(torch.cat(states))
        self._read_answers(layers, [one.parts for one in requests], prompts, known)
        grouped = [self._grouped(torch.cat(mine), one.parts) for mine, one in zip(known, requests, strict=True)]
        if not any(map(len, grouped)):
            return [torch.empty(0, *photos[image].shape[:2], device=device) for image in images]
        with clock.part("decoder"):
            return self._decode(grouped, images, features, [photo.shape[:2] for photo in photos])

    def _prompt(self, question: str, image: int, features: VisionFeatures) -> _Prompt:
        ids = torch.tensor([self._processor.prompt_ids(question)], device=self._network.device)
        rows = rows_of_conversations(
            ids, torch.ones_like(ids), torch.full_like(ids[:, 0], image),
            codebook=self._network.codebook, patch_mask=features.patch_mask,
        )  # fmt: skip
        embeds, _, positions = without_gaps(self._network.embed(rows, features), rows.visible, rows.position_ids)
        num_words = ids[0].tolist()[::-1].index(IMAGE_TOKEN_ID)
        num_system = ids[0].tolist().index(IMAGE_TOKEN_ID)
        return _Prompt(embeds[0], positions[0], num_system, embeds.shape[1] - num_words)

    def _read_answers(
        self,
        layers: FlatLayers,
        parts: Sequence[list[list[int]]],
        prompts: Sequence[_Prompt],
        known: list[list[Tensor]],
    ) -> None:
        """A pass for the next part of every answer that has one."""
        network, device = self._network, self._network.device
        after = [int(prompt.positions[-1]) + 1 for prompt in prompts]
        for turn in range(max(map(len, parts))):
            mine = {row: of_row[turn] for row, of_row in enumerate(parts) if turn < len(of_row)}
            ids = torch.tensor([token for part in mine.values() for token in part], device=device)
            places = [after[row] + step for row, part in mine.items() for step in range(len(part))]
            positions, counts = torch.tensor(places, device=device), {row: len(part) for row, part in mine.items()}
            with self._clock.part("words" if len(ids) == len(mine) else "groups"):
                states = layers.read(network.model.embed_tokens(ids), positions, counts)
            for row, of_row in zip(mine, states.split(list(counts.values())), strict=True):
                known[row].append(of_row)
                after[row] += counts[row]
            with self._clock.part("lm_head"):
                network.lm_head(torch.cat([known[row][-1][-1:] for row in mine]))

    def _grouped(self, states: Tensor, parts: Parts) -> Tensor:
        """(T, D), what predicted the tokens of an answer -> (N, S, K, D), what predicted those of its groups."""
        starts = [sum(map(len, parts[:place])) for place, part in enumerate(parts) if len(part) > 1]
        group_at = torch.tensor(starts, dtype=torch.long, device=states.device) + 1
        return gather_seg_states(states[None], group_at, codebook=self._network.codebook)

    def _decode(
        self, grouped: list[Tensor], images: list[int], features: VisionFeatures, sizes: list[tuple[int, ...]]
    ) -> list[Tensor]:
        counts = [len(mine) for mine in grouped]
        image_of = torch.tensor(images, device=self._network.device).repeat_interleave(
            torch.tensor(counts, device=self._network.device)
        )
        embeds = self._network.fuse(torch.cat(grouped))
        # As many at once as the predictor decodes: all of a large batch would take longer, for want of cache.
        masks = [
            self._network.decode_masks(features, SegQueries(some, of, of))
            for some, of in zip(embeds.split(32), image_of.split(32), strict=True)
        ]
        of_answers = torch.cat(masks).split(counts)
        return [
            self._processor.on_photo(mine, (sizes[image][0], sizes[image][1]))
            for mine, image in zip(of_answers, images, strict=True)
        ]


def _read_prompts(layers: FlatLayers, prompts: Sequence[_Prompt], images: Sequence[int]) -> list[Tensor]:
    """One pass; what several of them begin with is read once, in a pass of its own.

    Returns:
        (1, D) of each, the state behind its last token.
    """
    first = {image: row for row, image in reversed(list(enumerate(images)))}
    starts = [0] * len(prompts)
    if len(first) > 1:
        starts = [prompts[0].num_system] * len(prompts)
        _read_tokens(layers, {0: (prompts[0], 0, starts[0])})
        for row in first.values():
            layers.copy(0, row)
    if len(first) < len(images):
        _read_tokens(layers, {row: (prompts[row], starts[row], prompts[row].num_shared) for row in first.values()})
        starts = [prompt.num_shared for prompt in prompts]
        for row, image in enumerate(images):
            layers.copy(first[image], row)
    ranges = {row: (prompt, starts[row], len(prompt.embeds)) for row, prompt in enumerate(prompts)}
    return [states[-1:] for states in _read_tokens(layers, ranges)]


def _read_tokens(layers: FlatLayers, ranges: dict[int, tuple[_Prompt, int, int]]) -> Sequence[Tensor]:
    """One pass over tokens begin to end of some prompts -> (end - begin, D) of each."""
    counts = {row: end - begin for row, (_, begin, end) in ranges.items()}
    embeds = torch.cat([prompt.embeds[begin:end] for prompt, begin, end in ranges.values()])
    positions = torch.cat([prompt.positions[begin:end] for prompt, begin, end in ranges.values()])
    return layers.read(embeds, positions, counts).split(list(counts.values()))


def copy_bandwidth(device: torch.device, clock: Clock, *, repeats: int = 5) -> float:
    """Bytes read and written per second by a large copy, the median of some after one to warm up."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**27, dtype=torch.uint8, device=device)
    target, seconds = torch.empty_like(source), []
    for _ in range(1 + repeats):
        started = clock.now()
        target.copy_(source)
        seconds.append(clock.now() - started)
    return 2 * source.numel() / statistics.median(seconds[1:])


def weight_bytes(network: PixelLMForCausalLM) -> tuple[int, int]:
    """Of the weights that a pass of the language model reads: its blocks, and lm_head."""
    model = cast(Any, network.model)
    blocks, head = [*model.layers.parameters(), *model.norm.parameters()], list(network.lm_head.parameters())
    return sum(weight.nbytes for weight in blocks), sum(weight.nbytes for weight in head)
