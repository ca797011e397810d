"""The network computes what the release computed (recorded with weights made from their names).

Limits are those of the recording: ids identical, images 1e-5, features, hidden states and masks 1e-4 relative,
losses 1e-5 relative, gradient norms 1e-3 relative.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.seeded_case import write_recording
from utils.parity.recording import Case, find_cases
from utils.parity.stages import run_stages


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[Case]:
    return find_cases(write_recording(tmp_path_factory.mktemp("recording")))


@pytest.mark.parametrize(
    ("stage", "measures"),
    [("tokenizer", 5 * 4), ("images", 2 + 3), ("vision", 2 + 2), ("train_step", 2 + 2 * (3 + 4 + 257))],
)
def test_stage(cases, stage, measures):
    (result,) = run_stages(cases[0].golden, dataset_dir=Path("none"), stage=stage, cases=cases)
    assert result.ok, result.line()
    assert (result.case, len(result.measures)) == ("seeded", measures)
