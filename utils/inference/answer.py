"""One question about one image, and everything chat shows and writes about the answer."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from model.drawing import FILL, annotate, check_picture, write_image
from model.errors import InputError
from model.files import write_json
from model.hub import files_read
from model.image import read_image
from model.outputs import NAME_BYTES, check_output_file, exclusive
from model.predictor import PixelLMPredictor
from model.replies import Reply
from utils.pictures import released_overlay

_STEM_BYTES = NAME_BYTES - len("_10000_masked_img_10000.jpg")


def check_outputs(model: str, image_path: str, *, output_dir: Path, output_json: str = "") -> None:
    """Refuse places where an answer could not be written, before the model is loaded; the pictures' names first.

    Args:
        model: folder or hub id.
    Raises:
        InputError: as ``check_output_file``.
    """
    for path in _files(output_dir, picture_stem(image_path), num_targets=1):
        check_picture(path, flag="--vis_save_path", inputs=[image_path])
    if output_json:
        check_output_file(output_json, flag="--output_json", inputs=[image_path, *files_read(model)])


def answer(
    predictor: PixelLMPredictor,
    image_path: str,
    question: str,
    *,
    output_dir: Path,
    output_json: str = "",
    alpha: float = FILL,
    **options: Any,
) -> tuple[Reply, list[Path]]:
    """Ask, and write the answer; returns the reply and the written pictures.

    Args:
        output_dir, output_json, alpha: as of ``write_answer``.
        options: as of ``PixelLMPredictor.ask``.
    Raises:
        InputError: if the image cannot be read, the question is too long, or the files cannot be written.
    """
    image = read_image(image_path)
    predictor.set_image(image)
    reply = predictor.ask(question, **options)
    written = write_answer(
        image, reply, output_dir=output_dir, stem=picture_stem(image_path), alpha=alpha, output_json=output_json,
        image_path=image_path, question=question,
    )  # fmt: skip
    return reply, written


def write_answer(
    image: np.ndarray,
    reply: Reply,
    *,
    output_dir: Path,
    stem: str,
    number: int | None = None,
    alpha: float = FILL,
    output_json: str = "",
    image_path: str = "",
    question: str = "",
) -> list[Path]:
    """Write the pictures of an answer: three for each target, and ``STEM_targets.png`` of all targets.

    A target has the files of the release, ``STEM_mask_J.jpg`` (0 or 100) and ``STEM_masked_img_J.jpg``, and its exact
    mask, ``STEM_mask_J.png`` (0 or 255). What an answer of the same names has left beyond them is removed. The files
    are written together: another chat that writes into the same folder waits.

    Args:
        image: (H, W, 3) uint8 RGB.
        stem: what the names begin with, see ``picture_stem``.
        number: of the answer about this photo, from 1; of a later one, the stem is ``STEM_NUMBER``.
        alpha: share of the color in a tinted pixel of the picture of all targets, 0 to 1.
        output_json: a file for what ``to_json`` gives; none by default.
        image_path, question: for that file.
    Returns:
        the pictures.
    Raises:
        InputError: if one of them cannot be written; then none is.
    """
    if number is not None and number > 1:
        stem = f"{stem}_{number}"
    masks = reply.masks(image.shape[:2])
    paths = _files(output_dir, stem, num_targets=len(masks)) if len(masks) else []
    for path in paths:
        check_picture(path)
    pictures = [picture for mask in masks for picture in _pictures(image, mask)]
    if len(masks):
        pictures.append(annotate(image, masks, alpha=alpha))
    with exclusive(output_dir):
        for path, picture in zip(paths, pictures, strict=True):
            write_image(path, picture)
        for path in _left_behind(output_dir, stem, num_targets=len(masks)):
            _remove(path)
        if output_json:
            write_json(Path(output_json), to_json(reply, image_path=image_path, question=question))
    return paths


def _pictures(image: np.ndarray, mask: np.ndarray) -> Iterator[np.ndarray]:
    """Those of a target, in the order of ``_names``."""
    yield mask.astype(np.uint8) * 100
    yield released_overlay(image, mask)
    yield mask.astype(np.uint8) * 255


def _names(stem: str, target: int) -> list[str]:
    return [f"{stem}_mask_{target}.jpg", f"{stem}_masked_img_{target}.jpg", f"{stem}_mask_{target}.png"]


def _files(output_dir: Path, stem: str, *, num_targets: int) -> list[Path]:
    """Three for each target, and the one of all."""
    names = [name for target in range(num_targets) for name in _names(stem, target)]
    return [output_dir / name for name in (*names, f"{stem}_targets.png")]


def _left_behind(output_dir: Path, stem: str, *, num_targets: int) -> list[Path]:
    """What an answer with more targets has left. A number counts where its ``masked_img`` is: a name that only we give.

    That file stands behind the others, so that what is left after a kill is found again.
    """
    pattern = re.compile(re.escape(stem) + r"_masked_img_(0|[1-9]\d*)\.jpg")
    numbers = [int(match[1]) for path in output_dir.iterdir() if (match := pattern.fullmatch(path.name))]
    found = []
    for target in sorted(number for number in numbers if number >= num_targets):
        mask, masked, exact = _names(stem, target)
        found += [mask, exact, masked]
    if found and num_targets == 0:
        found.insert(0, f"{stem}_targets.png")
    return [output_dir / name for name in found if (output_dir / name).is_file()]


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as err:
        raise InputError(f"{path} is of an earlier answer and cannot be removed ({err.strerror}); remove it") from err


def picture_stem(image_path: str) -> str:
    """What the names of its pictures begin with: the photo's name, or as much of it as a longer name has room for."""
    stem = Path(image_path).stem
    name = os.fsencode(stem)
    if len(name) <= _STEM_BYTES:
        return stem
    digest = hashlib.sha256(name).hexdigest()[:8]  # photos that begin alike stay apart
    return f"{name[: _STEM_BYTES - 9].decode(errors='ignore')}-{digest}"


def describe(reply: Reply, written: list[Path], *, brief: bool = False) -> str:
    """What chat prints.

    Args:
        written: see ``write_answer``.
        brief: name the files in one line; else in a line for each, as the release does.
    """
    lines = [f"text_output: {reply.numbered()}"]
    for number, target in enumerate(reply.targets):
        area = float(target.mask.float().mean())
        size = f"{area:.1%} of the image, score {target.score:.2f}" if area else "empty mask"
        lines.append(f"  [{number}] {target.phrase or '(no words)'}: {size}")
    if reply.reason:
        lines.append(f"note: {reply.reason}")
    if written and brief:
        *_, overview = written
        lines.append(f"{len(written)} files in {overview.parent}: {overview.name.removesuffix('targets.png')}...")
    elif written:
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
                "token_span": list(target.token_span),
                **{key: found[key] for key in ("phrase", "score", "area", "segmentation")},
            }
            for target, found in zip(reply.targets, reply.to_coco(), strict=True)
        ],
    }
