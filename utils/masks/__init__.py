"""Masks in files: run lengths, polygons, outlines. The only room with pycocotools; no torch."""
