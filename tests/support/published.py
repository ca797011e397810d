"""A tiny folder in the release's layout: flat config, .bin shards, no tower, no constants."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from model.configuration import feature_layers
from model.files import read_object
from model.image import CLIP_MEAN, CLIP_STD
from model.part_configs import LlamaKeys, clip_config
from model.PixelLM import PixelLMForCausalLM
from model.weights.bases import TOWER_PREFIX, read_tower

from .tiny_network import make_network
from .tiny_world import TinyWorld, write_settings

CONSTANTS = ("model.token_fusion.weights", "model.mask_decoder.scale_weights")
SIZE = 84
CLIP = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}


def write_published(
    folder: Path, world: TinyWorld, *, scales: int, tokens: int, pad: bool = True, separate: bool = True
) -> PixelLMForCausalLM:
    """What the release's merge script leaves; returns the network whose weights it holds."""
    vision = clip_config(read_object(world.clip / "config.json"))
    network, tokenizer = make_network(
        world.llava, scales=scales, tokens=tokens, vision_config=vision, vision_tower=str(world.clip), image_size=SIZE,
        vision_feature_layers=feature_layers(scales, depth=vision.num_hidden_layers), separate_mm_projector=separate,
        pad_train_clip_images=pad, vision_position_resize="released", **({} if pad else CLIP),
    )  # fmt: skip
    network.load_state_dict(read_tower(world.clip, network.config), strict=False)
    left_out = (*CONSTANTS, TOWER_PREFIX)
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(left_out)}
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    folder.mkdir()
    names = sorted(state)
    shards = {f"pytorch_model-0000{n}-of-00002.bin": names[n - 1 :: 2] for n in (1, 2)}
    for file, part in shards.items():
        torch.save({name: state[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    language = {name: getattr(network.config.text_config, name, None) for name in LlamaKeys.__annotations__}
    write_settings(
        folder,
        {
            **language, "model_type": "llava", "architectures": ["PixelLMForCausalLM"],
            "mm_vision_tower": world.clip.name, "mm_vision_select_layer": -2, "mm_projector_hidden_dim": 2,
            "image_feature_scale_num": scales, "resize_vision_tower": True, "resize_vision_tower_size": SIZE,
            "pad_train_clip_images": pad, "separate_mm_projector": separate, "vision_tower_for_mask": True,
            "out_dim": 32,
        },
    )  # fmt: skip
    shutil.copy(world.llava / "tokenizer.model", folder)
    base = len(tokenizer) - scales * tokens - 2
    added = {text: token for text, token in tokenizer.get_added_vocab().items() if token >= base}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    return network
