"""PixelLM: image + question -> answer text + one mask per token group. Reads like the paper's figure 2.

Shapes: B images, Q conversations, L tokens, N masks, S scales, K tokens per scale, P image tokens, R input side,
D language-model width, C decoder width, g patches per side.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaModel, LlamaTokenizer
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from .codebook import TokenFusion, build_text_projection, gather_seg_states
from .configuration import PixelLMConfig
from .image import patch_valid_mask, resize_logits
from .pixel_decoder import MaskDecoder, PromptEncoder, build_feature_neck
from .projector import build_projector
from .structures import Batch, PixelLMOutput, SegQueries, VisionFeatures
from .text.tokens import IGNORE_INDEX, IMAGE_TOKEN_ID, SegCodebook
from .vision_tower import VisionTower
from .weights.checkpoint import LoadReport, fill, read_folder

logger = logging.getLogger(__name__)


class PixelLMModel(LlamaModel):
    """LLaMA's blocks and everything PixelLM adds, under the released parameter names.

    Nothing of LlamaModel is overridden; it is a base class only because the release names LLaMA's parameters
    ``model.layers.*`` beside ``model.mask_decoder.*``.
    """

    def __init__(self, config: PixelLMConfig) -> None:
        llama = config.llama_config()
        super().__init__(llama)
        width = llama.hidden_size
        tower_width, hidden = config.vision["hidden_size"], config.mm_projector_hidden_dim * width
        self.vision_tower = VisionTower(config)
        self.mm_projector = build_projector(tower_width, hidden, width)
        if config.separate_mm_projector:
            self.out_mm_projector = build_projector(tower_width, hidden, width)
        self.prompt_encoder = PromptEncoder(config.out_dim)
        self.mask_decoder = MaskDecoder(config)
        self.image_feature_neck = build_feature_neck(width, config.out_dim)
        self.text_hidden_fcs = nn.ModuleList([build_text_projection(width, config.out_dim)])
        self.token_fusion = TokenFusion(config.image_feature_scale_num, config.seg_token_num)


class PixelLMForCausalLM(nn.Module):
    """The composition: tower -> projectors -> LLaMA -> codebook -> pixel decoder."""

    def __init__(self, config: PixelLMConfig) -> None:
        super().__init__()
        self.pixellm_config = config
        self.codebook = SegCodebook(config.image_feature_scale_num, config.seg_token_num, config.seg_token_ids)
        self.model = PixelLMModel(config)
        llama = self.model.config
        self.lm_head = nn.Linear(llama.hidden_size, llama.vocab_size, bias=False)

    @classmethod
    def from_weights(
        cls,
        config: PixelLMConfig,
        state: dict[str, Tensor],
        *,
        dtype: torch.dtype,
        source: str,
        may_initialize: tuple[str, ...] = (),
    ) -> tuple[PixelLMForCausalLM, LoadReport]:
        """Make the network in evaluation mode from tensors; arguments and errors as in ``weights.checkpoint.fill``."""
        with torch.device("meta"):
            network = cls(config)
        # Its tables are not in the state dict, so they must be made on a real device.
        network.model.rotary_emb = LlamaRotaryEmbedding(network.model.config)
        report = fill(network, state, dtype=dtype, source=source, may_initialize=may_initialize)
        return network.eval(), report

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        vision_tower: str | None = None,
        conv_type: str | None = None,
    ) -> tuple[PixelLMForCausalLM, LlamaTokenizer, LoadReport]:
        """Read a merged folder; arguments and errors as in ``weights.checkpoint.read_folder``.

        Returns:
            the network, its tokenizer with the codebook in it, and what happened to every weight.
        """
        content = read_folder(folder, vision_tower=vision_tower, conv_type=conv_type)
        network, report = cls.from_weights(content.config, content.state, dtype=dtype, source=content.source)
        return network, content.tokenizer, report

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> PixelLMForCausalLM:
        """The network of ``from_folder``, under the name that users of transformers expect."""
        network, _, report = cls.from_folder(folder, **options)
        logger.info("%s", report.describe())
        return network

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.lm_head.weight.dtype

    def encode_images(self, pixel_values: Tensor, valid_hw: Tensor) -> VisionFeatures:
        """Encode each image once.

        Args:
            pixel_values: (B, 3, R, R) float, normalized, zero in the padding.
            valid_hw: (B, 2) long, rows and columns that show the photo, 1 to R.
        """
        config = self.pixellm_config
        scales = self.model.vision_tower(pixel_values, valid_hw)  # (S, B, g*g, V)
        grid = (config.patch_grid, config.patch_grid)
        deepest = scales[0].transpose(1, 2).unflatten(2, grid)  # (B, V, g, g)
        if config.llm_grid != config.patch_grid:
            pooled_hw = (config.llm_grid, config.llm_grid)
            deepest = F.interpolate(deepest.float(), pooled_hw, mode="bilinear", align_corners=False).to(scales.dtype)
        decoder_projector = self.model.out_mm_projector if config.separate_mm_projector else self.model.mm_projector
        pyramid = decoder_projector(scales)  # (S, B, g*g, D)
        return VisionFeatures(
            llm=self.model.mm_projector(deepest.flatten(2).transpose(1, 2)),
            patch_mask=patch_valid_mask(valid_hw, size=config.covered_size, grid=config.llm_grid).flatten(1),
            pyramid=pyramid.transpose(2, 3).unflatten(3, grid),
            valid_hw=valid_hw,
        )

    def embed(
        self, input_ids: Tensor, attention_mask: Tensor, features: VisionFeatures, image_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Put image features in the place of the placeholders.

        Args:
            input_ids: (Q, L) with ``IMAGE_TOKEN_ID`` at every image token; a conversation has P of them, or none.
            attention_mask: (Q, L) bool.
            image_index: (Q,).
        Returns:
            embeddings (Q, L, D) and the attention mask with padded image tokens hidden, (Q, L) bool.
        Raises:
            ValueError: if a conversation's placeholders do not number P.
        """
        is_image = input_ids == IMAGE_TOKEN_ID
        counts, expected = is_image.sum(1), features.llm.shape[1]
        if not bool(((counts == expected) | (counts == 0)).all()):
            raise ValueError(f"image placeholders per conversation {counts.tolist()} != {expected} image features")
        embeds = self.model.embed_tokens(input_ids.masked_fill(is_image, 0))
        sees_image = image_index[counts > 0]
        rows = features.llm[sees_image].to(embeds.dtype).flatten(0, 1)
        embeds = embeds.masked_scatter(is_image[..., None], rows)
        visible = features.patch_mask[sees_image].flatten()
        return embeds, attention_mask.masked_scatter(is_image, visible)

    def forward(self, batch: Batch) -> PixelLMOutput:
        """Training forward pass: language-model loss and mask logits at original size."""
        features = self.encode_images(batch.pixel_values, batch.valid_hw)
        embeds, attention_mask = self.embed(batch.input_ids, batch.attention_mask, features, batch.image_index)
        hidden = self.model(
            inputs_embeds=embeds, attention_mask=attention_mask, position_ids=_positions(embeds), use_cache=False
        ).last_hidden_state
        queries = self.seg_queries(hidden, batch.input_ids, batch.image_index)
        low_res = self.decode_masks(features, queries)
        per_image = [low_res[queries.image_index == b] for b in range(len(batch.masks))]
        return PixelLMOutput(
            lm_loss=self.lm_loss(hidden, batch.labels),
            mask_logits=[
                self.resize_masks(logits, valid_hw=features.valid_hw[b], out_hw=batch.orig_hw[b])
                for b, logits in enumerate(per_image)
            ],
            low_res_logits=per_image,
            query_index=queries.query_index,
            hidden=hidden,
        )

    def lm_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy in float32, with logits computed only where a label is supervised; () tensor."""
        supervised = labels[:, 1:] != IGNORE_INDEX
        logits = self.lm_head(hidden[:, :-1][supervised])
        targets = labels[:, 1:][supervised]
        if len(targets) == 0:
            return logits.sum().float()  # zero, and every rank still touches lm_head
        return F.cross_entropy(logits.float(), targets)

    def seg_queries(self, hidden: Tensor, input_ids: Tensor, image_index: Tensor) -> SegQueries:
        """(Q, L, D) states -> fused decoder queries, ordered by image and then by reading order."""
        states, query_index = gather_seg_states(hidden, input_ids, codebook=self.codebook)
        embeds = self.fuse(states)
        order = torch.argsort(image_index[query_index], stable=True)
        query_index = query_index[order]
        return SegQueries(embeds[order], query_index, image_index[query_index])

    def fuse(self, states: Tensor) -> Tensor:
        """States of complete token groups (N, S, K, D) -> one decoder query per scale, (N, S, C) (paper: phi)."""
        return self.model.token_fusion(self.model.text_hidden_fcs[0](states))

    def decode_masks(self, features: VisionFeatures, queries: SegQueries) -> Tensor:
        """Decode one mask per query, N of them or none.

        Returns:
            (N, h, w) low-resolution logits of the padded input.
        """
        flat = self.model.image_feature_neck(features.pyramid.flatten(0, 1))
        pyramid = flat.unflatten(0, features.pyramid.shape[:2])  # (S, B, C, g, g)
        embeds, image_index = queries.embeds, queries.image_index
        count = len(embeds)
        if count == 0:
            # Some GPU attention kernels refuse an empty batch. One query is decoded and dropped, which also keeps
            # every trained parameter in the graph: a process without masks must not leave the others waiting.
            embeds, image_index = embeds.sum() + embeds.new_zeros(1, *embeds.shape[1:]), image_index.new_zeros(1)
        return self.model.mask_decoder(pyramid[:, image_index], embeds, prompt=self.model.prompt_encoder)[:count]

    def resize_masks(self, logits: Tensor, *, valid_hw: Tensor, out_hw: tuple[int, int]) -> Tensor:
        """(N, h, w) logits of one image -> (N, *out_hw), padding cut off."""
        rows, columns = valid_hw.tolist()
        return resize_logits(logits, size=self.pixellm_config.covered_size, valid_hw=(rows, columns), out_hw=out_hw)


def _positions(embeds: Tensor) -> Tensor:
    """(1, L): padded image tokens count too, as in the release."""
    return torch.arange(embeds.shape[1], device=embeds.device)[None]
