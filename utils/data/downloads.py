"""What has to be downloaded for a run: which flag needs it, where it comes from, and whether it is there.

The places are those of ``DatasetPaths``; only names are looked up, no file is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model.errors import InputError

from .paths import REFER_SPLIT_BY, DatasetPaths, MissingData
from .registry import FAMILIES, DataOptions, val_names

# Looks a file up, or the files of a folder; raises MissingData. The second argument is the flag that asks for it.
Finder = Callable[[DatasetPaths, str], "Path | Sequence[Path]"]


@dataclass(frozen=True)
class Download:
    """One thing to get.

    Attributes:
        files: what of it is read.
        source: where it comes from.
        license: what its makers say about its use, as far as we know it.
        full: files of the complete set in a folder, where we know it; 0 otherwise.
    """

    title: str
    files: tuple[Finder, ...]
    source: str
    license: str
    full: int = 0


@dataclass
class Status:
    """A download on this disk.

    Attributes:
        flags: what asks for it.
        found: paths; for the files of a folder, with a pattern.
    """

    download: Download
    flags: list[str] = field(default_factory=list)
    found: list[Path] = field(default_factory=list)
    missing: list[MissingData] = field(default_factory=list)


def _some(folder: Path, pattern: str, asked_by: str) -> Path:
    """The folder with the pattern, if at least one file fits."""
    if next(folder.glob(pattern), None) is None:
        raise MissingData(folder, f"holds no {pattern}" if folder.is_dir() else "does not exist", asked_by)
    return folder / pattern


_ANY = Path("any.jpg")
_COCO_TERMS = "each photo its own Creative Commons license (Flickr terms of use)"
_COCO_2017 = Download(
    "COCO 2017 train photos",
    (lambda paths, flag: _some(paths.coco_image("train2017/any.jpg").parent, "*.jpg", flag),),
    "cocodataset.org, train2017.zip",
    _COCO_TERMS,
    full=118_287,
)
_COCO_2014 = Download(
    "COCO 2014 train photos",
    (lambda paths, flag: _some(paths.refer_image("refcoco", "any.jpg").parent, "*.jpg", flag),),
    "cocodataset.org, train2014.zip",
    _COCO_TERMS,
    full=82_783,
)
_SEM_SEG: dict[str, tuple[Download, ...]] = {
    "ade20k": (
        Download(
            "ADE20K, scene parsing edition",
            (
                lambda paths, flag: _some(paths.ade20k_label(_ANY).parent, "*.png", flag),
                lambda paths, flag: _some(paths.ade20k_images(asked_by=flag)[0].parent, "*.jpg", flag),
            ),
            "sceneparsing.csail.mit.edu, ADEChallengeData2016.zip (not the full ADE20K, which is laid out by scenes)",
            "photos for non-commercial research and education only; see the source",
            full=20_210,
        ),
    ),
    "cocostuff": (
        Download(
            "COCO-Stuff label maps",
            (lambda paths, flag: _some(paths.cocostuff_labels(asked_by=flag)[0].parent, "*.png", flag),),
            "github.com/nightrome/cocostuff, stuffthingmaps_trainval2017.zip",
            "CC BY 4.0",
            full=118_287,
        ),
        _COCO_2017,
    ),
    "mapillary": (
        Download(
            "Mapillary Vistas 2.0",
            (
                lambda paths, flag: paths.mapillary_config(asked_by=flag),
                lambda paths, flag: _some(paths.mapillary_labels(asked_by=flag)[0].parent, "*.png", flag),
                lambda paths, flag: _some(paths.mapillary_image(_ANY).parent, "*.jpg", flag),
            ),
            "mapillary.com/dataset/vistas, after registration",
            "see the source",
            full=18_000,
        ),
    ),
    "paco_lvis": (
        Download(
            "PACO-LVIS annotations",
            (lambda paths, flag: paths.paco(asked_by=flag),),
            "github.com/facebookresearch/paco, paco_lvis_v1.zip",
            "see the source",
        ),
        _COCO_2017,
    ),
    "pascal_part": (
        Download(
            "PASCAL-Part annotations, as VLPart converts them",
            (lambda paths, flag: paths.pascal_part(asked_by=flag),),
            "github.com/facebookresearch/VLPart, datasets/README.md (from roozbehm.info/pascal-parts)",
            "see the source",
        ),
        Download(
            "PASCAL VOC 2010 photos",
            (lambda paths, flag: _some(paths.pascal_part_image("any.jpg").parent, "*.jpg", flag),),
            "host.robots.ox.ac.uk/pascal/VOC/voc2010, VOCtrainval_03-May-2010.tar",
            "Flickr terms of use",
        ),
    ),
}
_REFER_SOURCE = "github.com/lichengunc/refer (its own host is gone; web.archive.org has the files)"


def _refer(dataset: str) -> tuple[Download, ...]:
    is_generalized = dataset == "grefcoco"
    annotations = Download(
        f"{dataset} annotations",
        (
            lambda paths, flag: paths.refer_refs(dataset, asked_by=flag),
            lambda paths, flag: paths.refer_instances(dataset, asked_by=flag),
        ),
        "github.com/henghuiding/gRefCOCO" if is_generalized else _REFER_SOURCE,
        "see the source" if is_generalized else "Apache-2.0, says the repository",
    )
    photos = _COCO_2014
    if dataset == "refclef":
        photos = Download(
            "SAIAPR TC-12 photos",
            (lambda paths, flag: _some(paths.refer_image("refclef", "any.jpg").parent, "**/*.jpg", flag),),
            _REFER_SOURCE,
            "see imageclef.org/SIAPRdata",
        )
    return annotations, photos


def _reason_seg(split: str) -> tuple[Download, ...]:
    download = Download(
        f"ReasonSeg {split}",
        (
            lambda paths, flag: _some(paths.reason_seg_images(split, asked_by=flag)[0].parent, "*.jpg", flag),
            lambda paths, flag: _some(paths.reason_seg_images(split, asked_by=flag)[0].parent, "*.json", flag),
        ),
        "github.com/dvlab-research/LISA, Dataset",
        "see the source",
        full={"train": 239, "val": 200, "test": 779}.get(split, 0),
    )
    return (download,)


_REASON_SEG_EXPLANATIONS = Download(
    "ReasonSeg explanations",
    (lambda paths, flag: paths.reason_seg_explanations(asked_by=flag),),
    "github.com/dvlab-research/LISA, Dataset",
    "see the source",
)


def _muse(split: str) -> tuple[Download, ...]:
    annotations = Download(
        f"MUSE {split}",
        (lambda paths, flag: paths.muse(split, asked_by=flag),),
        "github.com/MaverickRen/PixelLM, README",
        "see the source",
    )
    photos = Download(
        "COCO photos of MUSE (train2017 and val2017, or train2014)",
        (_muse_photos,),
        "cocodataset.org, train2017.zip and val2017.zip",
        _COCO_TERMS,
    )
    return annotations, photos


def _muse_photos(paths: DatasetPaths, flag: str) -> Path:
    """Which photos a file needs is written in it; that one of the folders has some is a good sign."""
    folders = [paths.muse_image(record).parent for record in (
        {"coco_url": "train2017/any.jpg"}, {"coco_url": "val2017/any.jpg"}, {"file_name": "any.jpg"}
    )]  # fmt: skip
    for folder in folders:
        if next(folder.glob("*.jpg"), None) is not None:
            return folder / "*.jpg"
    return _some(folders[0], "*.jpg", flag)


def _llava(name: str) -> tuple[Download, ...]:
    dialogues = Download(
        f"LLaVA dialogues {name}",
        (lambda paths, flag: paths.llava(name, asked_by=flag),),
        "huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
        "CC BY 4.0, and OpenAI's terms of use",
    )
    return dialogues, _COCO_2017


def _custom(file: str) -> Download:
    def find(paths: DatasetPaths, flag: str) -> Path:
        if not Path(file).is_file():
            raise MissingData(Path(file), "does not exist", flag)
        return Path(file)

    return Download(f"your own {file}", (find,), "docs/custom_data.md has the format", "yours")


def needs(options: DataOptions, val_datasets: Sequence[str]) -> Iterator[tuple[Download, str]]:
    """Every download that a run reads, and the flag that makes it necessary.

    Raises:
        InputError: if a flag names something unknown.
    """
    for family in options.datasets:
        _check_name(family, flag="--dataset", known=FAMILIES)
        for choice, downloads in _of_family(options, family):
            yield from ((download, f"--dataset {family}{choice}") for download in downloads)
    for name in map(str.strip, val_datasets):
        yield from ((download, f"--val_dataset {name}") for download in _of_val_set(name))


def _of_family(options: DataOptions, family: str) -> Iterator[tuple[str, Sequence[Download]]]:
    """The flag that chooses within a family, and what each of its values needs."""
    if family == "sem_seg":
        for name in _names(options.sem_seg_data):
            _check_name(name, flag="--sem_seg_data", known=_SEM_SEG)
            yield f" with --sem_seg_data {name}", _SEM_SEG[name]
    elif family == "refer_seg":
        for name in _names(options.refer_seg_data):
            _check_name(name, flag="--refer_seg_data", known=REFER_SPLIT_BY)
            yield f" with --refer_seg_data {name}", _refer(name)
    elif family == "vqa":
        for name in _names(options.vqa_data):
            yield f" with --vqa_data {name}", _llava(name)
    elif family == "reason_seg":
        for name in _names(options.reason_seg_data):
            dataset, _, splits = name.partition("|")
            if dataset != "ReasonSeg" or not splits:
                _check_name(name, flag="--reason_seg_data", known=["ReasonSeg|train", "ReasonSeg|train_val"])
            for split in splits.split("_"):
                yield f" with --reason_seg_data {name}", _reason_seg(split)
        if options.explanatory != -1:
            yield f" with --explanatory {options.explanatory}", [_REASON_SEG_EXPLANATIONS]
    elif family == "multi_reason_seg":
        yield "", _muse("train")
    else:
        for name in _names(options.custom_data):
            yield f" with --custom_data {name}", [_custom(name)]


def _of_val_set(name: str) -> Sequence[Download]:
    if name.startswith("custom|"):
        return [_custom(name.removeprefix("custom|"))]
    _check_name(name, flag="--val_dataset", known=[*val_names(), "custom|FILE"])
    dataset, split = name.split("|")[0], name.split("|")[-1]
    if dataset == "ReasonSeg":
        return _reason_seg(split)
    return _muse(split) if dataset == "MultiReasonSeg" else _refer(dataset.removeprefix("multi"))


def _names(joined: str) -> list[str]:
    return [name.strip() for name in joined.split("||") if name.strip()]


def _check_name(name: str, *, flag: str, known: Collection[str]) -> None:
    if name not in known:
        raise InputError(f"{flag}: {name!r} is unknown; available are {', '.join(known)} (several are joined with ||)")


def look_up(options: DataOptions, val_datasets: Sequence[str]) -> list[Status]:
    """Every download once, with all flags that need it."""
    paths = DatasetPaths(Path(options.dataset_dir))
    statuses: dict[str, Status] = {}
    for download, flag in needs(options, val_datasets):
        status = statuses.setdefault(download.title, Status(download))
        if not status.flags:
            for find in download.files:
                try:
                    status.found.append(find(paths, flag))
                except MissingData as err:
                    status.missing.append(err)
        status.flags.append(flag)
    return list(statuses.values())


def require_data(options: DataOptions, val_datasets: Sequence[str]) -> None:
    """Stop if anything is missing that a run needs, and name all of it: this takes seconds, loading takes minutes."""
    missing = [err for status in look_up(options, val_datasets) for err in status.missing]
    if len(missing) == 1:
        raise missing[0]
    if missing:
        listed = "; ".join(f"{err.path} {err.problem} ({err.asked_by})" for err in missing)
        raise InputError(
            f"{len(missing)} places have no data: {listed}. `python -m utils.data.verify` with the same "
            "flags says where they come from"
        )
