"""One question about one image, and everything chat shows and writes about the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from model.errors import InputError
from model.image import read_image
from model.predictor import PixelLMPredictor
from model.replies import Reply
from utils.masks.rle import encode_rle
from utils.pictures import PALETTE, overlay, released_overlay, write_image


def answer(
    predictor: PixelLMPredictor, image_path: str, question: str, *, output_dir: Path, max_new_tokens: int
) -> tuple[Reply, list[Path]]:
    """Ask, and write the pictures; returns the reply and the written files.

    Raises:
        InputError: if the image cannot be read, the question is too long, or the pictures cannot be written.
    """
    image = read_image(image_path)
    predictor.set_image(image)
    reply = predictor.ask(question, max_new_tokens=max_new_tokens)
    masks = target_masks(reply, image.shape[:2])
    return reply, write_pictures(image, masks, output_dir=output_dir, stem=Path(image_path).stem)


def target_masks(reply: Reply, photo_hw: tuple[int, int]) -> np.ndarray:
    """(N, H, W) bool."""
    if not reply.targets:
        return np.zeros((0, *photo_hw), dtype=bool)
    return np.stack([target.mask.cpu().numpy() for target in reply.targets])


def write_pictures(image: np.ndarray, masks: np.ndarray, *, output_dir: Path, stem: str) -> list[Path]:
    """Released names per target (``_mask_<j>``: 0 or 100, ``_masked_img_<j>``), and one picture of all targets.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (N, H, W) bool.
    Raises:
        InputError: if nothing can be written there.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise InputError(f"{output_dir} cannot be written ({err.strerror}); choose another folder") from err
    written = []
    for index, mask in enumerate(masks):
        mask_path = output_dir / f"{stem}_mask_{index}.jpg"
        write_image(mask_path, mask.astype(np.uint8) * 100)
        single_path = output_dir / f"{stem}_masked_img_{index}.jpg"
        write_image(single_path, released_overlay(image, mask))
        written += [mask_path, single_path]
    if len(masks):
        together = output_dir / f"{stem}_targets.png"
        write_image(together, overlay(image, masks, colors=PALETTE, alpha=0.5))
        written.append(together)
    return written


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
