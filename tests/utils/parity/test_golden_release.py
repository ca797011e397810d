"""A published folder and a published training checkpoint, used by this code, give what the release gave.

Recorded in ../shared/golden; limits are those of its README (see utils/parity/stages.py). The recorded validation sets
are in tests/utils/data/test_golden.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from model.PixelLM import PixelLMForCausalLM
from tests.support.launch import run
from utils.parity.recording import Case, find_cases
from utils.parity.stages import run_stages

pytestmark = pytest.mark.slow  # its stages run whole chats and training steps


@pytest.fixture(scope="module")
def golden(shared) -> Path:
    return shared / "golden"


@pytest.fixture(scope="module")
def cases(golden) -> list[Case]:
    return find_cases(golden)


def test_the_folder_is_understood(golden):
    """It names its tower and does not hold it; it lies one folder up."""
    model = PixelLMForCausalLM.from_pretrained(golden / "pixellm-tiny/hf_model")
    config, tokenizer = model.config, model.processor.tokenizer
    assert (config.image_feature_scale_num, config.seg_token_num, config.image_size) == (2, 3, 448)
    assert config.seg_token_ids == tuple(range(1200, 1206))
    assert tokenizer.convert_tokens_to_ids("[SEG5]") == 1205
    assert config.num_image_tokens == 256
    assert config.vision_position_resize == "released"
    assert model.load_report.initialized == []


@pytest.mark.parametrize(
    ("stage", "measures"),
    [
        # ids, labels and padding of 5 conversations and their words; 8 chats; both templates
        ("tokenizer", {"pixellm-tiny": 5 * 4 + 8 * 2 + 6 * 2 + 2, "seeded": 5 * 4 + 6 * 2 + 2}),
        ("images", {"pixellm-tiny": 5, "seeded": 5}),
        ("vision", {"pixellm-tiny": 4, "seeded": 4}),
        ("merge", {"pixellm-tiny": 1 + 280}),
        # ids, text and count of 8 answers; overlap, logits and score of 11 masks
        ("chat", {"pixellm-tiny": 8 * 3 + 11 * 3}),
    ],
)
def test_stage(golden, cases, stage, measures):
    results = list(run_stages(golden, dataset_dir=golden.parent / "real_mini", stage=stage, cases=cases))
    assert not [result.line() for result in results if not result.ok]
    assert {result.case: len(result.measures) for result in results} == measures


@pytest.mark.parametrize(
    ("case", "count"),
    [
        ("pixellm-tiny", 2 + 1 + 2 * (3 + 4 + 229)),
        pytest.param("seeded", 2 + 2 * (3 + 4 + 257), marks=pytest.mark.long),
    ],
)
def test_the_training_step(golden, repository, case, count):
    """By the command, which computes alike on every processor: the smallest gradients depend on that.

    The names of the trained parameters; masks, losses, and 229 or 257 gradients, with shared prefixes and without.
    """
    command = [sys.executable, repository / "scripts/check_parity.py", f"--golden={golden}", "--stage=train_step"]
    finished = run([*command, f"--case={case}"], cwd=repository)
    assert finished.code == 0, finished.text
    (line,) = finished.stdout.splitlines()
    assert line.split()[1] == case
    assert f"worst of {count}:" in line
