"""A published folder and a published training checkpoint, used by this code, give what the release gave.

Recorded in ../shared/golden/pixellm-tiny; tolerances are those of its README.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import load_with_report, read_weights
from model.image import read_image
from model.predictor import PixelLMPredictor
from model.tokens import IMAGE_TOKEN_ID, decode_released


@pytest.fixture(scope="module")
def golden(shared) -> Path:
    return shared / "golden"


@pytest.fixture(scope="module")
def predictor(golden) -> PixelLMPredictor:
    """The folder says ``clip-vit-tiny-patch14-336`` and does not hold it; it lies beside pixellm-tiny."""
    tower = str(golden / "clip-vit-tiny-patch14-336")
    return PixelLMPredictor.from_pretrained(golden / "pixellm-tiny/hf_model", device="cpu", vision_tower=tower)


def test_the_folder_is_understood(predictor):
    config = predictor.model.pixellm_config
    assert (config.image_feature_scale_num, config.seg_token_num, config.image_size) == (2, 3, 448)
    assert config.seg_token_ids == tuple(range(1200, 1206))
    assert config.num_image_tokens == 256
    assert config.vision_position_resize == "released"


def test_greedy_chat(golden, predictor):
    """Ids and texts identical, masks with IoU of at least 0.999."""
    recorded = json.loads((golden / "pixellm-tiny/chat.json").read_text(encoding="utf-8"))
    arrays = np.load(golden / "pixellm-tiny/chat.npz")
    compared = 0
    for number, case in enumerate(recorded):
        predictor.set_image(read_image(golden / "images" / case["image"]))
        prompt = predictor.prompt_ids(case["question"])
        first = prompt.index(IMAGE_TOKEN_ID)
        assert [*prompt[: first + 1], *prompt[first + 256 :]] == case["input_ids"]
        reply = predictor.ask(case["question"])
        assert case["input_ids"] + reply.output_ids == case["output_ids"]
        shown = [token for token in case["output_ids"] if token != IMAGE_TOKEN_ID]
        assert decode_released(predictor.tokenizer, shown).replace("\n", "") == case["text"]
        assert len(reply.targets) == case["num_masks"]
        for index, target in enumerate(reply.targets):
            mask, expected = target.mask.numpy(), arrays[f"masks_{number}"][index]
            assert (mask & expected).sum() / (mask | expected).sum() >= 0.999
            logits, reference = target.logits[::8, ::8].numpy(), arrays[f"logits_{number}"][index]
            assert np.linalg.norm(logits - reference) / np.linalg.norm(reference) < 1e-4
            assert target.score == pytest.approx(float(arrays[f"scores_{number}"][index]), abs=1e-4)
            compared += 1
    assert (len(recorded), compared) == (8, 11)


def test_the_trained_weights_merge_to_the_published_folder(golden, tmp_path):
    """The released command line, which carries no token and size flags."""
    from merge_lora_weights_and_save_hf_model import main

    arguments = [
        f"--version={golden / 'llava-tiny'}",
        f"--vision-tower={golden / 'clip-vit-tiny-patch14-336'}",
        f"--weight={golden / 'pixellm-tiny/pytorch_model.bin'}",
        f"--save_path={tmp_path / 'merged'}",
    ]
    assert main([*arguments, "--precision=fp32"]) == 0
    published = read_weights(golden / "pixellm-tiny/hf_model")
    ours = read_weights(tmp_path / "merged")
    shared_names = set(published) & set(ours)
    # Constants here and there: decision 2, and a buffer of older transformers.
    assert {name for name in set(published) ^ set(ours) if not name.endswith("inv_freq")} <= {
        "model.token_fusion.weights",
        "model.mask_decoder.scale_weights",
    }
    for name in shared_names:
        found, expected = ours[name].float(), published[name].float()
        difference = (found - expected).norm() / expected.norm().clamp(min=1e-12)
        assert difference < 1e-6 or torch.equal(found, expected), (name, float(difference))
    _, tokenizer, report = load_with_report(tmp_path / "merged")
    assert report.initialized == []
    assert tokenizer.convert_tokens_to_ids("[SEG5]") == 1205
