"""A GPU without bf16 answers in fp16: nothing in between is bf16, and nothing is too large for fp16."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from model.pixel_decoder import LayerNorm2d
from model.predictor import PixelLMPredictor

RNG = np.random.default_rng(3)
PHOTOS = [RNG.integers(0, 256, (*hw, 3), dtype=np.uint8) for hw in ((40, 60), (60, 30))]
ASKED = [(PHOTOS[0], "What?"), (PHOTOS[1], "Where is the thing that is in the image?"), (PHOTOS[0], "Why?")]


class Types(TorchDispatchMode):
    """Notes the types of all tensors that operations take and give."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.seen |= {one.dtype for one in tree_flatten((args, kwargs, found))[0] if isinstance(one, torch.Tensor)}
        return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_answer_in_fp16_has_no_bf16_and_no_overflow(parrot, attention):
    predictor = PixelLMPredictor.from_pretrained(parrot, precision="fp16", device="cpu", attn_implementation=attention)
    finite = []
    for module in predictor.model.modules():
        module.register_forward_hook(lambda module, args, given: finite.append(all_finite(given)))
    with Types() as types:
        replies = predictor.ask_batch(ASKED)
        predictor.set_image(PHOTOS[0])
        replies += [predictor.ask("What?"), predictor.ask("And now?", follows=True, temperature=0.05, max_new_tokens=4)]
        replies.append(predictor.segment(PHOTOS[1], ["the thing", "the mask"]))
    assert torch.float16 in types.seen
    assert torch.bfloat16 not in types.seen
    assert finite
    assert all(finite)
    expected = PixelLMPredictor.from_pretrained(parrot, device="cpu").ask_batch(ASKED)
    assert [reply.text for reply in replies[:3]] == [reply.text for reply in expected]
    assert all(len(reply.targets) == 1 for reply in replies[:3])


def all_finite(given: Any) -> bool:
    numbers = [one for one in tree_flatten(given)[0] if isinstance(one, torch.Tensor) and one.is_floating_point()]
    return all(bool(one.isfinite().all()) for one in numbers)


def test_a_norm_takes_features_whose_squares_fp16_does_not_hold():
    norm, features = LayerNorm2d(8), 2000 * torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = norm(features)
    found = norm.half()(features.half())
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected.detach(), atol=5e-3, rtol=0)
