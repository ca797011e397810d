"""Wrong types, sizes, shapes, texts and names in every annotation file: ``verify --deep`` tells each in one line."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_data import H, W
from utils.data.flags import VerifyConfig
from utils.data.verification import find_problems

MUSE, LLAVA = "muse/muse_train.json", "llava_dataset/llava_instruct_150k.json"
REFS, INSTANCES = "refer_seg/refcoco/refs(unc).p", "refer_seg/refcoco/instances.json"
GREFS, GINSTANCES = "refer_seg/grefcoco/grefs(unc).json", "refer_seg/grefcoco/instances.json"
PACO, PASCAL = "vlpart/paco/annotations/paco_lvis_v1_train.json", "vlpart/pascal_part/train.json"
REASON, EXPLAINED = "reason_seg/ReasonSeg/train/1.json", "reason_seg/ReasonSeg/explanatory/train.json"
MAPILLARY = "mapillary/config_v2.0.json"

FAR, LONG = [[0, 0, 1e10, 0, 1e10, 1e10]], "x" * 300 + ".jpg"
FAMILY_OF = {
    MUSE: "multi_reason_seg", LLAVA: "vqa", REFS: "refer_seg", INSTANCES: "refer_seg", GREFS: "refer_seg",
    GINSTANCES: "refer_seg", PACO: "sem_seg", PASCAL: "sem_seg", REASON: "reason_seg", EXPLAINED: "reason_seg",
    MAPILLARY: "sem_seg",
}  # fmt: skip

# File, place of a value in it, what stands there, what is said.
BAD = [
    (MUSE, (0, "height"), "480", "record 0 is not in MUSE's format: height is '480'; expected a whole number"),
    (MUSE, (0, "height"), 2**31, f"recorded as height x width 2147483648 x {W}"),
    (MUSE, (0, "width"), True, "width is True; expected a whole number"),
    (MUSE, (0, "width"), 320.0, "width is 320.0; expected a whole number"),
    (MUSE, (0, "questions", 0), 5, "questions[0] is 5; expected text"),
    (MUSE, (0, "questions", 0), "\udc80", "expected text that can be written as UTF-8"),
    (MUSE, (0, "text_answers"), [7, None], "text_answers[0] is 7; expected text"),
    (MUSE, (0, "answers", 0, 0, "category_name"), 5, "answers[0][0].category_name is 5; expected text"),
    (MUSE, (0, "answers", 0, 0, "segmentation"), FAR, "coordinate 10000000000.0"),
    (MUSE, (0, "answers", 0, 0, "segmentation"), {"size": [10**9] * 2, "counts": "0"}, "the mask's size is"),
    (MUSE, (0, "coco_url"), f"http://x/train2017/{LONG}", "does not exist"),
    (MUSE, (0, "coco_url"), "http://x/train2017/a\0.jpg", "a\\x00.jpg does not exist"),
    (LLAVA, (0, "conversations", 0, "value"), 5, "conversations[0].value is 5; expected text"),
    (LLAVA, (0, "conversations", 0, "from"), None, "conversations[0].from is None; expected text"),
    (LLAVA, (0, "image"), 3, "image is 3; expected text"),
    (LLAVA, (0, "image"), LONG, "does not exist"),
    (REFS, (0, "sentences", 0, "sent"), 5, "[0].sentences[0].sent is 5; expected text"),
    (REFS, (0, "ann_id"), None, "[0].ann_id[0] is None; expected a whole number"),
    (REFS, (0, "split"), 1, "[0].split is 1; expected text"),
    (INSTANCES, ("images", 0, "height"), "40", f"height x width '40' x {W}"),
    (INSTANCES, ("images", 0, "file_name"), 4, "images[0].file_name is 4; expected text"),
    (INSTANCES, ("images", 0, "file_name"), LONG, "does not exist"),
    (INSTANCES, ("annotations", 0, "segmentation"), FAR, "coordinate 10000000000.0"),
    (INSTANCES, ("annotations", 0, "segmentation"), {"size": [H, W], "counts": "o" * 50}, "cannot be read"),
    (INSTANCES, ("annotations", 0, "id"), [], "annotations[0].id is []; expected a number or text"),
    (GREFS, (0, "ann_id"), [10, "12"], "[0].ann_id[1] is '12'; expected a whole number"),
    (GINSTANCES, ("images", 0, "width"), 10**9, f"height x width {H} x 1000000000"),
    (PACO, ("images", 0, "height"), None, f"height x width None x {W}"),
    (PACO, ("annotations", 0, "category_id"), 99, "annotations[0] has no segmentation, or category_id 99"),
    (PACO, ("categories", 0, "name"), 5, "categories[0].name is 5; expected text"),
    (PASCAL, ("images", 0, "width"), "60", f"height x width {H} x '60'"),
    (PASCAL, ("annotations", 0, "segmentation"), FAR, "coordinate 10000000000.0"),
    (REASON, ("text", 0), 5, "text[0] is 5; expected text"),
    (REASON, ("text",), "What?", "text is 'What?'; expected a list"),
    (REASON, ("shapes", 0, "label"), None, "shapes[0].label is None; expected text"),
    (REASON, ("shapes", 0, "points"), [[0, 0], [1e10, 0], [1, 9]], "coordinate 10000000000.0"),
    (REASON, ("shapes", 0, "points"), [[0, "0"], [4, 0], [1, 9]], "coordinate '0'; expected numbers"),
    (EXPLAINED, (0, "outputs"), 5, "[0].outputs is 5; expected text"),
    (MAPILLARY, ("labels", 0, "readable"), 5, "labels[0].readable is 5; expected text"),
]  # fmt: skip


@pytest.fixture
def tree(whole_tree: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_tree, tmp_path / "dataset"))


def problems(root: Path, dataset: str, **flags: Any) -> list[str]:
    return list(find_problems(VerifyConfig(dataset_dir=str(root), dataset=dataset, deep=True, workers=0, **flags)))


def change(path: Path, place: tuple[Any, ...], value: object) -> None:
    reads: Callable[[bytes], Any] = pickle.loads if path.suffix == ".p" else json.loads
    content = found = reads(path.read_bytes())
    for step in place[:-1]:
        found = found[step]
    found[place[-1]] = value
    path.write_bytes(pickle.dumps(content) if path.suffix == ".p" else json.dumps(content).encode())


@pytest.mark.parametrize(("file", "place", "value", "says"), BAD)
def test_a_wrong_value_is_named(tree, file, place, value, says):
    change(tree / file, place, value)
    found = problems(tree, FAMILY_OF[file])
    assert len(found) in (1, 2), "photos of refcoco are asked about in two sources"
    assert says in found[0]
    assert "\n" not in found[0]
    assert len(found[0]) < 700


@pytest.mark.parametrize("file", [MUSE, LLAVA, INSTANCES, GREFS, PACO, REASON, EXPLAINED, MAPILLARY])
@pytest.mark.parametrize(
    "content", ["[" * 100_000, "[" + "9" * 100_000 + "]", '"\\ud800"'], ids=["deep", "long number", "surrogate"]
)
def test_files_that_are_no_annotations(tree, file, content):
    (tree / file).write_text(content, encoding="utf-8")
    found = problems(tree, FAMILY_OF[file])
    assert Path(file).name in found[0]
    assert all("\n" not in problem and len(problem) < 700 for problem in found)


@pytest.mark.parametrize(
    ("turn", "says"),
    [
        ({"question": 5}, '"question" is 5; expected text'),
        ({"question": "\udc80"}, "half of a surrogate pair"),
        ({"targets": [{"polygon": FAR[0]}]}, "coordinate 10000000000.0"),
        ({"targets": [{"rle": {"size": [10**9, 1], "counts": [10**9]}}]}, "the mask's size is"),
        ({"targets": [{"png": LONG.replace("jpg", "png")}]}, "does not exist"),
    ],
)
def test_custom_records(tmp_path, tree, turn, says):
    shutil.copy(tree / "coco/train2017/000000000007.jpg", tmp_path / "a.jpg")
    record = {
        "image": "a.jpg",
        "turns": [{"question": "Q", "answer": "{seg}", "targets": [{"polygon": [1] * 6}]} | turn],
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(record), encoding="utf-8")
    (found,) = problems(tmp_path, "custom", custom_data=str(tmp_path / "a.jsonl"))
    assert f"{tmp_path / 'a.jsonl'}, line 1: " in found
    assert says in found


@pytest.mark.parametrize("name", [LONG, "a\0.jpg", "\udcff.jpg"])
def test_custom_photos_that_cannot_exist(tmp_path, name):
    record = {"image": name, "turns": [{"question": "Q", "answer": "A"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record), encoding="utf-8")
    (found,) = problems(tmp_path, "custom", custom_data=str(tmp_path / "a.jsonl"))
    assert "does not exist; paths start at the folder of this file" in found
