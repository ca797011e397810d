"""The photos of COCO, which several families read."""

from __future__ import annotations

from utils.data.family import Archive, Download, find_any

COCO_TERMS = "each photo its own Creative Commons license (Flickr terms of use)"
_SERVER = "http://images.cocodataset.org/zips"
TRAIN_2017 = Archive(f"{_SERVER}/train2017.zip", "coco", ("train2017/*.jpg",), is_large=True)
VAL_2017 = Archive(f"{_SERVER}/val2017.zip", "coco", ("val2017/*.jpg",), is_large=True)
TRAIN_2014 = Archive(f"{_SERVER}/train2014.zip", "refer_seg/images/mscoco/images", ("train2014/*.jpg",), is_large=True)
COCO_2017 = Download(
    "COCO 2017 train photos",
    (lambda paths, flag: find_any(paths.coco_image("train2017/any.jpg").parent, "*.jpg", flag),),
    "cocodataset.org, train2017.zip",
    COCO_TERMS,
    full=118_287,
    archives=(TRAIN_2017,),
)
COCO_2014 = Download(
    "COCO 2014 train photos",
    (lambda paths, flag: find_any(paths.refer_image("refcoco", "any.jpg").parent, "*.jpg", flag),),
    "cocodataset.org, train2014.zip",
    COCO_TERMS,
    full=82_783,
    archives=(TRAIN_2014,),
)
