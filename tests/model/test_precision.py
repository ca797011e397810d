"""``--precision auto``: what a device is made for, and what devices that compute together have in common."""

from __future__ import annotations

import logging

import pytest
import torch

from model.precision import pick_precision, settle_precision
from model.predictor import PixelLMPredictor

CPU = torch.device("cpu")


class OneGpu:
    """In place of torch.cuda, where no GPU is."""

    def __init__(self, name: str, *, has_bf16: bool) -> None:
        self._name, self._has_bf16 = name, has_bf16

    def device(self, device: torch.device) -> OneGpu:
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...

    def get_device_name(self) -> str:
        return self._name

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return self._has_bf16 or including_emulation


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        (OneGpu("A100", has_bf16=True), ("bf16", "A100 computes in bf16")),
        (OneGpu("V100", has_bf16=False), ("fp16", "V100 does not compute in bf16")),
    ],
    ids=["new", "old"],
)
def test_a_gpu_that_only_emulates_bf16_gets_fp16(monkeypatch, gpu, expected):
    monkeypatch.setattr(torch, "cuda", gpu)
    assert pick_precision(torch.device("cuda", 0)) == expected


def test_a_cpu_gets_fp32_but_a_quantized_model_needs_16_bits():
    assert pick_precision(CPU) == ("fp32", "a CPU is slower in 16 bits")
    assert pick_precision(CPU, bits=4)[0] == "bf16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the default device is a GPU")
def test_a_predictor_says_what_it_picked(parrot, caplog):
    with caplog.at_level(logging.INFO):
        predictor = PixelLMPredictor.from_pretrained(parrot, precision="auto")
    assert predictor.model.dtype is torch.float32
    assert "--precision auto: fp32, because a CPU is slower in 16 bits" in caplog.messages


@pytest.mark.parametrize(
    ("others", "expected"),
    [(["bf16", "bf16"], "bf16"), (["bf16", "fp16", "bf16"], "fp16"), (["fp16", "fp32"], "fp32")],
)
def test_the_weakest_of_all_processes_decides(caplog, others, expected):
    with caplog.at_level(logging.INFO):
        found = settle_precision("auto", CPU, agree=lambda mine: [(name, f"{name} it is") for name in others])
    assert found == expected
    assert caplog.messages == [f"--precision auto: {expected}, because {expected} it is"]


def test_what_is_given_is_taken_without_a_word(caplog):
    with caplog.at_level(logging.INFO):
        assert settle_precision("fp16", CPU) == "fp16"
    assert not caplog.messages
    with pytest.raises(ValueError, match="expected one of fp32, fp16, bf16 or auto"):
        settle_precision("fp8", CPU)
