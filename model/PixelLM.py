"""PixelLM: image + question -> answer text + one mask per token group. Reads like the paper's figure 2.

Shapes: B images, Q conversations, L tokens, N masks, S scales, K tokens per scale, P image tokens, R input side,
D language-model width, C decoder width, g patches per side.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import Cache, GenerationConfig, GenerationMixin, LlamaModel

from .attention import attention_in_rows
from .codebook import TokenFusion, build_text_projection, gather_seg_states
from .configuration import PixelLMConfig
from .generation import MAX_NEW_TOKENS, AnswersWithMasks
from .image import patch_valid_mask, resize_logits
from .pixel_decoder import MaskDecoder, PromptEncoder, build_feature_neck
from .pretrained import OwnRules, PixelLMPreTrainedModel
from .projector import build_projector
from .rows import rows_of_conversations, supervised_positions
from .structures import PixelLMOutput, SegQueries, TokenRows, VisionFeatures
from .text.tokens import IMAGE_TOKEN_ID
from .vision_tower import VisionTower


class PixelLMModel(OwnRules, LlamaModel):
    """LLaMA's blocks and everything PixelLM adds, under the released parameter names.

    No computation of LlamaModel is overridden; it is a base class only because the release names LLaMA's parameters
    ``model.layers.*`` beside ``model.mask_decoder.*``.
    """

    def __init__(self, config: PixelLMConfig) -> None:
        llama = config.text_config
        super().__init__(llama)
        width = llama.hidden_size
        tower_width, hidden = config.vision_config.hidden_size, config.mm_projector_hidden_dim * width
        self.vision_tower = VisionTower(config)
        self.mm_projector = build_projector(tower_width, hidden, width)
        if config.separate_mm_projector:
            self.out_mm_projector = build_projector(tower_width, hidden, width)
        self.prompt_encoder = PromptEncoder(config.out_dim)
        self.mask_decoder = MaskDecoder(config)
        self.image_feature_neck = build_feature_neck(width, config.out_dim)
        self.text_hidden_fcs = nn.ModuleList([build_text_projection(width, config.out_dim)])
        self.token_fusion = TokenFusion(config.image_feature_scale_num, config.seg_token_num)

    def _init_weights(self, module: nn.Module) -> None:
        """A module that a checkpoint lacks starts as PyTorch starts it; transformers draws other numbers.

        LLaMA's own modules keep LLaMA's rule: its constructor runs before the others are there, and no checkpoint
        lacks them.
        """
        if hasattr(self, "token_fusion") and hasattr(module, "reset_parameters"):
            module.reset_parameters()  # pyright: ignore[reportCallIssue]
        else:
            super()._init_weights(module)


class PixelLMForCausalLM(AnswersWithMasks, PixelLMPreTrainedModel, GenerationMixin):  # named, as transformers asks
    """The composition: tower -> projectors -> LLaMA -> codebook -> pixel decoder.

    ``device_map`` may put its parts on several devices. What a part is called with is moved to it; what meets between
    two parts is moved here, to the device of the inputs.
    """

    def __init__(self, config: PixelLMConfig) -> None:
        super().__init__(config)
        self.codebook = config.codebook
        self.model = PixelLMModel(config)
        llama = config.text_config
        self.lm_head = nn.Linear(llama.hidden_size, llama.vocab_size, bias=False)
        self.post_init()
        self.generation_config = GenerationConfig(
            bos_token_id=llama.bos_token_id,
            eos_token_id=llama.eos_token_id,
            pad_token_id=llama.eos_token_id,
            max_new_tokens=MAX_NEW_TOKENS,
        )

    def encode_images(
        self, pixel_values: Tensor | None, valid_hw: Tensor | None, *, tower_features: Tensor | None = None
    ) -> VisionFeatures:
        """Encode each image once.

        Args:
            pixel_values: (B, 3, R, R) float, normalized, zero in the padding.
            valid_hw: (B, 2) long, rows and columns that show the photo, 1 to R.
            tower_features: (S, B, g*g, V) what the tower makes of the pixels, which are not looked at then.
        Raises:
            ValueError: if ``valid_hw`` was left out.
        """
        if valid_hw is None:
            raise ValueError("pixel_values without valid_hw; give both, as the processor does")
        config = self.config
        scales = tower_features  # (S, B, g*g, V)
        if scales is None:
            scales = self.model.vision_tower(pixel_values, valid_hw)
        deepest = rearrange(scales[0], "b (h w) v -> b v h w", h=config.patch_grid)
        if config.llm_grid != config.patch_grid:
            pooled_hw = (config.llm_grid, config.llm_grid)
            deepest = F.interpolate(deepest.float(), pooled_hw, mode="bilinear", align_corners=False).to(scales.dtype)
        decoder_projector = self.model.out_mm_projector if config.separate_mm_projector else self.model.mm_projector
        pyramid = decoder_projector(scales)  # (S, B, g*g, D)
        patch_mask = patch_valid_mask(valid_hw, size=config.covered_size, grid=config.llm_grid)
        return VisionFeatures(
            llm=self.model.mm_projector(rearrange(deepest, "b v h w -> b (h w) v")),
            patch_mask=patch_mask.flatten(1).to(scales.device, non_blocking=True),
            pyramid=rearrange(pyramid, "s b (h w) d -> s b d h w", h=config.patch_grid),
            valid_hw=valid_hw,
        )

    def embed(self, rows: TokenRows, features: VisionFeatures | None) -> Tensor:
        """(R, L, D): the words of rows, and image features in the place of their placeholders."""
        if features is None:
            return self.model.embed_tokens(rows.input_ids)
        embeds = self.model.embed_tokens(rows.input_ids.masked_fill(rows.input_ids == IMAGE_TOKEN_ID, 0))
        shown = features.llm.to(embeds).flatten(0, 1)[rows.patches.to(embeds.device)]
        return embeds.flatten(0, 1).index_copy(0, rows.image_at.to(embeds.device), shown).view_as(embeds)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        valid_hw: Tensor | None = None,
        tower_features: Tensor | None = None,
        image_index: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        orig_hw: list[tuple[int, int]] | None = None,
        rows: TokenRows | None = None,
        logits_to_keep: int | Tensor = 0,
        use_cache: bool = False,
        **options: Any,
    ) -> PixelLMOutput:
        """Language model over text and images; with images, a mask for every complete token group of the text.

        Args:
            input_ids: (Q, L) with ``IMAGE_TOKEN_ID`` at every image token.
            pixel_values: (B, 3, R, R); valid_hw: (B, 2); tower_features: (S, B, g*g, V), in place of pixels; as
                ``encode_images`` takes them.
            image_index: (Q,), default is an image of its own for each conversation.
            attention_mask: (Q, L), zero on padding; default is no padding.
            position_ids, inputs_embeds, past_key_values, use_cache: as in transformers' language models.
            labels: (Q, L), ``IGNORE_INDEX`` where nothing is supervised. With them, logits are computed only where
                they are needed, and not returned.
            orig_hw: B pairs (height, width): also resize the masks to these.
            rows: conversations laid out beforehand, in place of their ids, mask, positions, images and labels. What
                comes back with Q in its shape then has R, and conversations may share a row (model/rows.py).
            logits_to_keep: only so many positions, from the end, or these; 0 keeps all.
        """
        features = None
        if pixel_values is not None or tower_features is not None:
            features = self.encode_images(pixel_values, valid_hw, tower_features=tower_features)
        starts = inputs_embeds is None and past_key_values is None
        if starts and rows is None:
            assert input_ids is not None, "give input_ids or inputs_embeds"
            rows = rows_of_conversations(
                input_ids,
                torch.ones_like(input_ids) if attention_mask is None else attention_mask,
                torch.arange(len(input_ids), device=input_ids.device) if image_index is None else image_index,
                codebook=self.codebook,
                patch_mask=None if features is None else features.patch_mask,
                position_ids=position_ids,
                labels=labels,
            )
        if rows is not None:
            inputs_embeds, position_ids = self.embed(rows, features), rows.position_ids
            attention_mask = attention_in_rows(self.model.config, rows, inputs_embeds)
        elif inputs_embeds is None:  # a step of generation, which shows no image
            inputs_embeds = self.model.embed_tokens(input_ids)
        elif attention_mask is None and past_key_values is None:
            # Without a mask, transformers takes positions that start anew for a packed row, and cuts attention there.
            attention_mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
        options.pop("return_dict", None)
        output = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **options,
        )
        hidden = output.last_hidden_state
        found = PixelLMOutput(
            last_hidden_state=hidden,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        supervised = targets = None
        if rows is not None:
            supervised, targets = rows.supervised, rows.targets
        elif labels is not None:
            supervised, targets = supervised_positions(labels)
        if supervised is not None and targets is not None:
            found["loss"] = self.lm_loss(hidden, supervised, targets)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            found["logits"] = self.lm_head(hidden[:, kept])
        if features is not None and rows is not None:
            queries = self.seg_queries(hidden, rows)
            low_res = self.decode_masks(features, queries)
            found["mask_logits"] = list(low_res.split(rows.groups_per_image))
            found["query_index"] = queries.query_index
            if orig_hw is not None:
                found["photo_logits"] = [
                    self.resize_masks(logits, valid_hw=features.valid_hw[b], out_hw=orig_hw[b])
                    for b, logits in enumerate(found.mask_logits)
                ]
        return found

    def lm_loss(self, hidden: Tensor, supervised: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in float32, with logits computed only where they are needed; () tensor.

        Args:
            hidden: (R, L, D).
            supervised, targets: (T,), as in ``TokenRows``.
        """
        logits = self.lm_head(hidden.flatten(0, 1).to(supervised.device)[supervised])
        if len(targets) == 0:
            return logits.sum().float()  # zero, and every rank still touches lm_head
        return F.cross_entropy(logits.float(), targets.to(logits.device))

    def seg_queries(self, hidden: Tensor, rows: TokenRows) -> SegQueries:
        """(R, L, D) states -> fused decoder queries, ordered by image and then by reading order."""
        states = gather_seg_states(hidden.to(rows.group_at.device), rows.group_at, codebook=self.codebook)
        return SegQueries(self.fuse(states).to(states.device), rows.group_conversation, rows.group_image)

    def fuse(self, states: Tensor) -> Tensor:
        """States of complete token groups (N, S, K, D) -> one decoder query per scale, (N, S, C) (paper: phi)."""
        return self.model.token_fusion(self.model.text_hidden_fcs[0](states))

    def decode_masks(self, features: VisionFeatures, queries: SegQueries) -> Tensor:
        """Decode one mask per query, N of them or none.

        Returns:
            (N, h, w) low-resolution logits of the padded input.
        """
        flat = self.model.image_feature_neck(rearrange(features.pyramid, "s b d h w -> (s b) d h w"))
        pyramid = rearrange(flat, "(s b) c h w -> s b c h w", s=len(features.pyramid))
        embeds, image_index = queries.embeds, queries.image_index
        count = len(embeds)
        if count == 0:
            # Some GPU attention kernels refuse an empty batch. One query is decoded and dropped, which also keeps
            # every trained parameter in the graph: a process without masks must not leave the others waiting.
            embeds, image_index = embeds.sum() + embeds.new_zeros(1, *embeds.shape[1:]), image_index.new_zeros(1)
        encoded, no_mask = self.model.prompt_encoder(pyramid.shape[-1])
        index = image_index.to(pyramid.device)
        return self.model.mask_decoder(pyramid, embeds, index, encoded, no_mask)[:count].to(image_index.device)

    def resize_masks(self, logits: Tensor, *, valid_hw: Tensor, out_hw: tuple[int, int]) -> Tensor:
        """(N, h, w) logits of one image -> (N, *out_hw), padding cut off."""
        rows, columns = valid_hw.tolist()
        return resize_logits(logits, size=self.config.covered_size, valid_hw=(rows, columns), out_hw=out_hw)
