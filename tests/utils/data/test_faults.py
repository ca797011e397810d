"""Every kind of bad sample: training skips it under its reason, and everything else goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.errors import InputError
from tests.support.tiny_data import IMAGES, draw_photo
from tests.support.whole_tree import COCO, dialogue
from utils.data.mixture import Mixture
from utils.data.registry import DataOptions, build_train_sources

MUSE, LLAVA = "muse/muse_train.json", "llava_dataset/llava_instruct_150k.json"
PACO, REFCLEF = "vlpart/paco/annotations/paco_lvis_v1_train.json", "refer_seg/refclef/instances.json"
GREFS = "refer_seg/grefcoco/grefs(unc).json"
REASON = "reason_seg/ReasonSeg/train"


def edit(root: Path, name: str, change: Callable[[Any], Any]) -> None:
    content = json.loads((root / name).read_text())
    change(content)
    (root / name).write_text(json.dumps(content))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def first_target(muse: list) -> dict:
    return muse[0]["answers"][0][0]


FAULTS = {
    "a photo that is not there": (
        "muse", lambda root: (root / IMAGES / "train2017/11.jpg").unlink(), "image missing",
    ),
    "half a photo": ("muse", lambda root: halve(root / IMAGES / "train2017/11.jpg"), "image unreadable"),
    "half a photo without recorded size": (
        "vqa", lambda root: halve(root / COCO / "000000000001.jpg"), "image unreadable",
    ),
    "a photo of another size": (
        "muse", lambda root: draw_photo(root / IMAGES / "train2017/11.jpg", (9, 9)), "mask of another size",
    ),
    "a polygon without area": (
        "muse", lambda root: edit(root, MUSE, lambda muse: first_target(muse).update(segmentation=[[5] * 6])),
        "bad polygon",
    ),
    "a polygon of two points": (
        "muse", lambda root: edit(root, MUSE, lambda muse: first_target(muse).update(segmentation=[[1, 1, 9, 9]])),
        "bad polygon",
    ),
    "a mask in no known format": (
        "muse", lambda root: edit(root, MUSE, lambda muse: first_target(muse).update(segmentation="mask.png")),
        "unknown mask format",
    ),
    "run lengths of another size": (
        "sem_seg",
        lambda root: edit(root, PACO, lambda paco: paco["annotations"][2]["segmentation"].update(size=[7, 7])),
        "mask of another size",
    ),
    "run lengths that end early": (
        "refer_seg",
        lambda root: edit(root, REFCLEF, lambda c: c["annotations"][0]["segmentation"][0].update(counts=[10])),
        "bad run lengths",
    ),
    "half a label map": ("sem_seg", lambda root: halve(root / "ade20k/annotations/training/ADE_train_00000001.png"),
                         "label map unreadable"),
    "a dialogue without answers": (
        "vqa", lambda root: edit(root, LLAVA, lambda items: items.__setitem__(0, {"id": 3})), "bad record",
    ),
    "a dialogue that is too long": (
        "vqa", lambda root: edit(root, LLAVA, lambda items: items.__setitem__(0, dialogue("Q " * 900, "A"))),
        "too long",
    ),
    "an annotation that is no JSON": ("reason_seg", lambda root: halve(root / REASON / "1.json"), "bad record"),
    "an annotation that is not there": ("reason_seg", lambda root: (root / REASON / "1.json").unlink(),
                                        "annotation missing"),
}  # fmt: skip


def open_family(root: Path, encoder, family: str) -> Mixture:
    family = "multi_reason_seg" if family == "muse" else family
    parts = {"sem_seg_data": "ade20k||paco_lvis||cocostuff", "refer_seg_data": "refclef||refcoco||grefcoco"}
    options = DataOptions(root, f"{family}||refer_seg", "1,1", **parts)
    return Mixture(*build_train_sources(options), encoder, seed=0)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_sample_is_skipped_under_its_reason(whole_tree, tmp_path, encoder, fault):
    family, damage, reason = FAULTS[fault]
    root = Path(shutil.copytree(whole_tree, tmp_path / "dataset"))
    damage(root)
    mixture = open_family(root, encoder, family)
    samples = [mixture[index] for index in range(60)]
    assert {skip.reason for sample in samples for skip in sample.skipped} == {reason}
    assert all(len(skip.message) > 20 for sample in samples for skip in sample.skipped)


def test_odd_but_sound_data_is_used(whole_tree, tmp_path, encoder):
    """No target, braces and ``||`` in expressions, other alphabets: nothing of it is a fault."""
    root = Path(shutil.copytree(whole_tree, tmp_path / "dataset"))
    odd = ["{0} or {seg} || {}", "左邊的杯子", "naïve “café”", "% of \\ it"]
    edit(
        root, GREFS, lambda refs: [ref["sentences"][0].update(sent=text) for ref, text in zip(refs, odd, strict=False)]
    )
    edit(root, MUSE, lambda muse: muse[0].update(questions=[odd[0], odd[1]]))
    edit(root, LLAVA, lambda items: items.append(dialogue(*odd)))
    for family in ("muse", "vqa", "reason_seg", "sem_seg"):
        mixture = open_family(root, encoder, family)
        assert not any(mixture[index].skipped for index in range(40))


def test_an_annotation_id_that_does_not_exist_stops_at_once(whole_tree, tmp_path, encoder):
    """-1 means "no target" in gRefCOCO alone."""
    root = Path(shutil.copytree(whole_tree, tmp_path / "dataset"))
    edit(root, GREFS, lambda refs: refs[0].update(ann_id=[10, 999]))
    with pytest.raises(InputError, match=r"grefcoco: ref_id 0 names ann_id 999, which .*instances.json does not have"):
        open_family(root, encoder, "vqa")
