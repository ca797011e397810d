"""Whole updates on a GPU: the same loss in every way of computing them, and that of a CPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("pycocotools", reason="needs pycocotools, as training does")
pytest.importorskip("peft", reason="needs peft, as training does")

from utils.benchmark.train import WAYS, Bench, Measured, measure

ONE = {"images": 1, "conversations": 2, "masks": 1, "photo": (30, 40)}


def test_an_update_is_that_of_a_cpu(gpu, tmp_path):
    losses, weights = [], None
    for place in (torch.device("cpu"), gpu):
        bench = Bench("tiny", **ONE, precision="fp32", device=place, folder=tmp_path)
        if weights is not None:
            bench.wrapped.load_state_dict(weights)
        weights, found = bench.wrapped.state_dict(), Measured()
        bench.update(WAYS[0], found)
        losses += found.losses
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.02)])
def test_every_way_makes_the_same_updates(gpu, tmp_path, precision, tolerance):
    bench = Bench("tiny", **ONE, precision=precision, device=gpu, folder=tmp_path)
    found = measure(bench, WAYS, steps=1)
    assert all(numbers.peaks[0] > 0 for numbers in found.values())
    losses = [numbers.losses[0] for numbers in found.values()]
    assert losses == pytest.approx([losses[0]] * len(WAYS), rel=tolerance)


def test_weights_are_drawn_on_the_gpu_without_a_copy_elsewhere(gpu, tmp_path):
    """In 16 bits, beside tables that positions are turned by; a second copy would show in the peak."""
    torch.cuda.reset_peak_memory_stats(gpu)
    before = torch.cuda.memory_allocated(gpu)
    bench = Bench("mid", **ONE, precision="bf16", device=gpu, folder=tmp_path)
    weights = sum(p.numel() for p in bench.wrapped.parameters())
    copies = sum(p.numel() for p in bench.wrapped.parameters() if p.requires_grad)  # in float32, of the optimizer
    assert all(p.device.type == "cuda" for p in bench.wrapped.parameters())
    assert torch.cuda.max_memory_allocated(gpu) - before < 1.2 * (2 * weights + 4 * copies)
