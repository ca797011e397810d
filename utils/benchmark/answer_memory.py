"""What answering takes on a GPU with a model of a published size: arithmetic on shapes, nothing of that size is loaded.

A GPU holds the weights all the time, and beside them either what reading an image takes, or the language model's cache
and what it or the pixel decoder takes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from model.files import write_text
from model.outputs import check_output_file
from model.PixelLM import PixelLMForCausalLM
from model.sizes import PUBLISHED
from model.structures import SegQueries

from .machine import describe_machine
from .published import published_network, published_run
from .quantization import BITS, memory_of

IMAGE, QUESTION, ANSWER = 40 + 256, 30, 512  # tokens: system words and image, a question, the longest answer
MASKS = 3  # of an answer
PHOTO = 4000 * 3000  # pixels
QUESTIONS = (1, 8)
_ROOM = 1.5  # a cache that grows is made half as large again (model/context.py)
_OF_PIXEL = 4 + 1  # bytes: a float32 logit, and whether it belongs to the mask
_LIBRARIES = 2 * 2**30  # CUDA, kernels, and what the allocator cannot use
_USABLE = 0.98 * 2**30  # of a GB on the box
_GPU = 24
_LEGEND = f"""\
Of one GPU, in GiB (2^30 bytes), at 448 px with 16-bit activations. `blocks` are those of the language model, the only
part that 8 and 4 bits round; `tables` its embedding table and head; `tower` is CLIP; `masks` are projectors, fusion and
decoder. So many questions are answered together, each about a photo of its own, with {MASKS} masks each. `image` is
what the tower takes for its images. `cache` has keys and values of {IMAGE} tokens before each question, kept for
further ones, and again with the {QUESTION} of the question and {ANSWER} of the answer; and room to grow. `reading` is
what a pass over the prompts takes, `decoder` what decoding the masks takes, `photo` the masks at the size of photos of
12 megapixels: logits and bits. These come one after another, so `sum` is the most that is there at once: weights and
image, or weights, cache and the larger of reading and decoder with photo. `aside` is the same with `--offload_vision`,
where the tower is there only while it sees. `fits {_GPU} GB` leaves 2 GiB to libraries and to what the allocator cannot
use, and takes a GB on the box for 0.98 GiB. What a kernel takes while it runs is not counted."""


@dataclass(frozen=True)
class Passing:
    """Bytes that come and go on one GPU, as the legend names them."""

    image: int
    cache: int
    reading: int
    decoder: int
    photo: int


def total(weights: dict[str, int], passing: Passing, *, offload_vision: bool = False) -> int:
    """The most that is there at once.

    Args:
        weights: by part, as ``memory_of`` names them.
    """
    kept = sum(weights.values())
    after = kept - weights["tower"] if offload_vision else kept
    answering = passing.cache + max(passing.reading, passing.decoder + passing.photo)
    return max(kept + passing.image, after + answering)


def benchmark(*, output_md: str) -> None:
    """Print the table.

    Raises:
        InputError: if the file cannot be written.
    """
    if output_md:
        check_output_file(output_md, flag="--output_md")
    report = "\n".join(["Computed from shapes, not measured on a GPU:", "", table(), "", _LEGEND])
    print(report)
    if output_md:
        machine = describe_machine(("torch", "transformers"))
        write_text(Path(output_md), f"# Memory of answers\n\n{machine}\n\n{report}\n")


def table() -> str:
    """One row per model, bits and number of questions, in Markdown."""
    names = ("blocks", "tables", "tower", "masks", "image", "cache", "reading", "decoder", "photo", "sum", "aside")
    lines = [
        f"| Model | Bits | Questions | {' | '.join(names)} | fits {_GPU} GB |",
        "|---|---:|---:|" + "---:|" * len(names) + "---|",
    ]
    for name in PUBLISHED:
        network = published_network(name, published_run(name))
        for questions in QUESTIONS:
            passing = passing_of(network, questions=questions)
            for bits in BITS:
                weights = memory_of(network, bits=bits)
                sums = [total(weights, passing), total(weights, passing, offload_vision=True)]
                sizes = [f"{number / 2**30:.2f}" for number in (*weights.values(), *astuple(passing), *sums)]
                lines.append(f"| {name} | {bits} | {questions} | {' | '.join(sizes)} | {_fits(*sums)} |")
    return "\n".join(lines)


def _fits(whole: int, aside: int) -> str:
    room = _GPU * _USABLE - _LIBRARIES
    return "yes" if whole <= room else "aside" if aside <= room else "no"


def passing_of(network: PixelLMForCausalLM, *, questions: int) -> Passing:
    """What so many questions need, each about a photo of its own.

    Args:
        network: on the meta device, in 16 bits.
    """
    config, count, prompt = network.config, questions * MASKS, IMAGE + QUESTION
    side, width, dtype = config.image_size, config.text_config.hidden_size, network.dtype
    pixels = torch.zeros(questions, 3, side, side, dtype=dtype, device="meta")
    valid_hw = torch.tensor([[side * 3 // 4, side]] * questions)
    embeds = torch.zeros(questions, prompt, width, dtype=dtype, device="meta")
    # Without a mask transformers looks at positions, which the meta device does not have.
    sees = torch.ones(1, 1, prompt, prompt, dtype=torch.bool, device="meta")
    shape = (count, config.image_feature_scale_num, config.seg_token_num, width)
    states = torch.zeros(shape, dtype=dtype, device="meta")
    tokens = questions * (IMAGE + prompt + ANSWER)
    with torch.no_grad():
        features = network.encode_images(pixels, valid_hw)
        image = torch.zeros(count, dtype=torch.long, device="meta")
        return Passing(
            image=peak_of(lambda: network.encode_images(pixels, valid_hw)),
            cache=int(_ROOM * tokens * cache_of_token(network)),
            reading=peak_of(lambda: network.model(inputs_embeds=embeds, attention_mask=sees, use_cache=False)),
            decoder=peak_of(lambda: network.decode_masks(features, SegQueries(network.fuse(states), image, image))),
            photo=count * PHOTO * _OF_PIXEL,
        )


def cache_of_token(network: PixelLMForCausalLM) -> int:
    """Bytes of keys and values of one token."""
    text = network.config.text_config
    width = text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    return text.num_hidden_layers * 2 * width * network.dtype.itemsize


def peak_of(compute: Callable[[], Any]) -> int:
    """Bytes of the tensors that a computation makes, as many as are there at once; works on the meta device."""
    with _Living() as living:
        compute()
    return living.peak


class _Living(TorchDispatchMode):
    """Counts the memory of tensors from the operation that makes it to the end of the last tensor in it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._users: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {self._memory(one) for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)}
        found = func(*args, **(kwargs or {}))
        for one in tree_flatten(found)[0]:
            if isinstance(one, Tensor) and (self._memory(one) in self._users or self._memory(one) not in given):
                self._count(one)
        return found

    def _count(self, made: Tensor) -> None:
        memory, size = self._memory(made), made.untyped_storage().nbytes()
        if memory not in self._users:
            self._users[memory] = 0
            self.now += size
            self.peak = max(self.peak, self.now)
        self._users[memory] += 1
        weakref.finalize(made, self._drop, memory, size)

    def _drop(self, memory: int, size: int) -> None:
        self._users[memory] -= 1
        if not self._users[memory]:
            del self._users[memory]
            self.now -= size

    @staticmethod
    def _memory(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata
