"""The family ``sem_seg``: classes of label maps, and objects with their parts."""

from __future__ import annotations

from pathlib import Path

from utils.data.family import Archive, Download, Family, find_any
from utils.data.options import DataOptions

from . import Source
from .coco_photos import COCO_2017
from .label_maps import LABEL_MAPS
from .parts import PARTS

_BUILDERS = {**LABEL_MAPS, **PARTS}
_ANY = Path("any.jpg")
_DOWNLOADS: dict[str, tuple[Download, ...]] = {
    "ade20k": (
        Download(
            "ADE20K, scene parsing edition",
            (
                lambda paths, flag: find_any(paths.ade20k_label(_ANY).parent, "*.png", flag),
                lambda paths, flag: find_any(paths.ade20k_images(asked_by=flag)[0].parent, "*.jpg", flag),
            ),
            "sceneparsing.csail.mit.edu, ADEChallengeData2016.zip (not the full ADE20K, which is laid out by scenes)",
            "photos for non-commercial research and education only; see the source",
            full=20_210,
            archives=(
                Archive(
                    "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                    "ade20k",
                    ("images/training/*.jpg", "annotations/training/*.png"),
                ),
            ),
        ),
    ),
    "cocostuff": (
        Download(
            "COCO-Stuff label maps",
            (lambda paths, flag: find_any(paths.cocostuff_labels(asked_by=flag)[0].parent, "*.png", flag),),
            "github.com/nightrome/cocostuff, stuffthingmaps_trainval2017.zip",
            "CC BY 4.0",
            full=118_287,
            archives=(
                Archive(
                    "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip",
                    "cocostuff",
                    ("train2017/*.png",),
                ),
            ),
        ),
        COCO_2017,
    ),
    "mapillary": (
        Download(
            "Mapillary Vistas 2.0",
            (
                lambda paths, flag: paths.mapillary_config(asked_by=flag),
                lambda paths, flag: find_any(paths.mapillary_labels(asked_by=flag)[0].parent, "*.png", flag),
                lambda paths, flag: find_any(paths.mapillary_image(_ANY).parent, "*.jpg", flag),
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
            archives=(
                Archive(
                    "https://dl.fbaipublicfiles.com/paco/annotations/paco_lvis_v1.zip",
                    "vlpart/paco/annotations",
                    ("paco_lvis_v1_*.json",),
                ),
            ),
        ),
        COCO_2017,
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
            (lambda paths, flag: find_any(paths.pascal_part_image("any.jpg").parent, "*.jpg", flag),),
            "host.robots.ox.ac.uk/pascal/VOC/voc2010, VOCtrainval_03-May-2010.tar",
            "Flickr terms of use",
        ),
    ),
}


def _open(options: DataOptions, part: str) -> Source:
    return _BUILDERS[part](options.paths, asked_by=FAMILY.asked_by(part), plan=options.question_plan)


FAMILY = Family("sem_seg", _open, _DOWNLOADS.__getitem__, part_flag="sem_seg_data", known_parts=tuple(_BUILDERS))
