"""Referring expressions: what is read, how it is dealt to questions, and what is refused."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import InputError
from tests.support.tiny_data import make_ref, write_refer
from utils.data.paths import DatasetPaths
from utils.data.question_plan import QuestionPlan, deal
from utils.data.registry import build_val_source
from utils.data.sources.refer import ReferTrain, in_split, read_refs


def train_source(root: Path, *, questions: int = 3, per_question: int = 1) -> ReferTrain:
    return ReferTrain(DatasetPaths(root), "refcoco", plan=QuestionPlan(questions, per_question, expand=True))


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 4), st.integers(0, 999))
def test_deal(count, num_groups, group_size, seed):
    groups = deal(np.random.default_rng(seed), count, num_groups=num_groups, group_size=group_size)
    dealt = [item for group in groups for item in group]
    assert len(dealt) == len(set(dealt)) == min(count, num_groups * group_size)
    assert len(groups) == min(count, num_groups)
    assert all(1 <= len(group) <= group_size for group in groups)


@pytest.mark.parametrize(
    ("of_ref", "wanted", "expected"),
    [
        ("train", "train", True),
        ("testA", "testA", True),
        ("testAB", "testA", True),
        ("testB", "testA", False),
        ("testAB", "testB", True),
        ("testB", "test", True),
        ("val", "test", False),
        ("trainval", "train", False),
    ],
)
def test_split_rule(of_ref, wanted, expected):
    assert in_split(of_ref, wanted) is expected


def test_training_sample(shared_dataset):
    source = train_source(shared_dataset, questions=2, per_question=2)
    assert len(source) == 2
    sample = source.get(0, np.random.default_rng(1))
    assert sample.image_path.name == "1.jpg"
    assert [len(turns) for turns in sample.conversations] == [1, 1]
    assert [len(turns[0].targets) for turns in sample.conversations] == [2, 2]
    assert len(sample.masks) == 4, "one for each expression"
    assert sample.masks.any(axis=(1, 2)).all()


def test_odd_expressions_are_harmless(shared_dataset):
    """Braces, ``||`` and ``{seg}`` occur in expressions."""
    source = train_source(shared_dataset, questions=6)
    texts = [turn.question for (turn,) in source.get(0, np.random.default_rng(0)).conversations]
    assert any("the {odd} one || here" in text for text in texts)
    assert any("{seg} thing" in text for text in texts)
    assert any("other thing" in text for text in texts), "expressions are stripped and in lower case"


def test_same_rng_same_sample(shared_dataset):
    source = train_source(shared_dataset)
    first, again, other = (source.get(0, np.random.default_rng(seed)).conversations for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_validation_asks_every_expression(shared_dataset):
    source = build_val_source(shared_dataset, "refcoco|unc|val")
    sample = source.get(0, np.random.default_rng(0))
    assert [turn.question for (turn,) in sample.conversations] == [
        " What is upper thing in this image? Please output segmentation mask.",
        " What is dark thing in this image? Please output segmentation mask.",
    ]
    assert {turn.answer for (turn,) in sample.conversations} == {"{seg}."}
    assert [turn.targets for (turn,) in sample.conversations] == [(0,), (1,)]
    assert [len(build_val_source(shared_dataset, f"refcoco|unc|{split}")) for split in ("testA", "testB", "test")] == [
        1,
        2,
        2,
    ]


def test_grefcoco_has_several_targets_or_none(whole_tree):
    """One mask per expression, as in the release: the union of its objects, or an empty one."""
    source = ReferTrain(DatasetPaths(whole_tree), "grefcoco", plan=QuestionPlan(3, 1))
    sample = source.get(0, np.random.default_rng(0))
    masks = {turn.question: sample.masks[turn.targets[0]] for (turn,) in sample.conversations}
    (both,) = [mask for question, mask in masks.items() if "both of them" in question]
    (none,) = [mask for question, mask in masks.items() if "a purple elephant" in question]
    first = build_val_source(whole_tree, "grefcoco|unc|train").get(1, np.random.default_rng(0)).masks[0]
    assert both.sum() > first.sum() > 0
    assert not none.any()


def test_grefcoco_may_be_pickled(whole_tree, tmp_path):
    folder = tmp_path / "refer_seg/grefcoco"
    shutil.copytree(whole_tree / "refer_seg/grefcoco", folder)
    refs = json.loads((folder / "grefs(unc).json").read_text())
    (folder / "grefs(unc).json").unlink()
    (folder / "grefs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    assert len(ReferTrain(DatasetPaths(tmp_path), "grefcoco", plan=QuestionPlan())) == 2


def test_refclef_has_photos_in_folders_and_masks_in_lists(whole_tree):
    sample = ReferTrain(DatasetPaths(whole_tree), "refclef", plan=QuestionPlan()).get(0, np.random.default_rng(0))
    assert sample.image_path == whole_tree / "refer_seg/images/saiapr_tc-12/00/images/1.jpg"
    assert sample.image_path.is_file()
    assert sample.masks[0].sum() == 15 * 22


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (6, [6]), (7, [6, 1]), (16, [6, 5, 4, 1]), (21, [6, 5, 4, 6])])
def test_several_expressions_share_an_evaluation_question(tmp_path, count, sizes):
    write_refer(tmp_path, [make_ref(0, 1, [f"thing {number}" for number in range(count)], split="val")])
    sample = build_val_source(tmp_path, "multirefcoco|unc|val").get(0, np.random.default_rng(0))
    assert [len(turn.targets) for (turn,) in sample.conversations] == sizes
    targets = [target for (turn,) in sample.conversations for target in turn.targets]
    assert targets == list(range(count))
    (turn,) = sample.conversations[0]
    assert turn.answer == {1: "{seg}.", 6: "{seg}, {seg}, {seg}, {seg}, {seg} and {seg}."}[sizes[0]]
    if count == 6:
        phrases = "thing 0, thing 1, thing 2, thing 3, thing 4 and thing 5"
        assert turn.question == f" What is {phrases} in this image? Please output segmentation mask."


def test_missing_annotation_is_named(dataset_dir):
    write_refer(dataset_dir, [make_ref(0, 1, ["x"])])
    file = dataset_dir / "refer_seg/refcoco/instances.json"
    instances = json.loads(file.read_text())
    instances["annotations"] = []
    file.write_text(json.dumps(instances))
    with pytest.raises(InputError, match=r"refcoco: ref_id 0 names ann_id 10, .*instances.json"):
        train_source(dataset_dir)
    file.write_text(json.dumps({**instances, "images": []}))
    with pytest.raises(InputError, match="ref_id 0 names"):
        train_source(dataset_dir)


def test_absent_split_lists_what_is_there(dataset_dir):
    write_refer(dataset_dir, [make_ref(0, 1, ["x"], split="train")])
    with pytest.raises(
        InputError, match=r"no expression of split val \(its splits: train\), but --val_dataset refcoco\|unc\|val"
    ):
        build_val_source(dataset_dir, "refcoco|unc|val")


@pytest.mark.parametrize("refs", [{"a": 1}, [1, 2], [{"split": "train"}], [make_ref(0, 1, ["x"]) | {"ann_id": "1"}]])
def test_other_formats_are_refused(dataset_dir, refs):
    (dataset_dir / "refer_seg/refcoco/refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    with pytest.raises(InputError, match="RefCOCO's format"):
        train_source(dataset_dir)


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_cannot_run_code(tmp_path, protocol):
    """A plain pickle.load would create the file."""
    import os

    trace = tmp_path / "trace"
    refs = tmp_path / "refs(unc).p"
    for attack in (Attack(os.system, f"touch {trace}"), Attack(eval, f"open({str(trace)!r}, 'w')")):
        refs.write_bytes(pickle.dumps([attack], protocol=protocol))
        with pytest.raises(InputError, match=r"refs\(unc\).p cannot be read .*it asks for .*plain data"):
            read_refs(refs)
        assert not trace.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_are_read(tmp_path, protocol):
    plain = [{"a": {1, 2}, "b": (1.5, None, True), "c": np.int64(7), "d": np.float32(0.5), "e": "é"}]
    (tmp_path / "refs.p").write_bytes(pickle.dumps(plain, protocol=protocol))
    assert read_refs(tmp_path / "refs.p") == plain


def test_a_python_2_pickle_is_read(tmp_path):
    (tmp_path / "refs.p").write_bytes(b"(lp0\n(dp1\nS'split'\np2\nS'train'\np3\nsa.")
    assert read_refs(tmp_path / "refs.p") == [{"split": "train"}]


def test_a_damaged_pickle_is_refused(tmp_path):
    (tmp_path / "refs.p").write_bytes(pickle.dumps([1, 2, 3])[:-3])
    with pytest.raises(InputError, match="cannot be read"):
        read_refs(tmp_path / "refs.p")
