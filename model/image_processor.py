"""The image half of the processor, under transformers' name for it.

Shapes: B images, R input side; H, W size of a photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature
from transformers.image_processing_base import ImageProcessingMixin

from .errors import InputError
from .image import ImagePreprocessor, Photo, photo_pixels


class PixelLMImageProcessor(ImageProcessingMixin):
    """Photos -> network input, and the place of a photo in it.

    Args:
        preprocess: resizes, normalizes, pads or crops.
        patch_size: pixels per side of a patch of the tower; a remainder of the input is seen by no patch.
    """

    model_input_names = ["pixel_values", "valid_hw", "image_index"]  # noqa: RUF012

    def __init__(self, preprocess: ImagePreprocessor, patch_size: int) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.patch_size = patch_size

    @property
    def covered_size(self) -> int:
        """Pixels per side that patches cover, from the top left."""
        return self.preprocess.size // self.patch_size * self.patch_size

    def to_dict(self) -> dict[str, Any]:
        """preprocessor_config.json: what comes nearest in CLIP's own terms, for programs that read only these."""
        pad, size = self.preprocess.pad, self.preprocess.size
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "do_center_crop": not pad,
            "do_pad": pad,
            "size": {("longest_edge" if pad else "shortest_edge"): size},
            "crop_size": {"height": size, "width": size},
            "do_normalize": True,
            "image_mean": list(self.preprocess.mean),
            "image_std": list(self.preprocess.std),
        }

    def __call__(self, images: Photo | Sequence[Photo], **options: Any) -> BatchFeature:
        """B photos -> pixel_values (B, 3, R, R) and valid_hw (B, 2).

        Args:
            images: (H, W, 3) uint8 RGB arrays, PIL images or file names.
        Raises:
            InputError: if a photo cannot be read.
        """
        refuse_options(options)
        photos = [images] if isinstance(images, Photo) else images
        prepared = [self.preprocess(photo_pixels(photo)) for photo in photos]
        return BatchFeature(
            {
                "pixel_values": torch.stack([photo.pixel_values for photo in prepared]),
                "valid_hw": torch.tensor([photo.valid_hw for photo in prepared]),
            }
        )


def refuse_options(options: dict[str, Any]) -> None:
    """transformers' usual options change nothing here, or would change what the network was trained on."""
    given = {name: value for name, value in options.items() if value is not None}  # "videos" of chat templates is None
    if given.pop("return_tensors", "pt") != "pt":
        raise InputError("return_tensors: only 'pt' is available")
    changes_nothing = {"truncation": False, "return_attention_mask": True, "padding_side": "left"}
    given = {
        name: value for name, value in given.items() if name not in changes_nothing or value != changes_nothing[name]
    }
    unknown = set(given) - {"padding", "add_special_tokens"}
    if unknown:
        raise InputError(f"{', '.join(sorted(unknown))}: this processor has no such option")
