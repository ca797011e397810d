"""The tree under ``--dataset_dir``: the only file that knows where data files are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.files import is_file, is_folder
from model.outputs import check_output_file

# RefCOCO's name -> who split it, which is part of the name of its refs file.
REFER_SPLIT_BY = {"refclef": "unc", "refcoco": "unc", "refcoco+": "unc", "refcocog": "umd", "grefcoco": "unc"}

_DATA_SUFFIXES = (".json", ".jsonl", ".p", ".jpg", ".jpeg", ".png", ".webp", ".bmp")
_COCO_IMAGES = "refer_seg/images/mscoco/images"
_VOC_IMAGES = "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages"
_GET_GOING = (
    "dataset/README.md says what to download, and `python scripts/make_toy_world.py` draws a small set without "
    "any download"
)


def check_data_kept(target: str | Path, folders: Iterable[str | Path], *, flag: str) -> None:
    """Refuse to write over a file of a dataset. New files, and files of other kinds, may lie among them.

    Args:
        target: a file, known to be one that can be written.
        folders: of datasets.
        flag: names the target in messages.
    Raises:
        InputError: if it is a photo, a label map or an annotation file below one of the folders.
    """
    file = Path(target).resolve()
    is_data = file.suffix.lower() in _DATA_SUFFIXES and file.exists()
    if is_data and any(file.is_relative_to(Path(folder).resolve()) for folder in folders):
        check_output_file(target, flag=flag, inputs=[file])


class MissingData(InputError):
    """A file or folder that a flag needs is not there.

    Attributes:
        path: what was looked for.
        problem: what was found instead, as the rest of a sentence about ``path``.
        asked_by: the flag.

    Args:
        advice: how to get it; ends the message.
    """

    def __init__(self, path: Path, problem: str, asked_by: str, *, advice: str = _GET_GOING) -> None:
        super().__init__(f"{path} {problem}, but {asked_by} needs it. {advice}", reason="file missing")
        self.path, self.problem, self.asked_by = path, problem, asked_by


@dataclass(frozen=True)
class DatasetPaths:
    """Files of the released layout.

    ``asked_by`` is the flag that makes a file necessary; errors name it. Methods with it raise ``MissingData`` if the
    file is not there, and ``InputError`` if ``root`` is not a folder. Methods without it only return a path.
    """

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))

    # sem_seg: label maps

    def ade20k_images(self, *, asked_by: str) -> list[Path]:
        """Photos of ADE20K's scene-parsing edition (ADEChallengeData2016)."""
        return self._files("ade20k/images/training", "*.jpg", asked_by)

    def ade20k_label(self, image: Path) -> Path:
        return self.root / "ade20k/annotations/training" / f"{image.stem}.png"

    def cocostuff_labels(self, *, asked_by: str) -> list[Path]:
        """Label maps of COCO-Stuff (stuffthingmaps)."""
        return self._files("cocostuff/train2017", "*.png", asked_by)

    def mapillary_config(self, *, asked_by: str) -> Path:
        """Label names of Mapillary Vistas 2.0."""
        return self._existing("mapillary/config_v2.0.json", asked_by)

    def mapillary_labels(self, *, asked_by: str) -> list[Path]:
        return self._files("mapillary/training/v2.0/labels", "*.png", asked_by)

    def mapillary_image(self, label: Path) -> Path:
        return self.root / "mapillary/training/images" / f"{label.stem}.jpg"

    # sem_seg: objects and their parts

    def paco(self, *, asked_by: str) -> Path:
        """Annotations of PACO-LVIS; its ``file_name`` is ``train2017/<name>.jpg``."""
        return self._existing("vlpart/paco/annotations/paco_lvis_v1_train.json", asked_by)

    def pascal_part(self, *, asked_by: str) -> Path:
        """Annotations of PASCAL-Part, as VLPart writes them."""
        return self._existing("vlpart/pascal_part/train.json", asked_by)

    def pascal_part_image(self, file_name: str) -> Path:
        return self.root / _VOC_IMAGES / file_name

    # refer_seg

    def refer_instances(self, dataset: str, *, asked_by: str) -> Path:
        """Photos and masks of a referring dataset."""
        return self._existing(f"refer_seg/{dataset}/instances.json", asked_by)

    def refer_refs(self, dataset: str, *, asked_by: str) -> Path:
        """Expressions of a referring dataset: a pickle; gRefCOCO has either that or JSON."""
        if dataset != "grefcoco":
            return self._existing(f"refer_seg/{dataset}/refs({REFER_SPLIT_BY[dataset]}).p", asked_by)
        pickled = self.root / "refer_seg/grefcoco/grefs(unc).p"
        return pickled if is_file(pickled) else self._existing("refer_seg/grefcoco/grefs(unc).json", asked_by)

    def refer_image(self, dataset: str, file_name: str) -> Path:
        folder = "refer_seg/images/saiapr_tc-12" if dataset == "refclef" else f"{_COCO_IMAGES}/train2014"
        return self.root / folder / file_name

    # vqa

    def llava(self, name: str, *, asked_by: str) -> Path:
        """Dialogues; ``name`` is that of ``--vqa_data``."""
        return self._existing(f"llava_dataset/{name}.json", asked_by)

    def llava_image(self, name: str) -> Path:
        return self.coco_image(f"train2017/{name}")

    # reason_seg

    def reason_seg_images(self, split: str, *, asked_by: str) -> list[Path]:
        """Photos of a split; the annotation of each is the JSON file of the same name beside it."""
        return self._files(f"reason_seg/ReasonSeg/{split}", "*.jpg", asked_by)

    def reason_seg_explanations(self, *, asked_by: str) -> Path:
        return self._existing("reason_seg/ReasonSeg/explanatory/train.json", asked_by)

    # multi_reason_seg

    def muse(self, split: str, *, asked_by: str) -> Path:
        """Annotations of MUSE; ``split`` is train, val, test_less or test_many.

        The release's README puts them into muse/, its code reads them beside it: both places serve.
        """
        inside, beside = self.root / f"muse/muse_{split}.json", self.root / f"muse_{split}.json"
        if is_file(beside) and not is_file(inside):
            return beside
        return self._existing(f"muse/muse_{split}.json", asked_by)

    def muse_image(self, record: Mapping[str, Any]) -> Path:
        """Photo of a MUSE record: ``file_name`` is in train2014, ``coco_url`` contains the folder.

        Raises:
            KeyError: if the record has neither.
        """
        if record.get("file_name"):
            return self.root / _COCO_IMAGES / "train2014" / record["file_name"]
        url = record["coco_url"]
        folder = "train2017" if "train2017" in url else "val2017"
        return self._coco_2017(f"{_COCO_IMAGES}/{folder}", f"coco/{folder}") / url.rsplit("/", 1)[-1]

    # COCO 2017: the release wants it in coco/ and once more (a copy or a link) below refer_seg/; either one serves.

    def coco_image(self, file_name: str) -> Path:
        """Photo of COCO 2017; ``file_name`` is ``train2017/<name>.jpg`` or ``val2017/<name>.jpg``."""
        folder, name = Path(file_name).parent, Path(file_name).name
        return self._coco_2017(f"coco/{folder}", f"{_COCO_IMAGES}/{folder}") / name

    def _coco_2017(self, wanted: str, other: str) -> Path:
        folder, copy = self.root / wanted, self.root / other
        return copy if is_folder(copy) and not is_folder(folder) else folder

    def _existing(self, name: str, asked_by: str) -> Path:
        path = self._below_root(name, asked_by)
        if not is_file(path):
            raise MissingData(path, "does not exist", asked_by)
        return path

    def _files(self, folder: str, pattern: str, asked_by: str) -> list[Path]:
        path = self._below_root(folder, asked_by)
        if not is_folder(path):
            raise MissingData(path, "does not exist", asked_by)
        files = sorted(path.glob(pattern))
        if not files:
            raise MissingData(path, f"has no {pattern}", asked_by)
        return files

    def _below_root(self, name: str, asked_by: str) -> Path:
        if not is_folder(self.root):
            raise InputError(
                f"--dataset_dir {self.root} is not a folder, but {asked_by} reads {name} there. {_GET_GOING}"
            )
        return self.root / name
