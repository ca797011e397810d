"""Objects and parts in COCO's format: names, unions, and what is refused."""

import json

import numpy as np
import pytest

from model.errors import InputError
from tests.support.tiny_data import H, W, box
from utils.data.paths import DatasetPaths
from utils.data.question_plan import QuestionPlan
from utils.data.sources.parts import PARTS, split_category
from utils.masks.rasterize import decode_segmentation

PACO = "vlpart/paco/annotations/paco_lvis_v1_train.json"


def open_source(root, name="paco_lvis"):
    return PARTS[name](DatasetPaths(root), asked_by="--dataset sem_seg", plan=QuestionPlan(3, 1))


@pytest.mark.parametrize(
    ("category", "expected"),
    [
        ("trash_can_(object)", ("trash can", "")),
        ("bicycle_(object):top_rim", ("bicycle", "top rim")),
        ("bus:license plate", ("bus", "license plate")),
        ("aeroplane", ("aeroplane", "")),
    ],
)
def test_category_names(category, expected):
    assert split_category(category) == expected


def test_a_class_is_everything_of_it_in_the_photo(whole_tree):
    """Two annotations of one category are one target: the question names the class, not one of them."""
    sample = open_source(whole_tree).get(0, np.random.default_rng(0))
    assert sample.image_path == whole_tree / "coco/train2017/000000000007.jpg"
    masks = {turn.question: sample.masks[turn.targets[0]] for (turn,) in sample.conversations}
    (cans,) = [mask for question, mask in masks.items() if "rim" not in question]
    expected = [decode_segmentation(box(left, 3, 10, 10), (H, W), where="") for left in (2, 20)]
    assert np.array_equal(cans, expected[0] | expected[1])


def test_parts_are_called_in_two_ways(whole_tree):
    source = open_source(whole_tree, "pascal_part")
    texts = " ".join(
        turn.question for seed in range(30) for (turn,) in source.get(0, np.random.default_rng(seed)).conversations
    )
    for phrase in ("the wheel of the bus", "bus wheel", "the license plate of the bus", "bus license plate"):
        assert phrase in texts


def test_an_object_may_have_the_name_of_its_part(whole_tree):
    sample = open_source(whole_tree).get(0, np.random.default_rng(3))
    assert all(len(turn.targets) == 1 for (turn,) in sample.conversations)
    assert len(sample.masks) == 2


@pytest.mark.parametrize("content", [{}, [], {"images": [], "annotations": [], "categories": []}])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / PACO).parent.mkdir(parents=True)
    (tmp_path / PACO).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"paco_lvis_v1_train.json .*download it again"):
        open_source(tmp_path)
