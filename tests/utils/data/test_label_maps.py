"""Label maps: which value is which class, what is never asked, and palette images."""

import json

import numpy as np
import pytest
from PIL import Image

from model.errors import InputError
from tests.support.tiny_data import SHARED, H, W, draw_photo
from tests.support.whole_tree import label_map, write_png
from utils.data.paths import DatasetPaths
from utils.data.question_plan import QuestionPlan
from utils.data.sources.label_maps import LABEL_MAPS, class_names

# The classes of label_map(): value 5 above, value 17 below; 0 is a class in two of the three datasets.
EXPECTED = {
    "ade20k": {"tree": 5, "mountain": 17},
    "cocostuff": {"bus": 5, "dog": 17, "person": 0},
    "mapillary": {"thing 5": 5, "curb cut": 17, "thing 0": 0},
}


def open_source(root, name, *, questions=3, per_question=3):
    plan = QuestionPlan(questions, per_question)
    return LABEL_MAPS[name](DatasetPaths(root), asked_by="--dataset sem_seg", plan=plan)


@pytest.mark.parametrize("name", LABEL_MAPS)
def test_every_class_is_asked_for_with_its_own_pixels(whole_tree, name):
    source = open_source(whole_tree, name, per_question=1)
    values = label_map()
    seen = set()
    for seed in range(12):
        sample = source.get(seed % len(source), np.random.default_rng(seed))
        assert sample.image_path.is_file()
        for (turn,) in sample.conversations:
            (phrase,) = [phrase for phrase in EXPECTED[name] if phrase in turn.question]
            (target,) = turn.targets
            assert np.array_equal(sample.masks[target], values == EXPECTED[name][phrase])
            seen.add(phrase)
    assert seen == set(EXPECTED[name])


def test_several_classes_share_a_question(whole_tree):
    sample = open_source(whole_tree, "cocostuff", questions=1).get(0, np.random.default_rng(0))
    ((turn,),) = sample.conversations
    assert len(turn.targets) == len(sample.masks) == 3
    assert all(phrase in turn.question for phrase in EXPECTED["cocostuff"])


def test_nothing_to_ask_is_no_fault(whole_tree, tmp_path):
    """Of COCO-Stuff's classes those with a hyphen are left out; a photo may show nothing else."""
    write_png(tmp_path / "cocostuff/train2017/1.png", np.full((H, W), 170, dtype=np.uint8))  # wall-brick
    with pytest.raises(InputError, match="no class that has a name") as caught:
        open_source(tmp_path, "cocostuff").get(0, np.random.default_rng(0))
    assert caught.value.reason == "nothing to ask about"


@pytest.mark.parametrize(
    ("damage", "message", "reason"),
    [
        (lambda path: path.unlink(), "does not exist", "label map missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot be decoded", "label map unreadable"),
        (lambda path: path.write_text("no picture"), "cannot be decoded", "label map unreadable"),
        (lambda path: Image.new("RGB", (W, H), (200, 10, 10)).save(path), "has colors", "label map with colors"),
    ],
)
def test_damaged_label_maps_are_named(tmp_path, damage, message, reason):
    draw_photo(tmp_path / "ade20k/images/training/a.jpg")
    label = tmp_path / "ade20k/annotations/training/a.png"
    write_png(label, label_map())
    source = open_source(tmp_path, "ade20k")
    damage(label)
    with pytest.raises(InputError, match=message) as caught:
        source.get(0, np.random.default_rng(0))
    assert str(label) in str(caught.value)
    assert caught.value.reason == reason


def test_another_edition_of_mapillary_is_named(whole_tree, tmp_path):
    (tmp_path / "mapillary").mkdir()
    (tmp_path / "mapillary/config_v2.0.json").write_text(json.dumps([{"name": "x"}]))
    write_png(tmp_path / "mapillary/training/v2.0/labels/a.png", label_map())
    with pytest.raises(InputError, match="not the configuration of Mapillary Vistas"):
        open_source(tmp_path, "mapillary")


@pytest.mark.skipif(not (SHARED / "classes").is_dir(), reason=f"{SHARED}/classes is not here")
def test_class_lists_state_the_shared_facts():
    assert class_names("ade20k.txt") == json.loads((SHARED / "classes/ade20k_classes.json").read_text())
    lines = (SHARED / "classes/cocostuff_classes.txt").read_text().splitlines()[1:]
    assert class_names("cocostuff.txt") == [line.split(": ", 1)[1].strip() for line in lines if line.strip()]


def test_class_lists_are_whole():
    assert len(set(class_names("ade20k.txt"))) == 150
    stuff = class_names("cocostuff.txt")
    assert (len(set(stuff)), sum("-" in name for name in stuff)) == (182, 28)
