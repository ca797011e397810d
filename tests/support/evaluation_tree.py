"""A dataset tree with every split that a benchmark reads: a few drawn photos, and questions of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from model.rle import encode_rle

from .tiny_data import H, W, box, draw_photo, make_object, make_record, make_ref, write_json, write_muse, write_refer
from .whole_tree import reason_record, shape

_SPLITS = {
    "refclef": ("unc", ("val", "testA", "testB", "testBC")),
    "refcoco": ("unc", ("val", "testA", "testB")),
    "refcoco+": ("unc", ("val", "testA", "testAB")),
    "refcocog": ("umd", ("val", "test")),
}


def write_evaluation_tree(root: Path) -> Path:
    """All benchmarks of ``utils/evaluation/benchmarks.py``; custom files are the test's own."""
    for dataset, (split_by, splits) in _SPLITS.items():
        _write_referring(root, dataset, split_by, ("train", *splits))
    _write_generalized(root)
    _write_muse_files(root)
    _write_reason_seg(root)
    return root


def _write_referring(root: Path, dataset: str, split_by: str, splits: tuple[str, ...]) -> None:
    """Two photos per split: seven expressions about the first one, of two objects, and one about the second one."""
    refs = []
    for place, split in enumerate(splits):
        first, second, ref_id = 2 * place + 1, 2 * place + 2, 3 * place
        refs += [
            make_ref(ref_id, first, [f"Thing {number} " for number in range(4)], split=split),
            make_ref(ref_id + 1, first, ["thing 1", "the {seg} one", "{odd} || thing"], split=split),
            make_ref(ref_id + 2, second, ["another"], split=split),
        ]
    write_refer(root, refs, dataset=dataset, split_by=split_by)
    if dataset == "refclef":  # photos lie in folders, and run lengths in lists
        file = root / "refer_seg/refclef/instances.json"
        instances = json.loads(file.read_text(encoding="utf-8"))
        for info in instances["images"]:
            info["file_name"] = f"00/images/{info['id']}.jpg"
            draw_photo(root / "refer_seg/images/saiapr_tc-12" / info["file_name"])
        for annotation in instances["annotations"]:
            annotation["segmentation"] = [_run_lengths(slice(5, 20), slice(8, 30))]
        write_json(file, instances)


def _write_generalized(root: Path) -> None:
    """A photo per split: expressions of several objects, one, none in both spellings, and one without a pixel."""
    refs, images, annotations = [], [], []
    for place, split in enumerate(("train", "val", "testA", "testB")):
        image_id = 101 + place
        draw_photo(root / f"refer_seg/images/mscoco/images/train2014/{image_id}.jpg")
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "height": H, "width": W})
        upper, lower, speck = (10 * image_id + number for number in range(3))
        annotations += [
            {"id": upper, "image_id": image_id, "segmentation": box(5, 2, 20, 10)},
            {"id": lower, "image_id": image_id, "segmentation": [_run_lengths(slice(20, 35), slice(10, 40))]},
            {"id": speck, "image_id": image_id, "segmentation": [_run_lengths(slice(0, 0), slice(0, 0))]},
        ]
        expressions = [
            ("both of them", [upper, lower]),
            ("the upper one", [upper]),
            ("a purple elephant", [-1]),
            ("nothing at all", []),
            ("a speck", [speck]),
        ]
        for text, ann_ids in expressions:
            refs.append(make_ref(len(refs), image_id, [text], split=split) | {"ann_id": ann_ids})
    folder = root / "refer_seg/grefcoco"
    write_json(folder / "instances.json", {"images": images, "annotations": annotations, "categories": []})
    write_json(folder / "grefs(unc).json", refs)


def _run_lengths(rows: slice, columns: slice) -> dict[str, object]:
    mask = np.zeros((H, W), dtype=bool)
    mask[rows, columns] = True
    return encode_rle(mask)


def _write_muse_files(root: Path) -> None:
    cup, plate, fork = make_object(3, "the cup"), make_object(15, "the plate"), make_object(30, "the fork")
    few = ("What is on the table?", [cup, plate], None)
    many = ("What does one eat with?", [cup, plate, fork, plate], "From {seg}, {seg}, {seg} and {seg}.")
    write_muse(root, "val", [make_record(21, [few, many]), make_record(22, [("Who drinks?", [cup], "{seg}.")])])
    nothing = ("Which animal is that?", [], None)
    write_muse(root, "test_less", [make_record(23, [few, nothing]), make_record(24, [("A fork?", [fork], None)])])
    write_muse(root, "test_many", [make_record(23, [many]), make_record(25, [many, many], file_name="25.jpg")])


def _write_reason_seg(root: Path) -> None:
    """In the test split a photo has several texts, one has a phrase, and one has no region."""
    ignored = [shape("ignore", 10, 10, 5, 5)]
    records = {
        "val": [reason_record("What would float?", "Which one swims?"), reason_record("a sign", is_sentence=False)],
        "test": [
            reason_record("What would float?", "Which one swims?", "What would float?"),
            reason_record("a sign", "a board", is_sentence=False),
            reason_record("What would fly?", shapes=ignored),
        ],
    }
    for split, of_split in records.items():
        folder = root / "reason_seg/ReasonSeg" / split
        for number, record in enumerate(of_split, 1):
            draw_photo(folder / f"{number}.jpg")
            write_json(folder / f"{number}.json", record)
