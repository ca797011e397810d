"""Masks as the annotation files of MUSE and RefCOCO store them."""

import cv2
import numpy as np

_UPSCALE = 3


def uncompressed_rle(mask: np.ndarray) -> dict[str, list[int]]:
    """COCO's uncompressed run-length code of a (H, W) bool mask: exact.

    Runs go down the columns and alternate between background and object, beginning with background.
    """
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]]))
    counts = [0, *runs.tolist()] if flat[0] else runs.tolist()
    return {"size": list(mask.shape), "counts": counts}


def polygons(mask: np.ndarray) -> list[list[float]]:
    """Outlines of a (H, W) bool mask as COCO polygons [x0, y0, x1, y1, ...] in pixels.

    Polygons cannot have holes, so a mask with one is cut in two through it; the pieces do not overlap.
    Outlines run a sixth of a pixel inside the outer edges of the mask and are thinned by at most a third of a
    pixel, so every pixel center stays on its side: pycocotools draws exactly the same mask back. A program
    that rounds the points to whole pixels loses about half a pixel along the edge.
    """
    top, left = (int(np.flatnonzero(mask.any(axis=axis))[0]) for axis in (1, 0))
    box = mask[top:, left:]
    box = box[: np.flatnonzero(box.any(axis=1))[-1] + 1, : np.flatnonzero(box.any(axis=0))[-1] + 1]
    # Contours pass through the centers of edge pixels; on an upscaled mask that is close to the true edge.
    large = np.pad(box, 1).repeat(_UPSCALE, axis=0).repeat(_UPSCALE, axis=1).astype(np.uint8)
    contours, hierarchy = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    holes = [contour for contour, links in zip(contours, hierarchy[0], strict=True) if links[3] >= 0]
    if holes:
        biggest = max(holes, key=cv2.contourArea)
        cut = left - 1 + int(biggest[:, 0, 0].mean()) // _UPSCALE
        halves = mask.copy(), mask.copy()
        halves[0][:, cut:], halves[1][:, :cut] = False, False
        return [polygon for half in halves if half.any() for polygon in polygons(half)]
    outlines = []
    for contour in contours:
        thin = cv2.approxPolyDP(contour, _UPSCALE / 3, closed=True)[:, 0].astype(float)
        points = (thin + 0.5) / _UPSCALE + (left - 1, top - 1)
        if len(points) >= 3:
            outlines.append(points.round(2).ravel().tolist())
    return outlines
