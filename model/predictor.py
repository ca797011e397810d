"""PixelLMPredictor: set_image once, ask many times. Everything that answers goes through it.

Shapes: T generated tokens, N masks, D language-model width, H, W size of the photo.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaTokenizer

from .configuration import PRECISIONS
from .errors import InputError
from .generation import generate
from .image import ImageInput
from .PixelLM import PixelLMForCausalLM
from .replies import Reply, make_reply
from .structures import SegQueries, VisionFeatures
from .text.conversation import IMAGE, get_conversation
from .text.tokens import encode_conversation

logger = logging.getLogger(__name__)

_LONGEST_TOKEN = 100  # characters; tokens of real vocabularies are far shorter


class PixelLMPredictor:
    """Answers questions about one image at a time, with masks.

    Args:
        model: in evaluation mode, on its device.
        tokenizer: with the codebook in it.
    """

    def __init__(self, model: PixelLMForCausalLM, tokenizer: LlamaTokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._seen: tuple[ImageInput, VisionFeatures] | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        precision: str = "fp32",
        device: str | torch.device | None = None,
        vision_tower: str | None = None,
        conv_type: str | None = None,
    ) -> PixelLMPredictor:
        """Read a merged folder, ours or a published one.

        Args:
            precision: fp32, bf16 or fp16.
            device: default is the first GPU, else the CPU.
            vision_tower: only needed when the folder's own record of its tower is out of date.
            conv_type: template of a published folder that was not trained with llava_v1.
        Raises:
            InputError: if the folder cannot be read, or its files do not belong together.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, tokenizer, report = PixelLMForCausalLM.from_folder(
            folder, dtype=PRECISIONS[precision], vision_tower=vision_tower, conv_type=conv_type
        )
        logger.info("%s", report.describe())
        return cls(model.to(device), tokenizer)

    @torch.inference_mode()
    def set_image(self, image: np.ndarray) -> None:
        """Encode a (H, W, 3) uint8 RGB photo; every later ``ask`` is about it."""
        prepared = self.model.pixellm_config.preprocessor(image)
        pixel_values = prepared.pixel_values[None].to(self.model.device, self.model.dtype)
        valid_hw = torch.tensor([prepared.valid_hw], device=self.model.device)
        self._seen = prepared, self.model.encode_images(pixel_values, valid_hw)

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
        image, features = self._seen
        longest = self.model.model.config.max_position_embeddings
        if len(question) > _LONGEST_TOKEN * longest:  # pasted by mistake: a megabyte takes seconds to tokenize
            raise InputError(
                f"the question has {len(question)} characters, but the model reads at most {longest} tokens; shorten it"
            )
        prompt = self.prompt_ids(question)
        if len(prompt) >= longest:
            raise InputError(
                f"the question has {len(prompt)} tokens with the image, but the model reads at most {longest}; "
                "shorten it"
            )
        generated = generate(
            self.model,
            prompt,
            features,
            end_id=cast(int, self.tokenizer.eos_token_id),
            max_new_tokens=min(max_new_tokens, longest - len(prompt)),
        )
        logits = self._decode(generated.ids, generated.states, image, features)
        return make_reply(generated, logits, codebook=self.model.codebook, tokenizer=self.tokenizer)

    def prompt_ids(self, question: str) -> list[int]:
        """The open conversation of a question, image placeholder expanded."""
        config = self.model.pixellm_config
        rendered = get_conversation(config.conv_type).render([(question, None)], image=IMAGE)
        ids, _ = encode_conversation(self.tokenizer, rendered, num_image_tokens=config.num_image_tokens)
        return ids

    def _decode(self, ids: list[int], states: Tensor, image: ImageInput, features: VisionFeatures) -> Tensor:
        """T ids and (T, D) states -> (N, H, W) logits of their complete groups, at the size of the photo."""
        model, codebook = self.model, self.model.codebook
        _, starts = codebook.find_groups(torch.tensor([ids], device=model.device))  # (N,)
        position = starts[:, None] + torch.arange(codebook.size, device=starts.device)  # states[i] predicted ids[i]
        grouped = states[position].unflatten(1, (codebook.scales, codebook.tokens))  # (N, S, K, D)
        zeros = torch.zeros(len(starts), dtype=torch.long, device=starts.device)
        low_res = model.decode_masks(features, SegQueries(model.fuse(grouped), zeros, zeros))
        _, _, height, width = image.region
        logits = model.resize_masks(low_res, valid_hw=features.valid_hw[0], out_hw=(height, width))
        return image.place(logits, outside=float("-inf"))
