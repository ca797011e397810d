"""Datasets of a real tree: validation sets as the released code reads them, and everything that training reads."""

import json

import numpy as np
import pytest

from tests.support.tiny_data import SHARED
from utils.data.registry import DataOptions, build_train_sources
from utils.parity.recording import Case, find_cases
from utils.parity.stages import run_stages

GOLDEN, REAL_MINI = SHARED / "golden", SHARED / "real_mini"
SETS = (
    "ReasonSeg|val",
    "refcoco|unc|val",
    "refcoco+|unc|val",
    "refcocog|umd|val",
    "refclef|unc|val",
    "multirefcoco|unc|val",
    "MultiReasonSeg|val",
)
pytestmark = pytest.mark.skipif(
    not (GOLDEN / "val_datasets.json").is_file() or not REAL_MINI.is_dir(),
    reason=f"{SHARED} with golden/ and real_mini/ is not here",
)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return find_cases(GOLDEN)


def test_validation_sets_are_those_of_the_release(cases):
    """Photos, words, masks, ignored pixels, valid sizes and pixel statistics of every sample."""
    recorded = json.loads((GOLDEN / "val_datasets.json").read_text(encoding="utf-8"))
    assert set(recorded) == set(SETS)
    (result,) = run_stages(GOLDEN, dataset_dir=REAL_MINI, stage="val_datasets", cases=cases)
    assert result.ok, result.line()
    for name, entries in recorded.items():
        measured = [measure for measure in result.measures if measure.what.startswith(f"{name}")]
        assert len(measured) >= 1 + 9 * len(entries)


FULL_MIX = "sem_seg||refer_seg||vqa||multi_reason_seg||reason_seg"


def test_training_reads_everything(cases):
    """The mix of the README with every part of every family, and reason_seg."""
    options = DataOptions(
        REAL_MINI,
        FULL_MIX,
        "2,9,2,4,1",
        refer_seg_data="refclef||refcoco||refcoco+||refcocog||grefcoco",
        num_classes_per_question=3,
        use_expand_question_list=True,
    )
    sources, _ = build_train_sources(options)
    assert [source.name for source in sources] == [
        "ade20k", "cocostuff", "pascal_part", "paco_lvis", "mapillary",
        "refclef", "refcoco", "refcoco+", "refcocog", "grefcoco",
        "llava_instruct_150k", "multi_reason_seg", "ReasonSeg|train",
    ]  # fmt: skip
    for source in sources:
        for index in range(len(source)):
            sample = cases[0].encoder(source.get(index, np.random.default_rng(index)))
            assert (len(sample.masks) == 0) == (
                source.name == "llava_instruct_150k"
            ) or source.name == "ReasonSeg|train"
            assert len(sample.input_ids) > 0
