"""PixelLMPredictor: set_image once, ask many times. Everything that generates text goes through it.

Shapes: T generated tokens, L prompt tokens, N masks, D language-model width.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaTokenizer

from .checkpoint import load_with_report
from .conversation import IMAGE_MARK, get_conversation
from .errors import InputError
from .image import ImageInput
from .PixelLM import PixelLMForCausalLM
from .structures import Reply, SegQueries, Target, VisionFeatures
from .tokens import decode_released, encode_conversation, seg_text

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class _Generated:
    """Greedy output: ids (end token included) and, for each, the state that predicted it, (T, D)."""

    ids: list[int]
    states: Tensor
    finished: bool


class PixelLMPredictor:
    """Answers questions about one image at a time, with masks.

    Args:
        model: in evaluation mode, on its device.
        tokenizer: with the codebook in it.
    """

    def __init__(self, model: PixelLMForCausalLM, tokenizer: LlamaTokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._image: ImageInput | None = None
        self._features: VisionFeatures | None = None

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
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, tokenizer, report = load_with_report(
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
        self._features = self.model.encode_images(pixel_values, valid_hw)
        self._image = prepared

    @torch.inference_mode()
    def ask(self, question: str, *, max_new_tokens: int = 512, use_cache: bool = True) -> Reply:
        """Answer a question about the current image, greedily.

        Args:
            use_cache: false recomputes everything for each token, as the release does; only for checking.
        """
        if self._features is None:
            raise ValueError("call set_image before ask")
        prompt = self.prompt_ids(question)
        limit = min(max_new_tokens, self.model.model.config.max_position_embeddings - len(prompt))
        if limit < 1:
            raise InputError(
                f"the question has {len(prompt)} tokens with the image, but the model reads at most "
                f"{self.model.model.config.max_position_embeddings}; shorten it"
            )
        generated = self._generate(prompt, max_new_tokens=limit, use_cache=use_cache)
        return self._reply(generated)

    def prompt_ids(self, question: str) -> list[int]:
        """The open conversation of a question, image placeholder expanded."""
        config = self.model.pixellm_config
        rendered = get_conversation(config.conv_type).render([(f"{IMAGE_MARK}\n{question}", None)])
        ids, _ = encode_conversation(self.tokenizer, rendered, num_image_tokens=config.num_image_tokens)
        return ids

    def _generate(self, prompt: list[int], *, max_new_tokens: int, use_cache: bool) -> _Generated:
        model, device = self.model, self.model.device
        input_ids = torch.tensor([prompt], device=device)
        attention = torch.ones_like(input_ids, dtype=torch.bool)
        embeds, attention = model.embed(input_ids, attention, self._features, torch.zeros(1, device=device).long())
        cache = DynamicCache() if use_cache else None
        step, start = embeds, 0
        ids: list[int] = []
        states: list[Tensor] = []
        for _ in range(max_new_tokens):
            positions = torch.arange(start, start + step.shape[1], device=device)[None]
            hidden = model.model(
                inputs_embeds=step,
                attention_mask=attention,
                position_ids=positions,
                past_key_values=cache,
                use_cache=use_cache,
            ).last_hidden_state[:, -1]  # (1, D)
            next_id = int(model.lm_head(hidden).argmax(-1))
            ids.append(next_id)
            states.append(hidden[0])
            if next_id == self.tokenizer.eos_token_id:
                break
            next_embed = model.model.embed_tokens(torch.tensor([[next_id]], device=device))
            attention = torch.cat([attention, attention.new_ones(1, 1)], dim=1)
            if use_cache:
                start += step.shape[1]
                step = next_embed
            else:
                step = torch.cat([step, next_embed], dim=1)
        return _Generated(ids, torch.stack(states), ids[-1] == self.tokenizer.eos_token_id)

    def _reply(self, generated: _Generated) -> Reply:
        codebook = self.model.codebook
        ids = torch.tensor([generated.ids], device=self.model.device)
        _, starts = codebook.find_groups(ids)  # (N,)
        logits = self._decode(generated.states, starts)
        placed = self._image.place(logits, outside=float("-inf"))
        spans = [(int(start), int(start) + codebook.size) for start in starts]
        targets = [
            Target(phrase, span, mask_logits > 0, _foreground_score(mask_logits), mask_logits)
            for phrase, span, mask_logits in zip(self._phrases(generated.ids, spans), spans, placed, strict=True)
        ]
        text = self.decode(generated.ids)
        return Reply(text, generated.ids, targets, self._reason(generated, ids, len(targets)))

    def _decode(self, states: Tensor, starts: Tensor) -> Tensor:
        """(T, D) states and (N,) group starts -> (N, H, W) logits of the region that the network saw."""
        model, codebook = self.model, self.model.codebook
        position = starts[:, None] + torch.arange(codebook.size, device=starts.device)  # states[i] predicted ids[i]
        grouped = states[position].unflatten(1, (codebook.scales, codebook.tokens))  # (N, S, K, D)
        embeds = model.model.token_fusion(model.model.text_hidden_fcs[0](grouped))
        zeros = torch.zeros(len(starts), dtype=torch.long, device=starts.device)
        low_res = model.decode_masks(self._features, SegQueries(embeds, zeros, zeros))
        _, _, height, width = self._image.region
        return model.resize_masks(low_res, valid_hw=self._features.valid_hw[0], out_hw=(height, width))

    def decode(self, ids: list[int]) -> str:
        """Answer text without the end mark, single-spaced."""
        kept = [token_id for token_id in ids if token_id != self.tokenizer.eos_token_id]
        return " ".join(decode_released(self.tokenizer, kept).split())

    def group_text(self) -> str:
        """One token group as it stands in a reply's text."""
        return seg_text(self.model.codebook.scales, self.model.codebook.tokens)

    def _phrases(self, ids: list[int], spans: list[tuple[int, int]]) -> list[str]:
        """The words before each group, back to the group before."""
        phrases, previous = [], 0
        for start, end in spans:
            words = self.decode(ids[previous:start])
            phrases.append(words.strip(" ,.;:").removeprefix("and ").strip())
            previous = end
        return phrases

    def _reason(self, generated: _Generated, ids: Tensor, num_targets: int) -> str | None:
        reasons = []
        stray = self.model.codebook.count_stray(ids)
        if stray:
            reasons.append(f"{stray} segmentation tokens stood outside a complete group and were dropped")
        if not generated.finished:
            reasons.append(f"the answer was cut after {len(generated.ids)} tokens")
        if num_targets == 0 and not stray:
            reasons.append("the model answered without a segmentation token")
        return "; ".join(reasons) or None


def _foreground_score(logits: Tensor) -> float:
    """Mean probability of the pixels inside the mask (release), 0 when the mask is empty."""
    inside = logits > 0
    return float((logits.sigmoid() * inside).sum() / inside.sum().clamp(min=1))
