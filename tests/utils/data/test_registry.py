"""Flags -> sources: what is available, what is missing, and what is wrong."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model.errors import InputError
from utils.cli.config import RunConfig
from utils.data.records import RawSample, Turn
from utils.data.registry import DataOptions, build_train_sources, build_val_source, val_names


def options(root, dataset="multi_reason_seg||refer_seg", rates="4,9", **changes):
    return DataOptions(root, dataset, rates, **{"refer_seg_data": "refcoco||refcoco+", **changes})


def test_parts_share_the_rate_of_their_family(shared_dataset):
    sources, rates = build_train_sources(options(shared_dataset))
    assert [source.name for source in sources] == ["multi_reason_seg", "refcoco", "refcoco+"]
    assert rates == [4, 4.5, 4.5]


@pytest.mark.parametrize("rates", [RunConfig.sample_rates, "8,1", "4"])
def test_a_single_dataset_needs_no_rate(shared_dataset, rates):
    """Neither the released default nor a preset for several datasets has to be taken back."""
    assert build_train_sources(options(shared_dataset, "refer_seg", rates))[1] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": "4"}, "--sample_rates 4 has 1 numbers for the 2 datasets"),
        ({"rates": "4,x"}, "expected numbers"),
        ({"rates": "4,-1"}, "above 0"),
        ({"rates": "4,nan"}, "above 0"),
        ({"num_classes_per_sample": 0}, "--num_classes_per_sample is 0"),
        ({"num_classes_per_question": 0}, "--num_classes_per_question is 0"),
        ({"explanatory": 1.5}, "--explanatory is 1.5; expected a share from 0 to 1, or -1"),
    ],
)
def test_wrong_options(shared_dataset, changes, message):
    with pytest.raises(InputError, match=message):
        options(shared_dataset, **changes)


@pytest.mark.parametrize(
    ("family", "file"),
    [
        ("sem_seg", "ade20k/images/training"),
        ("refer_seg", r"refer_seg/refclef/refs\(unc\).p"),
        ("vqa", "llava_dataset/llava_instruct_150k.json"),
        ("reason_seg", "reason_seg/ReasonSeg/train"),
    ],
)
def test_a_missing_dataset_is_named_with_the_flag_that_wants_it(shared_dataset, family, file):
    released = DataOptions(shared_dataset, family, "1")
    with pytest.raises(InputError, match=rf"{file} does not exist, but --dataset {family} with --{family}"[:-2]):
        build_train_sources(released)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sem_seg_data": "ade"}, "--sem_seg_data: 'ade' is unknown; available are ade20k, cocostuff, mapillary"),
        ({"refer_seg_data": "refcoco||x"}, "--refer_seg_data: 'x' is unknown; available are refclef, refcoco"),
        ({"reason_seg_data": "train"}, "--reason_seg_data: 'train' is unknown; available are ReasonSeg|train"),
        ({"vqa_data": "x"}, "llava_dataset/x.json does not exist"),
    ],
)
def test_unknown_parts(shared_dataset, changes, message):
    (family,) = (name.removesuffix("_data") for name in changes)
    with pytest.raises(InputError, match=message.replace("|", "[|]")):
        build_train_sources(options(shared_dataset, dataset=family, rates="1", **changes))


@pytest.mark.parametrize("name", ["", "refcoco", "refcoco|val", "refcocog|unc|val", "refcoco|unc|dev", "muse|val"])
def test_unknown_validation_sets(shared_dataset, name):
    with pytest.raises(InputError, match=r"is unknown; available are .*refcoco\|unc\|val"):
        build_val_source(shared_dataset, name)


@pytest.mark.parametrize("name", ["ade20k", "refcoco"])
def test_unknown_families(shared_dataset, name):
    with pytest.raises(InputError, match=f"'{name}' is unknown; available are"):
        build_train_sources(options(shared_dataset, dataset=f"refer_seg||{name}"))


@pytest.mark.parametrize("family", ["sem_seg", "refer_seg", "vqa", "reason_seg"])
def test_a_family_without_any_part(shared_dataset, family):
    with pytest.raises(InputError, match=f"--dataset {family} needs --{family}_data"):
        build_train_sources(options(shared_dataset, dataset=family, rates="1", **{f"{family}_data": " || "}))


def test_missing_folder_and_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"--dataset_dir .*nowhere is not a folder.*make_toy_world"):
        build_val_source(tmp_path / "nowhere", "MultiReasonSeg|val")
    with pytest.raises(InputError, match=r"muse_val.json does not exist, but --val_dataset MultiReasonSeg\|val needs"):
        build_val_source(tmp_path, "MultiReasonSeg|val")
    with pytest.raises(InputError, match=r"refs\(umd\).p does not exist, but --dataset refer_seg with .* refcocog"):
        build_train_sources(options(tmp_path, dataset="refer_seg", rates="1", refer_seg_data="refcocog"))


def test_names_of_validation_sets():
    expected = {
        "ReasonSeg|val", "ReasonSeg|test", "MultiReasonSeg|val", "MultiReasonSeg|test_less", "MultiReasonSeg|test_many",
        "refcoco|unc|testA", "refcocog|umd|test", "grefcoco|unc|val", "multirefcoco|unc|val", "multirefcocog|umd|test",
    }  # fmt: skip
    assert expected <= set(val_names())


def test_turns_and_samples_check_their_counts():
    with pytest.raises(InputError, match=r"2 \{seg\} for 1 targets"):
        Turn("Q", "{seg} {seg}", (0,))
    with pytest.raises(ValueError, match="2 names for 1 targets"):
        Turn("Q", "{seg}", (0,), names=("a", "b"))
    turn = Turn("Q", "{seg}", (1,))
    with pytest.raises(ValueError, match="do not fit 1 masks"):
        RawSample("s", Path("p"), ((turn,),), np.zeros((1, 2, 2), dtype=bool))
    with pytest.raises(ValueError, match="expected bool"):
        RawSample("s", Path("p"), (), np.zeros((1, 2, 2)))


@pytest.mark.slow
def test_sources_need_no_torch():
    """Datasets are checked and drawn without loading the deep-learning stack."""
    code = "import sys, utils.data.registry; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
