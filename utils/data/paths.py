"""The tree under ``--dataset_dir``: the one place that knows where files are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import InputError

# RefCOCO's name -> who split it, which is part of the name of its refs file.
REFER_SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}

_COCO_IMAGES = "refer_seg/images/mscoco/images"
_GET_GOING = (
    "dataset/README.md says what to download, and `python scripts/make_toy_world.py` draws a small set without "
    "any download"
)


@dataclass(frozen=True)
class DatasetPaths:
    """Files of the released layout.

    ``asked_by`` is the flag that makes a file necessary; errors name it.
    """

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))

    def muse(self, split: str, *, asked_by: str) -> Path:
        """Annotations of MUSE; ``split`` is train, val, test_less or test_many."""
        return self._existing(f"muse/muse_{split}.json", asked_by)

    def muse_image(self, record: Mapping[str, Any]) -> Path:
        """Photo of a MUSE record: ``file_name`` lies in train2014, ``coco_url`` says its folder itself.

        Raises:
            KeyError: if the record has neither.
        """
        if "file_name" in record:
            return self.root / _COCO_IMAGES / "train2014" / record["file_name"]
        url = record["coco_url"]
        return self._coco_2017("train2017" if "train2017" in url else "val2017") / url.rsplit("/", 1)[-1]

    def refer_instances(self, dataset: str, *, asked_by: str) -> Path:
        """Photos and masks of a referring dataset."""
        return self._existing(f"refer_seg/{dataset}/instances.json", asked_by)

    def refer_refs(self, dataset: str, *, asked_by: str) -> Path:
        """Expressions of a referring dataset."""
        return self._existing(f"refer_seg/{dataset}/refs({REFER_SPLIT_BY[dataset]}).p", asked_by)

    def refer_image(self, file_name: str) -> Path:
        return self.root / _COCO_IMAGES / "train2014" / file_name

    def _coco_2017(self, name: str) -> Path:
        """The release wants a second copy of COCO 2017 here, or a link; without it, the one in coco/ is read."""
        folder, original = self.root / _COCO_IMAGES / name, self.root / "coco" / name
        return original if original.is_dir() and not folder.is_dir() else folder

    def _existing(self, name: str, asked_by: str) -> Path:
        if not self.root.is_dir():
            raise InputError(
                f"--dataset_dir {self.root} is not a folder, but {asked_by} reads {name} there. {_GET_GOING}"
            )
        path = self.root / name
        if not path.is_file():
            raise InputError(f"{path} does not exist, but {asked_by} needs it. {_GET_GOING}")
        return path


def read_json(path: Path) -> Any:
    """Parse an annotation file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:  # bad JSON, or not UTF-8
        raise InputError(f"{path} is not valid JSON ({err}); download it again from its source") from err
