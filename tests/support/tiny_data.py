"""A dataset tree of a few drawn photos, and everything needed to encode it without any download."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from model.configuration import PixelLMConfig
from model.text.tokens import SegCodebook

H, W = 40, 60
IMAGES = Path("refer_seg/images/mscoco/images")
SHARED = Path(__file__).resolve().parents[3] / "shared"


def draw_photo(path: Path, hw: tuple[int, int] = (H, W), *, shade: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((*hw, 3), shade, dtype=np.uint8)
    image[: hw[0] // 2] //= 2
    assert cv2.imwrite(str(path), image)


def box(left: int, top: int, width: int, height: int) -> list[list[float]]:
    """A rectangle as COCO polygons."""
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def make_ref(
    ref_id: int, image_id: int, sentences: list[str], *, split: str = "train", ann_id: int | None = None
) -> dict:
    return {
        "ref_id": ref_id,
        "ann_id": image_id * 10 + ref_id if ann_id is None else ann_id,
        "category_id": 1,
        "image_id": image_id,
        "file_name": "ignored.jpg",
        "split": split,
        "sent_ids": list(range(len(sentences))),
        "sentences": [{"sent_id": i, "sent": text, "raw": text, "tokens": []} for i, text in enumerate(sentences)],
    }


def write_refer(root: Path, refs: list[dict], *, dataset: str = "refcoco", split_by: str = "unc") -> None:
    """One annotation for every ref; photos are drawn where they are missing."""
    image_ids = sorted({ref["image_id"] for ref in refs})
    for image_id in image_ids:
        draw_photo(root / IMAGES / "train2014" / f"{image_id}.jpg", shade=100 + image_id)
    instances = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": H, "width": W} for i in image_ids],
        "annotations": [
            {"id": ref["ann_id"], "image_id": ref["image_id"], "segmentation": box(2 + ref["ref_id"], 4, 20, 10)}
            for ref in refs
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    folder = root / "refer_seg" / dataset
    write_json(folder / "instances.json", instances)
    (folder / f"refs({split_by}).p").write_bytes(pickle.dumps(refs, protocol=2))


def make_object(left: int, name: str, *, category: str = "thing") -> dict:
    return {
        "category_id": 1,
        "category_name": category,
        "rephrased_name": name,
        "bbox": [left, 5, 10, 10],
        "segmentation": box(left, 5, 10, 10),
    }


def make_record(number: int, questions: list[tuple[str, list[dict], str | None]], **where: str) -> dict:
    where = where or {"coco_url": f"http://images/train2017/{number}.jpg"}
    answers = [objects for _, objects, _ in questions]
    return {
        **where,
        "height": H,
        "width": W,
        "ann_list": [item for objects in answers for item in objects],
        "questions": [text for text, _, _ in questions],
        "answers": answers,
        "text_answers": [text for _, _, text in questions],
    }


def write_muse(root: Path, split: str, records: list[dict]) -> None:
    for record in records:
        if "file_name" in record:
            draw_photo(root / IMAGES / "train2014" / record["file_name"])
        else:
            folder, name = record["coco_url"].split("/")[-2:]
            draw_photo(root / IMAGES / folder / name)
    write_json(root / "muse" / f"muse_{split}.json", records)


def write_dataset(root: Path) -> Path:
    """Two referring sets and MUSE, a handful of photos each."""
    refs = [
        make_ref(0, 1, ["left thing", "the {odd} one || here", "{seg} thing", "thing"]),
        make_ref(1, 1, ["Other thing ", "another"]),
        make_ref(2, 2, ["gray thing"]),
        make_ref(3, 3, ["upper thing", "dark thing"], split="val"),
        make_ref(4, 3, ["lower thing"], split="testAB"),
        make_ref(5, 4, ["a thing"], split="testB"),
    ]
    write_refer(root, refs)
    write_refer(root, refs, dataset="refcoco+")
    cup, plate, fork = make_object(3, "the cup"), make_object(15, "the plate"), make_object(30, "the fork")
    records = [
        make_record(
            11, [("Who drinks?", [cup], "One drinks from {cup} and {seg}."), ("And eats?", [plate, fork], None)]
        ),
        make_record(12, [("What is there?", [cup, plate, fork], "Cup {seg}, plate {seg} and fork {seg}.")]),
        make_record(13, [("What is this?", [fork], None)], file_name="13.jpg"),
    ]
    write_muse(root, "train", records)
    for split in ("val", "test_less", "test_many"):
        write_muse(root, split, records)
    return root


_SIDES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
LLAMA = {**_SIDES, "vocab_size": 400, "rms_norm_eps": 1e-6}
TOWER = {**_SIDES, "image_size": 56, "patch_size": 14}


def tiny_config(codebook: SegCodebook, **changes: Any) -> PixelLMConfig:
    """56 px input, 16 image tokens."""
    values = {
        "text_config": LLAMA,
        "vision_config": TOWER,
        "vision_tower": "none",
        "seg_token_num": codebook.tokens,
        "image_feature_scale_num": codebook.scales,
        "seg_token_ids": codebook.ids,
        "image_size": 56,
        "vision_feature_layers": (-2, -3, -4)[: codebook.scales],
    }
    return PixelLMConfig(**{**values, **changes})
