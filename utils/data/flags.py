"""The flags of the commands that check and convert data, apart from their work: reading them opens no dataset."""

from __future__ import annotations

from typing import ClassVar

from model.errors import InputError
from model.values import Count, NonNegativeInt, ShareBelowOne, Workers
from utils.cli.args import flag, settings
from utils.cli.config import TRAINING_ONLY, RunConfig

from .names import split_names
from .options import DataOptions

_EVERYTHING = 1_000_000  # questions per photo: every class, expression and object is drawn


@settings
class VerifyConfig(RunConfig):
    """Flags of training, which name everything of the release by default, and of this tool."""

    dataset: str = flag("sem_seg||refer_seg||vqa||reason_seg||multi_reason_seg", "datasets, joined with ||")
    refer_seg_data: str = flag(f"{RunConfig.refer_seg_data}||grefcoco", "parts of refer_seg")
    val_dataset: str = flag("", "validation sets, joined with ||")
    workers: Workers = flag(2, "processes of --deep")
    ignored: ClassVar = (TRAINING_ONLY, "nothing is trained")
    deep: bool = flag(False, "draw every mask and open every photo")
    download: bool = flag(False, "fetch missing files that are public, except large archives of photos")
    download_photos: bool = flag(False, "fetch large archives of photos, too", implies={"download": True})
    report: str = flag("", "file for all problems that --deep finds, one per line")

    def options(self) -> DataOptions:
        """What training reads with these flags, asking for everything in a photo; rates do not matter."""
        rates = ",".join("1" for _ in split_names(self.dataset))
        return DataOptions.of(self, sample_rates=rates, num_classes_per_sample=_EVERYTHING, num_classes_per_question=1)

    @property
    def val_datasets(self) -> list[str]:
        return split_names(self.val_dataset)


@settings
class OutputConfig:
    """Flags of every conversion; its ``required`` ones have no default."""

    required: ClassVar[tuple[str, ...]] = ()
    out: str = flag("", "JSON-lines file to write")
    templates: str = flag("", "JSON file of questions and answers of your own; docs/custom_data.md shows one")
    targets_per_question: Count = flag(3, "classes asked for in one question, at most")
    val_share: ShareBelowOne = flag(0.0, "part of the photos that goes to a second file, <out>_val.jsonl")
    seed: NonNegativeInt = flag(0, "wording and split follow from it")

    def __post_init__(self) -> None:
        for name in ("out", *self.required):
            if not getattr(self, name):
                raise InputError(f"--{name} is missing; `python scripts/convert_to_custom.py` shows the commands")


@settings
class MasksConfig(OutputConfig):
    """Photos in one folder, PNG masks in another."""

    required: ClassVar = ("images", "masks")
    images: str = flag("", "folder of photos")
    masks: str = flag("", "folder of <photo>.png (label values) or of folders <photo>/<object>.png")
    classes: str = flag("", 'names of the label values, \'1=cat,2=dog\', or a JSON file {"1": "cat"}')


@settings
class CocoConfig(OutputConfig):
    """A COCO instances file."""

    required: ClassVar = ("annotations", "images")
    annotations: str = flag("", "instances JSON")
    images: str = flag("", "folder of its photos")


@settings
class LabelmeConfig(OutputConfig):
    """A folder of labelme files."""

    required: ClassVar = ("annotations",)
    annotations: str = flag("", "folder of labelme JSON files")
