"""ReasonSeg: regions and ignored pixels, encodings, several texts, explanations."""

import json

import numpy as np
import pytest

from model.errors import InputError
from tests.support.tiny_data import H, W, draw_photo
from tests.support.whole_tree import reason_record, shape, write_reason_seg
from utils.data.paths import DatasetPaths
from utils.data.registry import build_val_source
from utils.data.sources.reason_seg import ReasonSegTrain, read_record


def open_train(root, *, splits="train", explanatory=0.1, num_questions=3):
    return ReasonSegTrain(
        DatasetPaths(root), splits=splits, num_questions=num_questions, explanatory=explanatory, expand=False
    )


def write_record(folder, record):
    draw_photo(folder / "a.jpg")
    (folder / "a.json").write_text(json.dumps(record), encoding="utf-8")
    return read_record(folder / "a.jpg", sample_id="sample")


def test_smaller_regions_lie_on_top(tmp_path):
    """Coordinates are cut to whole pixels and outlines belong to the region."""
    shapes = [shape("ignored", 10, 10, 5, 5), shape("target", 5, 5, 30, 20), shape("Flag", 0, 0, 50, 30)]
    record = write_record(tmp_path, reason_record("x", shapes=shapes))
    ignore = np.zeros((H, W), dtype=bool)
    ignore[10:16, 10:16] = True
    target = np.zeros((H, W), dtype=bool)
    target[5:26, 5:36] = True
    assert np.array_equal(record.ignore, ignore)
    assert np.array_equal(record.target, target & ~ignore)


def test_a_photo_without_region(tmp_path):
    """Two of the test photos have none: the true mask is empty."""
    record = write_record(tmp_path, reason_record("x", shapes=[]))
    assert not record.target.any()
    assert record.ignore is None


def test_windows_1252_and_utf_8(whole_tree, tmp_path):
    source = build_val_source(whole_tree, "ReasonSeg|val")
    phrase = " What is the café sign in this image? Please output segmentation mask."
    assert source.get(1, np.random.default_rng(0)).conversations[0][0].question == phrase
    assert write_record(tmp_path, reason_record("naïve café ünï")).texts == ("naïve café ünï",)


@pytest.mark.parametrize("split", ["val", "test"])
def test_validation_asks_the_first_text(whole_tree, split):
    sample = build_val_source(whole_tree, f"ReasonSeg|{split}").get(0, np.random.default_rng(0))
    ((turn,),) = sample.conversations
    assert turn.question == " What would float? Please output segmentation mask."
    assert turn.answer == "{seg}."
    assert sample.ignore.sum() == 36


def test_training_asks_several_texts_about_one_region(whole_tree):
    sample = open_train(whole_tree, explanatory=-1).get(0, np.random.default_rng(0))
    questions = sorted(turn.question for (turn,) in sample.conversations)
    assert [question.split("?")[0] for question in questions] == ["What would float", "Which one swims"]
    assert [turn.targets for (turn,) in sample.conversations] == [(0,), (0,)]
    one = open_train(whole_tree, num_questions=1).get(0, np.random.default_rng(0))
    assert len(one.conversations) == 1


def test_explanations(whole_tree):
    """A share in words alone; of the rest, half with mask and words. Photo 2 is not explained."""
    source = open_train(whole_tree, explanatory=0.4)
    kinds = {"words": 0, "both": 0, "mask": 0}
    for seed in range(400):
        (turn,) = source.get(0, np.random.default_rng(seed)).conversations[0]
        words, mask = "It is light." in turn.answer, "{seg}" in turn.answer
        kinds["both" if words and mask else "words" if words else "mask"] += 1
        assert len(turn.targets) == mask
    assert kinds["words"] / 400 == pytest.approx(0.4, abs=0.07)
    assert kinds["both"] / 400 == pytest.approx(0.3, abs=0.07)
    other = [source.get(1, np.random.default_rng(seed)).conversations[0][0].answer for seed in range(40)]
    assert all("{seg}" in answer and "light" not in answer for answer in other)


def test_no_explanation_needs_no_file(whole_tree, tmp_path):
    write_reason_seg(tmp_path)
    (tmp_path / "reason_seg/ReasonSeg/explanatory/train.json").unlink()
    with pytest.raises(InputError, match=r"explanatory/train.json does not exist, .* and --explanatory needs it"):
        open_train(tmp_path)
    source = open_train(tmp_path, explanatory=-1)
    answers = [source.get(0, np.random.default_rng(seed)).conversations[0][0].answer for seed in range(40)]
    assert all("{seg}" in answer for answer in answers)


def test_splits_are_joined_with_an_underscore(whole_tree):
    assert len(open_train(whole_tree, splits="train_val")) == 4


@pytest.mark.parametrize(
    "damage",
    [
        {"text": []},
        {"text": [" "]},
        {"text": None},
        {"shapes": [{"label": "target"}]},
        {"shapes": [{"label": "target", "points": [1, 2, 3]}]},
        {"shapes": [{"label": "target", "points": [[1, 2], [3, float("nan")], [4, 5]]}]},
        {"shapes": None},
    ],
)
def test_bad_records_are_named(tmp_path, damage):
    with pytest.raises(InputError, match=r"sample: .*a.json is not in ReasonSeg's format") as caught:
        write_record(tmp_path, reason_record("x") | damage)
    assert caught.value.reason in ("bad record", "bad polygon")


def test_a_missing_or_damaged_annotation_is_named(tmp_path):
    draw_photo(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"a.json does not exist"):
        read_record(tmp_path / "a.jpg", sample_id="sample")
    (tmp_path / "a.json").write_text("{ no")
    with pytest.raises(InputError, match=r"a.json is not valid JSON"):
        read_record(tmp_path / "a.jpg", sample_id="sample")


def test_no_pixel_counts(tmp_path):
    shapes = [shape("ignore", -10, -10, 200, 200)]
    with pytest.raises(InputError, match="every pixel as ignored"):
        write_record(tmp_path, reason_record("x", shapes=shapes))
