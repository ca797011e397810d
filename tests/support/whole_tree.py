"""Every dataset of the tree in its on-disk format, two or three drawn photos each."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from model.rle import encode_rle

from .tiny_data import H, W, box, draw_photo, make_ref, write_dataset, write_json, write_refer

COCO = Path("coco/train2017")


def write_whole_tree(root: Path) -> Path:
    """Everything that the released command trains on."""
    write_dataset(root)
    for name in ("refcocog", "refclef", "grefcoco"):
        write_other_refer(root, name)
    write_label_maps(root)
    write_parts(root)
    write_llava(root)
    write_reason_seg(root)
    return root


def write_other_refer(root: Path, name: str) -> None:
    """RefCOCOg; RefCLEF, codes in lists and photos in folders; gRefCOCO, several targets and none."""
    refs = [make_ref(0, 1, ["upper thing"]), make_ref(1, 2, ["lower thing"]), make_ref(2, 1, ["it"], split="val")]
    write_refer(root, refs, dataset=name, split_by="umd" if name == "refcocog" else "unc")
    folder = root / "refer_seg" / name
    instances = json.loads((folder / "instances.json").read_text())
    if name == "refclef":
        for info in instances["images"]:
            info["file_name"] = f"00/images/{info['id']}.jpg"
            draw_photo(root / "refer_seg/images/saiapr_tc-12" / info["file_name"])
        mask = np.zeros((H, W), dtype=bool)
        mask[5:20, 8:30] = True
        for annotation in instances["annotations"]:
            annotation["segmentation"] = [encode_rle(mask)]
        write_json(folder / "instances.json", instances)
    if name == "grefcoco":
        refs = [
            make_ref(0, 1, ["both of them"]) | {"ann_id": [10, 12], "category_id": [1, 1]},
            make_ref(1, 1, ["a purple elephant"]) | {"ann_id": [-1], "category_id": [-1], "no_target": True},
            make_ref(2, 2, ["the lower one"]) | {"ann_id": [21], "category_id": [1]},
        ]
        (folder / "refs(unc).p").unlink()
        write_json(folder / "grefs(unc).json", refs)


def label_map() -> np.ndarray:
    """(H, W) values: 5 above, 17 below, and some pixels without a class."""
    values = np.full((H, W), 5, dtype=np.uint8)
    values[H // 2 :] = 17
    values[:, :4] = 255
    values[:, 4:6] = 0
    return values


def write_label_maps(root: Path) -> None:
    for number in (1, 2):
        draw_photo(root / f"ade20k/images/training/ADE_train_{number:08d}.jpg")
        write_png(root / f"ade20k/annotations/training/ADE_train_{number:08d}.png", label_map())
        draw_photo(root / COCO / f"{number:012d}.jpg")
        write_png(root / f"cocostuff/train2017/{number:012d}.png", label_map())
    names = [f"Thing {number}" for number in range(17)] + ["Curb Cut"]
    write_json(root / "mapillary/config_v2.0.json", {"labels": [{"readable": name, "name": "x--y"} for name in names]})
    draw_photo(root / "mapillary/training/images/abc.jpg")
    palette = Image.new("P", (W, H))
    palette.putpalette([(index * 7) % 256 for index in range(768)])
    palette.putdata(label_map().ravel().tolist())
    path = root / "mapillary/training/v2.0/labels/abc.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    palette.save(path)


def write_png(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), values)


def write_parts(root: Path) -> None:
    def coco(categories: list[str], file_name: str) -> dict:
        mask = np.zeros((H, W), dtype=bool)
        mask[:, 40:] = True
        annotation = {"image_id": 7, "iscrowd": 0}
        return {
            "images": [{"id": 7, "file_name": file_name, "height": H, "width": W}],
            "categories": [{"id": number, "name": name} for number, name in enumerate(categories, start=1)],
            "annotations": [
                {**annotation, "id": 0, "category_id": 1, "segmentation": box(2, 3, 10, 10)},
                {**annotation, "id": 1, "category_id": 1, "segmentation": box(20, 3, 10, 10)},
                {**annotation, "id": 2, "category_id": 2, "segmentation": encode_rle(mask)},
            ],
        }

    paco = coco(["trash_can_(object)", "trash_can_(object):top_rim"], "train2017/000000000007.jpg")
    write_json(root / "vlpart/paco/annotations/paco_lvis_v1_train.json", paco)
    draw_photo(root / COCO / "000000000007.jpg")
    pascal = coco(["bus:wheel", "bus:license plate"], "2008_000007.jpg")
    write_json(root / "vlpart/pascal_part/train.json", pascal)
    draw_photo(root / "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages/2008_000007.jpg")


def dialogue(*said: str, image: str | None = "000000000001.jpg", first: str = "human") -> dict:
    speakers = ["human", "gpt"] if first == "human" else ["gpt", "human"]
    turns = [{"from": speakers[number % 2], "value": text} for number, text in enumerate(said)]
    return {"id": "x", **({"image": image} if image else {}), "conversations": turns}


def write_llava(root: Path) -> None:
    items = [
        dialogue("What is it?\n<image>", "A thing.", "Where?", "Above."),
        dialogue("Tell me a joke.", "No.", image=None),
    ]
    write_json(root / "llava_dataset/llava_instruct_150k.json", items)


def shape(label: str, left: int, top: int, width: int, height: int) -> dict:
    flat = box(left, top, width, height)[0]
    points = [[x + 0.6, y + 0.6] for x, y in zip(flat[::2], flat[1::2], strict=True)]
    return {"label": label, "labels": [label], "shape_type": "polygon", "points": points, "group_id": None}


def reason_record(*texts: str, is_sentence: bool = True, shapes: list[dict] | None = None) -> dict:
    if shapes is None:
        shapes = [shape("target", 5, 5, 30, 20), shape("ignore", 10, 10, 5, 5), shape("flag", 0, 0, 50, 30)]
    return {"text": list(texts), "is_sentence": is_sentence, "shapes": shapes}


def write_reason_seg(root: Path) -> None:
    for split in ("train", "val", "test"):
        folder = root / "reason_seg/ReasonSeg" / split
        for number in (1, 2):
            draw_photo(folder / f"{number}.jpg")
        write_json(folder / "1.json", reason_record("What would float?", "Which one swims?"))
        text = json.dumps(reason_record("the café sign", is_sentence=False), ensure_ascii=False)
        (folder / "2.json").write_bytes(text.encode("cp1252"))
    explained = [{"query": "What?", "outputs": "It is light.", "image": "1.jpg", "json": "1.json"}]
    write_json(root / "reason_seg/ReasonSeg/explanatory/train.json", explained)
