"""A model that is divided between a GPU and the CPU, or whose tower is aside, answers as on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.predictor import PixelLMPredictor

RNG = np.random.default_rng(3)
PHOTOS = [RNG.integers(0, 256, (*hw, 3), dtype=np.uint8) for hw in ((40, 60), (60, 30))]
ASKED = [(PHOTOS[0], "What?"), (PHOTOS[1], "Where is the thing?"), (PHOTOS[0], "Why?")]
LATE = ("model.layers.1", "model.norm", "lm_head", "model.mask_decoder", "model.vision_tower")


def assert_answers_of_a_cpu(folder, predictor: PixelLMPredictor) -> None:
    expected = PixelLMPredictor.from_pretrained(folder, device="cpu").ask_batch(ASKED)
    for mine, theirs in zip(predictor.ask_batch(ASKED), expected, strict=True):
        assert mine.output_ids == theirs.output_ids
        assert len(mine.targets) == len(theirs.targets) == 1
        assert float((mine.targets[0].mask.cpu() == theirs.targets[0].mask).float().mean()) > 0.99


def parts_of(folder) -> list[str]:
    network = PixelLMPredictor.from_pretrained(folder, device="cpu").model
    blocks = [f"model.layers.{number}" for number in range(len(network.model.layers))]
    return [*blocks, *(f"model.{name}" for name, _ in network.model.named_children() if name != "layers"), "lm_head"]


def test_a_model_divided_between_gpu_and_cpu(parrot, device):
    placed = {part: "cpu" if part in LATE else str(device) for part in parts_of(parrot)}
    predictor = PixelLMPredictor.from_pretrained(parrot, device_map=placed)
    assert predictor.model.device.type == device.type
    assert_answers_of_a_cpu(parrot, predictor)


def test_a_model_divided_over_two_gpus(parrot, gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    placed = {part: int(part in LATE) for part in parts_of(parrot)}
    assert_answers_of_a_cpu(parrot, PixelLMPredictor.from_pretrained(parrot, device_map=placed))


def test_the_tower_is_on_the_gpu_only_while_it_sees(parrot, gpu):
    predictor = PixelLMPredictor.from_pretrained(parrot, device=gpu, offload_vision=True)
    tower, seen = predictor.model.model.vision_tower, []
    tower.vision_tower["vision_model"].pre_layrnorm.register_forward_hook(
        lambda *_: seen.append({weight.device.type for weight in tower.parameters()})
    )
    assert_answers_of_a_cpu(parrot, predictor)
    assert seen
    assert all(devices == {"cuda"} for devices in seen)
    assert {weight.device.type for weight in tower.parameters()} == {"cpu"}
    assert predictor.model.device.type == "cuda"
