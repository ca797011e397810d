"""MUSE: with and without text answers, what is left out, and the fixed evaluation wording."""

import json
import logging

import numpy as np
import pytest

from model.errors import InputError
from tests.support.tiny_data import H, W, make_object, make_record, write_muse
from utils.data.paths import DatasetPaths
from utils.data.registry import build_val_source
from utils.data.sources.muse import MuseTrain

CUP, PLATE = make_object(3, "the cup", category="cup"), make_object(15, "the plate", category="plate")


def train_source(root):
    return MuseTrain(DatasetPaths(root), expand=False)


def test_every_question_is_a_conversation(shared_dataset):
    source = train_source(shared_dataset)
    assert len(source) == 3
    sample = source.get(0, np.random.default_rng(0))
    (given,), (composed,) = sample.conversations
    assert given.question.startswith("Who drinks? ")
    assert given.answer == "One drinks from {cup} and {seg}."
    assert (given.targets, composed.targets) == ((0,), (1, 2))
    assert sample.masks.shape == (3, H, W)
    assert sample.masks.any(axis=(1, 2)).all()


def test_photos_are_where_the_record_says(dataset_dir):
    question = [("What?", [CUP], None)]
    records = [
        make_record(1, question, file_name="1.jpg"),
        make_record(2, question, coco_url="http://images/train2017/2.jpg"),
        make_record(3, question, coco_url="http://images/val2017/3.jpg"),
    ]
    write_muse(dataset_dir, "train", records)
    source = train_source(dataset_dir)
    paths = [source.get(index, np.random.default_rng(0)).image_path for index in range(3)]
    assert [path.parent.name for path in paths] == ["train2014", "train2017", "val2017"]
    assert all(path.is_file() for path in paths)


def test_coco_2017_is_found_in_coco(dataset_dir):
    """A tree without the release's second copy (or link) of COCO 2017."""
    images = dataset_dir / "refer_seg/images/mscoco/images/train2017"
    (dataset_dir / "coco").mkdir()
    images.rename(dataset_dir / "coco/train2017")
    images.write_text("../../../../coco/train2017")  # what a checkout without links makes of one
    assert train_source(dataset_dir).get(0, np.random.default_rng(0)).image_path.is_file()


def test_both_places_of_the_file_serve(dataset_dir):
    """The README of the release puts it into muse/, its code reads it beside that folder; the first one wins."""
    write_muse(dataset_dir, "train", [make_record(1, [("What?", [CUP], None)])])
    (dataset_dir / "muse/muse_train.json").rename(dataset_dir / "muse_train.json")
    assert len(train_source(dataset_dir)) == 1
    write_muse(dataset_dir, "train", [make_record(number, [("What?", [CUP], None)]) for number in (1, 2)])
    assert len(train_source(dataset_dir)) == 2


def test_composed_answers_use_both_names(dataset_dir):
    write_muse(dataset_dir, "train", [make_record(1, [("What?", [CUP, PLATE], None)])])
    source = train_source(dataset_dir)
    answers = [source.get(0, np.random.default_rng(seed)).conversations[0][0].answer for seed in range(300)]
    rephrased = np.mean([answer.count("the cup") for answer in answers])
    assert 0.82 < rephrased < 0.97, "nine in ten"
    assert all("cup" in answer and "plate" in answer for answer in answers)


def test_unusable_questions_are_left_out_and_counted(dataset_dir, caplog):
    records = [
        make_record(1, [("A?", [CUP, PLATE], "only {seg}"), ("B?", [CUP], "{seg} {x}"), ("C?", [], None)]),
        make_record(2, [("D?", [CUP], "{seg} {seg}")]),
        make_record(3, [("E?", [], "Nothing is there.")]),
    ]
    write_muse(dataset_dir, "train", records)
    with caplog.at_level(logging.WARNING):
        source = train_source(dataset_dir)
    assert "3 records or questions left out, and 1 of 3 photos with them" in caplog.text
    assert "question 0 of record 0 has 1 {seg} in its answer for 2 objects" in caplog.text
    (kept,) = source.get(0, np.random.default_rng(0)).conversations
    assert kept[0].answer == "{seg} {x}"
    assert source.get(1, np.random.default_rng(0)).masks.shape == (0, H, W)


def test_nothing_usable_is_an_error(dataset_dir):
    write_muse(dataset_dir, "train", [make_record(1, [("A?", [CUP], "no mark")])])
    with pytest.raises(InputError, match=r"muse_train\.json has no usable question in 1 records"):
        train_source(dataset_dir)


@pytest.mark.parametrize("damage", [{"answers": []}, {"questions": None}, {"coco_url": None}, {"answers": [[{}]]}])
def test_damaged_records_are_left_out_of_training_and_stop_evaluation(dataset_dir, caplog, damage):
    record = make_record(1, [("A?", [CUP], None)])
    for split in ("train", "val"):
        write_muse(dataset_dir, split, [record])
        file = dataset_dir / f"muse/muse_{split}.json"
        file.write_text(json.dumps([record, record | damage]))
    with caplog.at_level(logging.WARNING):
        assert len(train_source(dataset_dir)) == 1
    said = "muse_train.json: 1 records or questions left out, and 1 of 2 photos with them; the first: record 1 "
    assert said in caplog.text
    with pytest.raises(InputError, match=r"muse_val.json: record 1 "):
        build_val_source(dataset_dir, "MultiReasonSeg|val")


@pytest.mark.parametrize("content", ["{}", "[]", "[", "3"])
def test_damaged_files_are_named(dataset_dir, content):
    (dataset_dir / "muse/muse_train.json").write_text(content)
    with pytest.raises(InputError, match=r"muse_train.json .*download it again"):
        train_source(dataset_dir)


@pytest.mark.parametrize("split", ["val", "test_less", "test_many"])
def test_evaluation_is_fixed_and_complete(dataset_dir, split):
    records = [make_record(1, [("A?", [CUP, PLATE], "broken"), ("B?", [], None)])]
    write_muse(dataset_dir, split, records)
    source = build_val_source(dataset_dir, f"MultiReasonSeg|{split}")
    (first,), (second,) = source.get(0, np.random.default_rng(0)).conversations
    assert first.question == "A? Please output segmentation mask."
    assert first.answer == "the cup is {seg} and the plate is {seg}."
    assert second.targets == ()
    again = source.get(0, np.random.default_rng(99)).conversations
    assert again == source.get(0, np.random.default_rng(0)).conversations


def test_a_bad_mask_names_sample_and_object(dataset_dir):
    bad = {**CUP, "segmentation": [[1, 1, 2, 2]]}
    write_muse(dataset_dir, "val", [make_record(1, [("A?", [bad], None)])])
    with pytest.raises(InputError, match=r"MultiReasonSeg\|val/0/1.jpg \(the cup\): a polygon"):
        build_val_source(dataset_dir, "MultiReasonSeg|val").get(0, np.random.default_rng(0))
