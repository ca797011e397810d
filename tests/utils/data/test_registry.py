"""Flags -> sources: what is available, what is not yet, and what is wrong."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model.errors import InputError
from utils.data.records import RawSample, Turn
from utils.data.registry import DataOptions, build_train_sources, build_val_source, val_names


def options(root, dataset="multi_reason_seg||refer_seg", rates="4,9", **changes):
    return DataOptions(root, dataset, rates, **{"refer_seg_data": "refcoco||refcoco+", **changes})


def test_parts_share_the_rate_of_their_family(shared_dataset):
    sources, rates = build_train_sources(options(shared_dataset))
    assert [source.name for source in sources] == ["multi_reason_seg", "refcoco", "refcoco+"]
    assert rates == [4, 4.5, 4.5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": "4"}, "--sample_rates 4 has 1 numbers for the 2 datasets"),
        ({"rates": "4,x"}, "expected numbers"),
        ({"rates": "4,-1"}, "above 0"),
        ({"rates": "4,nan"}, "above 0"),
        ({"num_classes_per_sample": 0}, "--num_classes_per_sample is 0"),
        ({"num_classes_per_question": 0}, "--num_classes_per_question is 0"),
    ],
)
def test_wrong_options(shared_dataset, changes, message):
    with pytest.raises(InputError, match=message):
        options(shared_dataset, **changes)


@pytest.mark.parametrize("name", ["sem_seg", "vqa", "reason_seg"])
def test_families_still_to_come(shared_dataset, name):
    expected = f"--dataset: '{name}' is not available yet; available are refer_seg, multi_reason_seg"
    with pytest.raises(InputError, match=expected):
        build_train_sources(options(shared_dataset, dataset=f"{name}||refer_seg"))


@pytest.mark.parametrize("name", ["refclef", "grefcoco"])
def test_referring_sets_still_to_come(shared_dataset, name):
    expected = f"--refer_seg_data: '{name}' is not available yet; available are refcoco, "
    with pytest.raises(InputError, match=expected):
        build_train_sources(options(shared_dataset, refer_seg_data=f"refcoco||{name}"))


@pytest.mark.parametrize("name", ["ReasonSeg|val", "refclef|unc|val", "multirefcoco|unc|val"])
def test_validation_sets_still_to_come(shared_dataset, name):
    with pytest.raises(InputError, match=r"--val_dataset: .* not available yet; available are MultiReasonSeg\|"):
        build_val_source(shared_dataset, name)


@pytest.mark.parametrize("name", ["", "refcoco", "refcoco|val", "refcocog|unc|val", "refcoco|unc|dev", "muse|val"])
def test_unknown_validation_sets(shared_dataset, name):
    with pytest.raises(InputError, match=r"is unknown; available are .*refcoco\|unc\|val"):
        build_val_source(shared_dataset, name)


@pytest.mark.parametrize("name", ["ade20k", "", "refcoco"])
def test_unknown_families(shared_dataset, name):
    with pytest.raises(InputError, match=f"'{name}' is unknown; available are"):
        build_train_sources(options(shared_dataset, dataset=f"refer_seg||{name}"))


def test_missing_folder_and_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"--dataset_dir .*nowhere is not a folder.*make_toy_world"):
        build_val_source(tmp_path / "nowhere", "MultiReasonSeg|val")
    with pytest.raises(InputError, match=r"muse_val.json does not exist, but --val_dataset MultiReasonSeg\|val needs"):
        build_val_source(tmp_path, "MultiReasonSeg|val")
    with pytest.raises(InputError, match=r"refs\(umd\).p does not exist, but --dataset refer_seg with .* refcocog"):
        build_train_sources(options(tmp_path, dataset="refer_seg", rates="1", refer_seg_data="refcocog"))


def test_names_of_validation_sets():
    assert {"MultiReasonSeg|val", "refcoco|unc|testA", "refcocog|umd|test"} <= set(val_names())


def test_turns_and_samples_check_their_counts():
    with pytest.raises(InputError, match=r"2 \{seg\} for 1 targets"):
        Turn("Q", "{seg} {seg}", (0,))
    turn = Turn("Q", "{seg}", (1,))
    with pytest.raises(ValueError, match="do not fit 1 masks"):
        RawSample("s", Path("p"), ((turn,),), np.zeros((1, 2, 2), dtype=bool))
    with pytest.raises(ValueError, match="expected bool"):
        RawSample("s", Path("p"), (), np.zeros((1, 2, 2)))


def test_sources_need_no_torch():
    """Datasets are checked and drawn without loading the deep-learning stack."""
    code = "import sys, utils.data.registry; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
