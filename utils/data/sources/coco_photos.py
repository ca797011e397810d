"""The photos of COCO, which several families read."""

from __future__ import annotations

from utils.data.family import Download, find_any

COCO_TERMS = "each photo its own Creative Commons license (Flickr terms of use)"
COCO_2017 = Download(
    "COCO 2017 train photos",
    (lambda paths, flag: find_any(paths.coco_image("train2017/any.jpg").parent, "*.jpg", flag),),
    "cocodataset.org, train2017.zip",
    COCO_TERMS,
    full=118_287,
)
COCO_2014 = Download(
    "COCO 2014 train photos",
    (lambda paths, flag: find_any(paths.refer_image("refcoco", "any.jpg").parent, "*.jpg", flag),),
    "cocodataset.org, train2014.zip",
    COCO_TERMS,
    full=82_783,
)
