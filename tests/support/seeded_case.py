"""The recorded ``seeded`` case in the layout of a folder of recordings; its weights are made from their names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import skimage.data
from PIL import Image

FOLDER = Path(__file__).parents[1] / "model/seeded"
RECORDED = ("batch.json", "config.json", "expected.npz", "masks.npz", "state_dict_shapes.json", "train_step.json")


def write_recording(root: Path) -> Path:
    """Case, tower and base configurations, tokenizer, and the three photos that ship with scikit-image."""
    for name in ("seeded", "clip", "llava", "images"):
        (root / name).mkdir(parents=True)
    for name in RECORDED:
        shutil.copy(FOLDER / name, root / "seeded")
    shutil.copy(FOLDER / "clip_config.json", root / "clip/config.json")
    for name in ("tokenizer.model", "tokenizer_config.json", "config.json"):
        shutil.copy(FOLDER / name, root / "llava")
    for name in json.loads((FOLDER / "batch.json").read_text(encoding="utf-8"))["images"]:
        photo = getattr(skimage.data, Path(name).stem)()
        Image.fromarray(photo).save(root / "images" / name)
    return root
