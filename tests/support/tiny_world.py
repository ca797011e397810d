"""Everything a run needs, tiny and self-made: a LLaVA base, a CLIP tower and a dataset tree in released layouts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from .tiny_data import write_dataset

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_channels": 3,
    "image_size": 56,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 32,
}
# LLaVA's own keys, as golden/llava-tiny has them.
_LLAVA = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    "mm_hidden_size": CLIP["hidden_size"],
    "mm_projector_type": "linear",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": True,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "clip-tiny",
    "pretraining_tp": 1,
    "rope_scaling": None,
    "torch_dtype": "float32",
    "tune_mm_mlp_adapter": False,
    "use_cache": True,
    "use_mm_proj": True,
}


@dataclass(frozen=True)
class TinyWorld:
    """Folders for ``--version``, ``--vision-tower`` and ``--dataset_dir``."""

    llava: Path
    clip: Path
    dataset: Path

    @property
    def arguments(self) -> list[str]:
        """The three flags."""
        return [f"--version={self.llava}", f"--vision-tower={self.clip}", f"--dataset_dir={self.dataset}"]


def write_tiny_world(root: Path) -> TinyWorld:
    world = TinyWorld(root / "llava-tiny", root / "clip-tiny", root / "dataset")
    for folder in (world.llava, world.clip):
        folder.mkdir(parents=True)
    write_dataset(world.dataset)
    vocab_size = write_tokenizer(world.llava)
    write_llava(world.llava, vocab_size=vocab_size)
    write_tower(world.clip)
    return world


def write_tokenizer(folder: Path) -> int:
    """A LLaMA-like tokenizer.model that can spell anything; returns the size of its vocabulary."""
    words = ("what", "is", "the", "thing", "image", "please", "output", "segmentation", "mask", "human", "assistant")
    lines = [f"{first} {second} {number}" for number, first in enumerate(words) for second in words]
    file = folder / "tokenizer.model"
    with file.open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, vocab_size=360, model_type="bpe", byte_fallback=True,
            unk_id=0, bos_id=1, eos_id=2, pad_id=-1, hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(file)).vocab_size()


def write_llava(folder: Path, *, vocab_size: int) -> None:
    """Random LLaMA weights and LLaVA's linear projector, with the flat config.json."""
    torch.manual_seed(1)
    settings = {**LLAMA, "vocab_size": vocab_size}
    state = LlamaForCausalLM(LlamaConfig(**settings)).state_dict()
    projector = torch.nn.Linear(CLIP["hidden_size"], LLAMA["hidden_size"])
    state |= {f"model.mm_projector.{name}": tensor for name, tensor in projector.state_dict().items()}
    torch.save({name: tensor.clone() for name, tensor in state.items()}, folder / "pytorch_model.bin")
    write_settings(folder, {**settings, **_LLAVA})


def write_tower(folder: Path, *, seed: int = 2) -> None:
    """Random CLIP weights under the released names."""
    torch.manual_seed(seed)
    state = CLIPVisionModel(CLIPVisionConfig(**CLIP)).state_dict()
    named = {f"vision_model.{name.removeprefix('vision_model.')}": tensor for name, tensor in state.items()}
    torch.save(named, folder / "pytorch_model.bin")
    write_settings(folder, {**CLIP, "architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model"})


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
