"""Which activations are kept for the backward pass, and which are computed anew in it, by what memory there is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from model.PixelLM import PixelLMForCausalLM
from model.structures import TokenRows
from utils import dist
from utils.cli.config import RunConfig

from .deepspeed_config import shards_parameters
from .memory import readable
from .start import TrainingModel, set_checkpointing

logger = logging.getLogger(__name__)

MASKS_AT_ONCE = 16
_WORDS_OF_A_TARGET = 4  # beside its token group, in an answer that names many
_PIXELS_OF_A_PHOTO = 2048 * 1536  # larger than those of the datasets that are read
_GAPS = 1.1  # between blocks of memory, and what is smaller than a tensor that is kept
_COUNTED_BLOCKS = 2  # of the language model; the others keep as much as the second


@dataclass(frozen=True)
class Recomputed:
    """What is computed anew in the backward pass.

    Attributes:
        masks_at_once: see ``MaskDecoder``; None keeps what the decoder computes.
        blocks: so many of the language model's blocks, from the first. Their turn in the backward pass comes last, when
            what the others have kept is free again.
    """

    masks_at_once: int | None = None
    blocks: int = 0

    def __str__(self) -> str:
        if self == Recomputed():
            return "all are kept"
        parts = [f"masks are recomputed {self.masks_at_once} at a time"] if self.masks_at_once else []
        parts += [f"{self.blocks} blocks of the language model are recomputed"] if self.blocks else []
        return " and ".join(parts)

    def apply(self, network: PixelLMForCausalLM) -> None:
        """Tell the network; it may be wrapped by LoRA and DeepSpeed."""
        set_checkpointing(network.model, enabled=self.blocks > 0)
        for block in network.model.layers[self.blocks :]:
            block.gradient_checkpointing = False  # pyright: ignore[reportArgumentType]
        network.model.mask_decoder.recomputed_at_once = self.masks_at_once


@dataclass(frozen=True)
class LargestPass:
    """The largest forward pass that the flags allow.

    Attributes:
        images, conversations, masks: all of the pass.
        words: of a conversation, beside the image.
    """

    images: int
    conversations: int
    masks: int
    words: int

    @classmethod
    def of(cls, run: RunConfig, network: PixelLMForCausalLM) -> LargestPass:
        config, images = network.config, run.batch_size
        conversations = images * run.num_classes_per_sample
        words = max(1, run.model_max_length - config.num_image_tokens)
        of_a_conversation = words // (config.codebook.size + _WORDS_OF_A_TARGET)
        return cls(images, conversations, conversations * max(1, of_a_conversation), words)

    def rows(self, network: PixelLMForCausalLM, *, shared_prefix: bool, device: torch.device) -> TokenRows:
        """Its rows; the numbers in them mean nothing."""
        num_image_tokens = network.config.num_image_tokens
        num_rows = self.images if shared_prefix else self.conversations
        branches = self.conversations // num_rows
        length = num_image_tokens + branches * self.words

        def numbers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        return TokenRows(
            input_ids=numbers(num_rows, length),
            position_ids=numbers(num_rows, length),
            visible=numbers(num_rows, length).bool(),
            image_at=numbers(num_rows * num_image_tokens),
            patches=numbers(num_rows * num_image_tokens),
            group_at=numbers(self.masks),
            group_image=numbers(self.masks),
            group_conversation=numbers(self.masks),
            groups_per_image=[self.masks // self.images] * self.images,
            supervised=numbers(self.conversations * self.words),
            targets=numbers(self.conversations * self.words),
            image=numbers(
                num_rows, length
            ),  # so that the attention mask is a whole one, as for rows of several lengths
            conversation=numbers(num_rows, length),
        )


@dataclass(frozen=True)
class Kept:
    """What one forward pass keeps for the backward pass, in bytes.

    Attributes:
        blocks: by each of the language model's blocks, if it is not recomputed.
        block_input: by one that is.
        rest: all other.
        largest: of single tensors.
    """

    blocks: tuple[int, ...]
    block_input: int
    rest: int
    largest: int

    def total(self, recomputed_blocks: int) -> int:
        """What a pass takes, with the gradients on their way through the largest tensors."""
        kept = self.rest + sum(self.blocks[recomputed_blocks:]) + recomputed_blocks * self.block_input
        if recomputed_blocks:
            kept += max(self.blocks)  # one of them at a time takes it again
        return int(_GAPS * kept) + 2 * self.largest


def settle_activations(run: RunConfig, training: TrainingModel, settings: dict[str, Any], *, free: int) -> None:
    """Do what ``--activation_checkpointing`` says, and say it in one line; every process does the same.

    Under ZeRO-3 masks are not decoded in blocks: every process has to run the same layers there, and another one may
    have more masks.

    Args:
        settings: of DeepSpeed.
        free: what this process has for activations, in bytes.
    """
    network, masks_too = training.network, not shards_parameters(settings)
    free, num_blocks = min(dist.gather_objects(free)), len(network.model.layers)
    if run.recomputation != "auto":
        everything = Recomputed(MASKS_AT_ONCE if masks_too else None, num_blocks)
        chosen = everything if run.recomputation == "always" else Recomputed()
        logger.info("activations: %s (--activation_checkpointing %s)", chosen, run.recomputation)
    else:
        largest = LargestPass.of(run, network)

        def count(masks_at_once: int | None) -> Kept:
            return count_kept(
                largest, training.wrapped, network, shared_prefix=run.shared_prefix, masks_at_once=masks_at_once
            )

        chosen, takes = choose(count, num_blocks=num_blocks, masks_too=masks_too, free=free)
        logger.info(
            "activations: %s; with that, a pass takes up to %s of %s that are free (an estimate, for %d images, %d "
            "conversations and %d masks)",
            chosen, readable(takes), readable(free), largest.images, largest.conversations, largest.masks,
        )  # fmt: skip
        if takes > free:
            logger.warning("the largest pass may not fit into memory: a smaller --batch_size takes less")
    chosen.apply(network)


def choose(
    count: Callable[[int | None], Kept], *, num_blocks: int, masks_too: bool, free: int
) -> tuple[Recomputed, int]:
    """As little recomputed as fits, what costs least first: nothing, then masks, then one block after the other.

    Args:
        count: what is kept with so many masks at once.
        masks_too: whether they may be decoded in blocks.
    Returns:
        what is recomputed (everything, if nothing fits) and what a pass takes with it.
    """
    kept, masks_at_once = count(None), None
    if masks_too and kept.total(0) > free:
        masks_at_once = MASKS_AT_ONCE
        kept = count(masks_at_once)
    blocks = next((number for number in range(num_blocks) if kept.total(number) <= free), num_blocks)
    return Recomputed(masks_at_once, blocks), kept.total(blocks)


def count_kept(
    largest: LargestPass,
    wrapped: nn.Module,
    network: PixelLMForCausalLM,
    *,
    shared_prefix: bool,
    masks_at_once: int | None,
) -> Kept:
    """Count it by a forward pass of tensors that have shapes and no numbers, through the network itself.

    The tower keeps nothing, and blocks of the language model are alike: both are spared.
    """
    num_blocks, decoder = len(network.model.layers), network.model.mask_decoder
    before = decoder.recomputed_at_once
    with _short(wrapped, network):
        decoder.recomputed_at_once = masks_at_once
        counter, block_input = _count(largest, wrapped, network, shared_prefix=shared_prefix)
    decoder.recomputed_at_once = before
    *blocks, rest = counter.by_block
    blocks += blocks[-1:] * (num_blocks - len(blocks))
    true_masks = largest.masks * _PIXELS_OF_A_PHOTO
    return Kept(tuple(blocks), block_input, rest + true_masks, counter.largest)


class _NoTower(nn.Module):
    """Stands for the tower, whose results alone are kept."""

    def __init__(self, network: PixelLMForCausalLM) -> None:
        super().__init__()
        config = network.config
        self.shape = config.image_feature_scale_num, config.patch_grid**2, config.vision_config.hidden_size

    def forward(self, pixel_values: Tensor, valid_hw: Tensor) -> Tensor:
        del valid_hw
        scales, patches, width = self.shape
        return pixel_values.new_zeros(scales, len(pixel_values), patches, width)


@contextmanager
def _short(wrapped: nn.Module, network: PixelLMForCausalLM) -> Iterator[None]:
    """The network in training, without its tower, with few blocks, and with attention that computes shapes alone."""
    model, was_training = network.model, wrapped.training
    tower, blocks, attention = model.vision_tower, model.layers, model.config._attn_implementation
    try:
        model.vision_tower = _NoTower(network)  # pyright: ignore[reportAttributeAccessIssue]
        model.layers = nn.ModuleList(list(blocks)[:_COUNTED_BLOCKS])
        if attention != "eager":
            model.config._attn_implementation = "sdpa"  # which keeps as much as the other fused ones
        wrapped.train()
        yield
    finally:
        model.vision_tower, model.layers, model.config._attn_implementation = tower, blocks, attention
        wrapped.train(was_training)


def _count(
    largest: LargestPass, wrapped: nn.Module, network: PixelLMForCausalLM, *, shared_prefix: bool
) -> tuple[_Counter, int]:
    """What is kept, and the bytes of what a block of the language model reads."""
    config, some_weight = network.config, network.lm_head.weight
    device, blocks = some_weight.device, network.model.layers
    with FakeTensorMode(allow_non_fake_inputs=True) as shapes, ExitStack() as stack:
        # Held, because the mode forgets what nobody holds, and would count a weight anew.
        weights = [shapes.from_tensor(tensor) for tensor in (*wrapped.parameters(), *wrapped.buffers())]
        known = {tensor.untyped_storage()._cdata for tensor in (*weights, *wrapped.parameters(), *wrapped.buffers())}
        counter = _Counter(len(blocks), known)
        for number, block in enumerate(blocks):
            stack.callback(block.register_forward_pre_hook(counter.enter(number)).remove)
            stack.callback(block.register_forward_hook(counter.enter(-1)).remove)
        side = config.image_size
        rows = largest.rows(network, shared_prefix=shared_prefix, device=device)
        with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda tensor: tensor):
            output = wrapped(
                pixel_values=torch.zeros(largest.images, 3, side, side, dtype=some_weight.dtype, device=device),
                valid_hw=torch.zeros(largest.images, 2, dtype=torch.long),
                rows=rows,
            )
        hidden = output.last_hidden_state
        del weights
        return counter, hidden.numel() * hidden.element_size()


class _Counter:
    """Bytes of the tensors that autograd keeps, by the block that was running; what shares memory counts once."""

    def __init__(self, num_blocks: int, known: set[int]) -> None:
        self.by_block, self.largest = [0] * (num_blocks + 1), 0  # the last one is for all other
        self._running, self._known, self._held = -1, known, list[Any]()

    def enter(self, block: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._running = block

        return hook

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self._held.append(storage)  # so that no other one gets its address
            self.by_block[self._running] += storage.nbytes()
            self.largest = max(self.largest, storage.nbytes())
        return tensor
