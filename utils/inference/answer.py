"""One question about one image, and everything chat shows and writes about the answer."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from model.drawing import check_picture, overlay, write_image
from model.files import write_json
from model.hub import files_read
from model.image import read_image
from model.outputs import NAME_BYTES, check_output_file, exclusive
from model.predictor import PixelLMPredictor
from model.replies import Reply
from utils.masks.rle import encode_rle
from utils.pictures import released_overlay

_STEM_BYTES = NAME_BYTES - len("_masked_img_10000.jpg")


def check_outputs(model: str, image_path: str, *, output_dir: Path, output_json: str = "") -> None:
    """Refuse places where an answer could not be written, before the model is loaded; the pictures' names first.

    Args:
        model: folder or hub id.
    Raises:
        InputError: as ``check_output_file``.
    """
    for path in _picture_paths(output_dir, picture_stem(image_path), num_targets=1):
        check_picture(path, flag="--vis_save_path", inputs=[image_path])
    if output_json:
        check_output_file(output_json, flag="--output_json", inputs=[image_path, *files_read(model)])


def answer(
    predictor: PixelLMPredictor,
    image_path: str,
    question: str,
    *,
    output_dir: Path,
    max_new_tokens: int,
    output_json: str = "",
) -> tuple[Reply, list[Path]]:
    """Ask, and write the pictures and, to ``output_json``, the masks; returns the reply and the written pictures.

    The files of one answer are written together: another chat that writes into the same folder waits.

    Raises:
        InputError: if the image cannot be read, the question is too long, or the files cannot be written.
    """
    image = read_image(image_path)
    predictor.set_image(image)
    reply = predictor.ask(question, max_new_tokens=max_new_tokens)
    masks = reply.masks(image.shape[:2])
    with exclusive(output_dir):
        written = write_pictures(image, masks, output_dir=output_dir, stem=picture_stem(image_path))
        if output_json:
            write_json(Path(output_json), to_json(reply, image_path=image_path, question=question))
    return reply, written


def write_pictures(image: np.ndarray, masks: np.ndarray, *, output_dir: Path, stem: str) -> list[Path]:
    """Released names per target (``_mask_<j>``: 0 or 100, ``_masked_img_<j>``), and one picture of all targets.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (N, H, W) bool.
    Raises:
        InputError: if one of them cannot be written; then none is.
    """
    if not len(masks):
        return []
    paths = _picture_paths(output_dir, stem, num_targets=len(masks))
    for path in paths:
        check_picture(path)
    pictures = [drawn for mask in masks for drawn in (mask.astype(np.uint8) * 100, released_overlay(image, mask))]
    pictures.append(overlay(image, masks))
    for path, picture in zip(paths, pictures, strict=True):
        write_image(path, picture)
    return paths


def _picture_paths(output_dir: Path, stem: str, *, num_targets: int) -> list[Path]:
    """Two for each target, and the one of all."""
    names = [f"{stem}_{kind}_{index}.jpg" for index in range(num_targets) for kind in ("mask", "masked_img")]
    return [output_dir / name for name in (*names, f"{stem}_targets.png")]


def picture_stem(image_path: str) -> str:
    """What the names of its pictures begin with: the photo's name, or as much of it as a longer name has room for."""
    stem = Path(image_path).stem
    name = os.fsencode(stem)
    if len(name) <= _STEM_BYTES:
        return stem
    digest = hashlib.sha256(name).hexdigest()[:8]  # photos that begin alike stay apart
    return f"{name[: _STEM_BYTES - 9].decode(errors='ignore')}-{digest}"


def describe(reply: Reply, written: list[Path]) -> str:
    """What chat prints."""
    lines = [f"text_output: {reply.numbered()}"]
    for number, target in enumerate(reply.targets):
        area = float(target.mask.float().mean())
        lines.append(f"  [{number}] {target.phrase or '(no words)'}: {area:.1%} of the image, score {target.score:.2f}")
    if reply.reason:
        lines.append(f"note: {reply.reason}")
    lines += [f"{path} has been saved." for path in written]
    return "\n".join(lines)


def to_json(reply: Reply, *, image_path: str, question: str) -> dict[str, Any]:
    """A reply as plain data; masks are COCO RLE of the photo's size."""
    return {
        "image": image_path,
        "prompt": question,
        "text": reply.text,
        "output_ids": reply.output_ids,
        "reason": reply.reason,
        "targets": [
            {
                "phrase": target.phrase,
                "token_span": list(target.token_span),
                "score": target.score,
                "area": int(target.mask.sum()),
                "segmentation": encode_rle(target.mask.cpu().numpy()),
            }
            for target in reply.targets
        ],
    }
