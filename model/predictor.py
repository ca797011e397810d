"""PixelLMPredictor: set_image once, ask many times. Everything that answers goes through it.

Shapes: T generated tokens, N masks, D language-model width, H, W size of the photo.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaTokenizer

from .configuration import PRECISIONS
from .errors import InputError
from .image import Photo, photo_pixels
from .PixelLM import PixelLMForCausalLM
from .precision import settle_precision
from .processor import PixelLMProcessor
from .replies import Reply
from .structures import VisionFeatures
from .weights.quantization import quantization

_LONGEST_TOKEN = 100  # characters; tokens of real vocabularies are far shorter


class PixelLMPredictor:
    """Answers questions about one image at a time, with masks.

    Args:
        model: in evaluation mode, on its device.
        tokenizer: with the codebook in it.
    """

    def __init__(self, model: PixelLMForCausalLM, tokenizer: LlamaTokenizer) -> None:
        self.model = model
        self.processor = PixelLMProcessor.of(model.config, tokenizer)
        self._seen: tuple[tuple[int, int], VisionFeatures] | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        precision: str = "fp32",
        bits: int = 16,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> PixelLMPredictor:
        """Read a merged folder, ours or a published one.

        Args:
            precision: fp32, bf16 or fp16, or auto, which takes what the device computes in.
            bits: 8 or 4 quantize the language model.
            device: default is the first GPU, else the CPU.
            options: as of ``PixelLMForCausalLM.from_pretrained``.
        Raises:
            InputError: if the folder cannot be read, or its files do not belong together.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = PRECISIONS[settle_precision(precision, device, bits=bits)]
        model = PixelLMForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": device},
            quantization_config=quantization(bits, dtype=dtype),
            **options,
        )
        return cls(model, model.require_processor().tokenizer)

    @torch.inference_mode()
    def set_image(self, image: np.ndarray) -> None:
        """Encode a (H, W, 3) uint8 RGB photo; every later ``ask`` is about it."""
        inputs = self.processor.image_processor(image)
        pixel_values = inputs["pixel_values"].to(self.model.device, self.model.dtype)
        features = self.model.encode_images(pixel_values, inputs["valid_hw"].to(self.model.device))
        self._seen = (image.shape[0], image.shape[1]), features

    def segment(self, photo: Photo, question: str, *, max_new_tokens: int = 512) -> Reply:
        """Answer one question about one photo: ``set_image`` and ``ask`` in one.

        Args:
            photo: a file name, a PIL image or an (H, W, 3) uint8 RGB array.
        Raises:
            InputError: if the photo cannot be read, or as ``ask``.
        """
        self.set_image(photo_pixels(photo))
        return self.ask(question, max_new_tokens=max_new_tokens)

    @torch.inference_mode()
    def ask(self, question: str, *, max_new_tokens: int = 512) -> Reply:
        """Answer a question about the current image, greedily.

        Raises:
            InputError: if the question is too long for the model or is not UTF-8, or no token may be generated.
            ValueError: before ``set_image``.
        """
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}; expected 1 or more")
        if self._seen is None:
            raise ValueError("call set_image before ask")
        photo_hw, features = self._seen
        longest = self.model.config.text_config.max_position_embeddings
        if len(question) > _LONGEST_TOKEN * longest:  # pasted by mistake: a megabyte takes seconds to tokenize
            raise InputError(
                f"the question has {len(question)} characters, but the model reads at most {longest} tokens; shorten it"
            )
        prompt = self.processor.prompt_ids(question)
        if len(prompt) >= longest:
            raise InputError(
                f"the question has {len(prompt)} tokens with the image, but the model reads at most {longest}; "
                "shorten it"
            )
        generated = self.model.generate(
            torch.tensor([prompt], device=self.model.device),
            vision_features=features,
            do_sample=False,
            num_beams=1,
            eos_token_id=self.processor.tokenizer.eos_token_id,
            max_new_tokens=min(max_new_tokens, longest - len(prompt)),
        )
        return self.processor.replies(generated, [photo_hw], prompt_length=len(prompt))[0]
