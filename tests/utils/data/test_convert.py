"""Converters: every format of one sample gives the same masks, and nothing is dropped without a word."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from scripts import convert_to_custom, make_custom_sample
from tests.support.bad_input import edit_json, refused
from utils.data.sources.custom import CustomSource

PHOTOS = 6


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """For tests that only read."""
    root = tmp_path_factory.mktemp("sample")
    assert make_custom_sample.main(["--out", str(root), f"--num={PHOTOS}"]) == 0
    return root


@pytest.fixture
def sample(tmp_path):
    assert make_custom_sample.main(["--out", str(tmp_path), "--num=3"]) == 0
    return tmp_path


def commands(root) -> dict[str, list]:
    images = ["--images", root / "images"]
    return {
        "labels": ["masks", *images, "--masks", root / "masks", "--classes", root / "classes.json"],
        "objects": ["masks", *images, "--masks", root / "objects"],
        "coco": ["coco", "--annotations", root / "instances.json", *images],
        "labelme": ["labelme", "--annotations", root / "labelme"],
    }


def convert(root, kind, *flags, out="out.jsonl") -> CustomSource:
    arguments = [str(part) for part in (*commands(root)[kind], "--out", root / out, *flags)]
    assert convert_to_custom.main(arguments) == 0
    return CustomSource(root / out, asked_by="test")


def masks_by_photo(source) -> dict[str, list[bytes]]:
    """Photo -> its masks as bytes, sorted."""
    found: dict[str, list[bytes]] = {}
    for index in range(len(source)):
        sample = source.get(index, np.random.default_rng(0))
        found.setdefault(sample.image_path.name, []).extend(mask.tobytes() for mask in sample.masks)
    return {name: sorted(masks) for name, masks in found.items()}


def test_all_formats_give_the_same_masks(drawn):
    """Labels and COCO name shapes; objects and labelme name color and shape."""
    found = {kind: masks_by_photo(convert(drawn, kind, out=f"{kind}.jsonl")) for kind in commands(drawn)}
    assert len(found["labels"]) == len(found["objects"]) == PHOTOS
    assert found["labels"] == found["coco"]
    assert found["objects"] == found["labelme"]


def test_the_handwritten_records_show_every_kind_of_target(drawn):
    source = CustomSource(drawn / "handwritten.jsonl", asked_by="test")
    kinds = [set().union(*record) for record in first_targets(drawn / "handwritten.jsonl")]
    assert kinds == [{"polygon"}, {"rle"}, {"png", "value"}, {"png"}]
    assert all(source.get(index, np.random.default_rng(0)).masks.any() for index in range(4))


def first_targets(file) -> list[list[dict]]:
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    targets = [record["turns"][0]["targets"][0] for record in records]
    return [target if isinstance(target, list) else [target] for target in targets]


def test_every_class_is_asked_for_once_in_questions_of_several(drawn):
    source = convert(drawn, "objects", "--targets_per_question=2", out="two.jsonl")
    sizes = [len(source.get(index, np.random.default_rng(0)).masks) for index in range(len(source))]
    assert set(sizes) == {1, 2}
    names = {path.stem.rsplit("_", 1)[0] + path.parent.name for path in (drawn / "objects").rglob("*.png")}
    assert sum(sizes) == len(names)


def test_equal_seeds_give_equal_files_and_paths_that_move_with_them(drawn, tmp_path):
    convert(drawn, "labels", out="first.jsonl")
    convert(drawn, "labels", out="second.jsonl")
    text = (drawn / "first.jsonl").read_text(encoding="utf-8")
    assert text == (drawn / "second.jsonl").read_text(encoding="utf-8")
    assert str(drawn) not in text, "what lies beside the records is named relative to them"
    convert(drawn, "labels", "--seed=1", out="third.jsonl")
    assert text != (drawn / "third.jsonl").read_text(encoding="utf-8")
    convert(drawn, "labels", out=tmp_path / "elsewhere/far.jsonl")
    assert str(drawn / "images") in (tmp_path / "elsewhere/far.jsonl").read_text(encoding="utf-8")


def test_validation_photos_are_others(drawn):
    train = masks_by_photo(convert(drawn, "coco", "--val_share=0.5", out="split.jsonl"))
    val = masks_by_photo(CustomSource(drawn / "split_val.jsonl", asked_by="test", single_turn=True))
    assert not set(train) & set(val)
    assert len(train) + len(val) == PHOTOS


def test_unknown_label_values_are_counted(drawn, tmp_path, capsys):
    arguments = [*commands(drawn)["labels"][:-1], "1=round_thing", "--out", tmp_path / "out.jsonl"]
    assert convert_to_custom.main([str(part) for part in arguments]) == 0
    text = capsys.readouterr().err
    assert "label values that --classes does not name were left out: 2 (in " in text
    assert "photos have no record" in text
    assert "round thing" in (tmp_path / "out.jsonl").read_text(encoding="utf-8")


def test_what_cannot_be_used_is_named_and_left_out(sample, capsys):
    (sample / "images/0001.jpg").unlink()
    content = json.loads((sample / "instances.json").read_text(encoding="utf-8"))
    content["images"][2]["height"] += 1
    content["annotations"][0]["segmentation"] = [[1, 1, 5, 5, 3, 3]]
    (sample / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    source = convert(sample, "coco")
    assert set(masks_by_photo(source)) == {"0000.jpg"}
    text = capsys.readouterr().err
    assert "0001.jpg does not exist" in text
    assert "its annotation says" in text
    assert "encloses no area" in text
    assert "2 of 3 photos have no record" in text


def test_a_mask_that_cannot_be_read_leaves_its_photo_out(sample, capsys):
    Image.new("RGB", (50, 40), (9, 1, 1)).save(sample / "masks/0000.png")
    (sample / "masks/0001.png").write_bytes(b"not a picture")
    source = convert(sample, "labels")
    assert set(masks_by_photo(source)) == {"0002.jpg"}
    text = capsys.readouterr().err
    assert "0000.png has colors" in text
    assert "0001.png cannot be decoded" in text


def test_labelme_shapes_with_an_area_are_used(sample, capsys):
    cut = io.BytesIO()
    Image.fromarray(np.ones((5, 8), dtype=np.uint8) * 255).save(cut, "PNG")
    mask = base64.b64encode(cut.getvalue()).decode()
    shapes = [
        {"label": "box", "shape_type": "rectangle", "points": [[30, 20], [10, 10]]},
        {"label": "ball", "shape_type": "circle", "points": [[50, 50], [60, 50]]},
        {"label": "cut", "shape_type": "mask", "points": [[70, 30], [78, 35]], "mask": mask},
        {"label": "dot", "shape_type": "point", "points": [[5, 5]]},
    ]
    for file in (sample / "labelme").glob("*.json"):
        edit_json(file, shapes=shapes)
    source = convert(sample, "labelme", "--targets_per_question=1")
    areas = sorted({int(source.get(index, np.random.default_rng(0)).masks.sum()) for index in range(len(source))})
    assert areas[:2] == [5 * 8, 20 * 10]
    assert areas[2] == pytest.approx(np.pi * 100, rel=0.05)
    assert "shapes without area were left out: point (3)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "flags", "says"),
    [
        ("coco", ["--images="], "--images is missing"),
        ("coco", ["--val_share=1"], "--val_share is 1.0"),
        ("coco", ["--targets_per_question=0"], "--targets_per_question is 0"),
        ("coco", ["--seed=-1"], "--seed is -1"),
        ("labels", ["--classes=cat"], "--classes cat cannot be read"),
        ("labels", ["--classes="], "nothing to write"),
        ("objects", ["--images=nowhere"], "nowhere is not a folder"),
        ("labelme", ["--annotations=tests"], "tests holds no .json file"),
        ("labelme", [f"--annotations={'x' * 300}"], "is not a folder"),
        ("coco", ["--annotations=none.json"], "none.json does not exist; check the path"),
        ("coco", [f"--annotations={'x' * 300}"], "does not exist"),
        ("labels", ["--classes=none.json"], "none.json does not exist; check the path"),
        ("labels", ["--classes=1="], "value 1: the class name '' is empty"),
        ("labels", ["--classes=1=a{seg}"], "value 1: the class name 'a{seg}' contains {seg}"),
        ("labels", ["--classes=1=<image>"], "value 1: the class name '<image>' contains <image>"),
        ("labels", ["--classes=1=\udcff"], "class name: it is '"),
    ],
)
def test_wrong_flags(drawn, tmp_path, capsys, kind, flags, says):
    arguments = [str(part) for part in (*commands(drawn)[kind], "--out", tmp_path / "out.jsonl", *flags)]
    refused(convert_to_custom.main, arguments, capsys, says)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("arguments", [[], ["yolo"]])
def test_commands_are_listed(capsys, arguments):
    refused(convert_to_custom.main, arguments, capsys, "masks", "coco", "labelme")


def test_damaged_annotations_are_named(sample, capsys):
    edit_json(sample / "instances.json", categories=None)
    edit_json(sample / "labelme/0000.json", shapes=None)
    out = ["--out", str(sample / "out.jsonl")]
    for kind, says in (
        ("coco", "instances.json is not in COCO's instances format: categories is missing"),
        ("labelme", "0000.json is not in labelme's format: shapes is missing"),
    ):
        refused(convert_to_custom.main, [*map(str, commands(sample)[kind]), *out], capsys, says)


COCO_DAMAGE = [
    (("categories", 0, "name"), " _", "categories[0]: the class name ' _' is empty"),
    (("categories", 0, "name"), "{seg}", "categories[0]: the class name '{seg}' contains {seg}"),
    (("categories", 0, "name"), 5, "categories[0].name is 5; expected text"),
    (("annotations", 0, "category_id"), 99, "annotations[0] names image_id 0 and category_id 99"),
    (("annotations", 0, "image_id"), None, "annotations[0].image_id is None; expected a number or text"),
    (("images", 0, "file_name"), None, "images[0].file_name is None; expected text"),
]
LABELME_DAMAGE = [
    (("shapes", 0, "label"), "", "shapes[0]: the class name '' is empty"),
    (("shapes", 0, "label"), 5, "shapes[0].label is 5; expected text"),
    (("shapes", 0, "points"), [[1, 2, 3]], "shapes[0].points[0] is [1, 2, 3]; expected 2 entries or fewer"),
    (("shapes", 0, "points"), [[1, "2"]], "shapes[0].points[0][1] is '2'; expected a number"),
    (("shapes", 0, "points"), [[1, 1e999]], "shapes[0].points[0][1] is inf; expected a finite number"),
    (("shapes", 0, "shape_type"), "circle", "shapes[0]: a circle has"),
    (("imageHeight",), 10**9, "recorded as height x width 1000000000 x"),
    (("imageHeight",), True, "imageHeight is True; expected a whole number"),
    (("imagePath",), 5, "imagePath is 5; expected text"),
    (("shapes", 0), {"label": "a", "points": [[1, 1], [2, 2]], "shape_type": "mask"}, "its mask cannot be decoded"),
    (("shapes", 0), {"label": "a", "points": [[1e9, 1], [2, 2]], "shape_type": "mask"}, "its mask begins at (1000000"),
]


@pytest.mark.parametrize(
    ("kind", "file", "place", "value", "says"),
    [("coco", "instances.json", *damage) for damage in COCO_DAMAGE]
    + [("labelme", "labelme/0000.json", *damage) for damage in LABELME_DAMAGE],
)
def test_a_wrong_value_stops_with_its_place(drawn, tmp_path, capsys, kind, file, place, value, says):
    root = shutil.copytree(drawn, tmp_path / "sample")
    content = found = json.loads((root / file).read_text(encoding="utf-8"))
    for step in place[:-1]:
        found = found[step]
    found[place[-1]] = value
    (root / file).write_text(json.dumps(content), encoding="utf-8")
    arguments = [str(part) for part in (*commands(root)[kind], "--out", tmp_path / "out.jsonl")]
    refused(convert_to_custom.main, arguments, capsys, root / file, says)
    assert not (tmp_path / "out.jsonl").exists()


def test_shapes_that_cannot_be_drawn_are_named_and_left_out(sample, capsys):
    far = [[0, 0], [1e10, 0], [1e10, 1e10]]
    for file in (sample / "labelme").glob("*.json"):
        shapes = json.loads(file.read_text(encoding="utf-8"))["shapes"]
        damaged = [{"label": "far", "points": far}, {"label": "wheel", "points": far[:2], "shape_type": "circle"}]
        edit_json(file, shapes=shapes + damaged)
    convert(sample, "labelme")
    text = capsys.readouterr().err
    assert "0000.jpg, far: a polygon has the coordinate 10000000000.0" in text
    assert "0000.jpg, wheel: a polygon has the coordinate" in text


def turns(file) -> list[dict]:
    return [json.loads(line)["turns"][0] for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_words_say_how_many_there_are_where_the_annotation_does(drawn):
    """Label maps do not; a shape in several parts is one object."""
    several = dict.fromkeys(commands(drawn), 0)
    for kind in several:
        convert(drawn, kind, "--targets_per_question=1", out=f"{kind}_one.jsonl")
        for turn in turns(drawn / f"{kind}_one.jsonl"):
            (name,) = re.findall(r"the (?:\w+ )?(?:circle|square|triangle|ring|star)(s?)\b", turn["answer"].lower())
            count = len(turn["targets"][0]) if isinstance(turn["targets"][0], list) else 1
            several[kind] += name == "s"
            assert count > 1 or name == "", turn
    assert several["coco"] > 0
    assert several["labels"] == several["objects"] == several["labelme"] == 0


def test_own_wording(drawn):
    convert(drawn, "labels", f"--templates={drawn / 'templates.json'}", out="own.jsonl")
    wordings = {re.sub(r"(every|the) \w+", "X", turn["question"]) for turn in turns(drawn / "own.jsonl")}
    assert wordings & {"Segment X.", "Where is X?", "Find X."}
    assert not wordings - {
        f"{words.replace('X', names)}"
        for words in ("Segment X.", "Where is X?", "Where are X?", "Find X.")
        for names in ("X", "X and X", "X, X and X")
    }


def test_templates_are_read_before_anything_is_written(drawn, tmp_path, capsys):
    own = tmp_path / "own.json"
    own.write_text('{"questions": ["{seg}"], "answers": ["{name} {seg}"]}', encoding="utf-8")
    arguments = [*map(str, commands(drawn)["coco"]), "--out", str(tmp_path / "out.jsonl"), "--templates"]
    refused(convert_to_custom.main, [*arguments, str(own)], capsys, own, "questions[0] is '{seg}': {seg} belongs in")
    refused(convert_to_custom.main, [*arguments, "none.json"], capsys, "none.json does not exist; check the path")
    refused(convert_to_custom.main, [*arguments, str(tmp_path / "out.jsonl")], capsys, "is read by this")
    assert not (tmp_path / "out.jsonl").exists()
