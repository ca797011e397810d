"""Chat on a GPU: the answer of a CPU, and its masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.predictor import PixelLMPredictor

PHOTO = np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def ask(folder, device: torch.device, **options):
    predictor = PixelLMPredictor.from_pretrained(folder, device=device, **options)
    predictor.set_image(PHOTO)
    return predictor.ask("What is it?", max_new_tokens=20, keep_logits=True)


def test_words_and_masks_are_those_of_a_cpu(parrot, device):
    expected, found = (ask(parrot, place) for place in (torch.device("cpu"), device))
    assert found.text == expected.text
    assert len(found.targets) == len(expected.targets) == 1
    mine, theirs = (reply.targets[0].logits.cpu() for reply in (found, expected))
    torch.testing.assert_close(mine, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_say_the_same(parrot, device, precision):
    assert ask(parrot, device, precision=precision).text == ask(parrot, device).text


def test_compiled_passes_say_the_same(parrot, gpu):
    expected, found = (ask(parrot, gpu, compile=compile) for compile in (False, True))
    assert found.text == expected.text
    mine, theirs = (reply.targets[0].logits for reply in (found, expected))
    torch.testing.assert_close(mine, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_model_says_the_same(parrot, device, bits):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    assert ask(parrot, device, precision="bf16", bits=bits).text == ask(parrot, device).text
