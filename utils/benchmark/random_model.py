"""A network of random weights, an optimizer as training has it, photos of noise and questions in invented words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, LlamaTokenizer

import model.hf  # noqa: F401  registers the model with transformers
from model.configuration import PixelLMConfig
from model.PixelLM import PixelLMForCausalLM
from model.sizes import LLAMA, VISION, VOCABULARY
from model.text.tokenizer import add_codebook, load_tokenizer
from model.values import Attention
from utils import dist
from utils.data.records import RawSample, Turn
from utils.data.small_tokenizer import PROMPT_WORDINGS, train_tokenizer, write_tokenizer
from utils.training.lora import set_trained, wrap_lora

# Of language model and tower; the rest follows the presets: 448 px, 2 scales x 3 tokens, a decoder of width 256.
SIZES: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "tiny": (
        {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 4, "num_attention_heads": 4},
        {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4},
    ),
    "mid": (
        {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8},
        {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 4},
    ),
    "chat": (
        {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 12, "num_attention_heads": 16},
        {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 4},
    ),
    "7b": (LLAMA["PixelLM-7B"], VISION),
    "13b": (LLAMA["PixelLM-13B"], VISION),
}


def random_network(
    size: str, folder: Path, *, dtype: torch.dtype, device: torch.device, attention: Attention = "sdpa"
) -> tuple[PixelLMForCausalLM, LlamaTokenizer]:
    """Weights are drawn on the device and in their type: a GPU needs memory for them once, the CPU none.

    Args:
        size: a key of ``SIZES``.
        folder: where a tokenizer is written.
    """
    write_tokenizer(folder, train_tokenizer(PROMPT_WORDINGS))
    tokenizer = load_tokenizer(folder)
    codebook = add_codebook(tokenizer, scales=2, tokens=3)
    llama, tower = SIZES[size]
    config = PixelLMConfig.assemble(
        {**llama, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5},
        {**tower, "image_size": 336, "patch_size": 14},
        codebook,
        vision_tower="none", image_size=448, image_token_grid=16, separate_mm_projector=True, out_dim=256,
        pad_train_clip_images=True, model_max_length=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    with device:
        # As transformers reads weights: rotary tables stay in float32.
        network = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
    return network, tokenizer


def with_lora(network: PixelLMForCausalLM) -> tuple[nn.Module, list[nn.Parameter]]:
    """The network wrapped with LoRA as the presets say, in training mode, and its trained parameters."""
    dtype = network.dtype
    wrapped = wrap_lora(network, rank=8, alpha=16, dropout=0.0, names=("q_proj", "v_proj"))
    set_trained(wrapped)
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.to(dtype)  # peft makes LoRA in float32; DeepSpeed casts it
    return wrapped.train(), trained


class Optimizer:
    """AdamW on float32 copies of the trained weights, as DeepSpeed keeps them. Its rate is 0: no update differs."""

    def __init__(self, trained: Sequence[nn.Parameter]) -> None:
        self._trained = trained
        self._copies: list[Tensor] = [parameter.detach().to(torch.float32, copy=True) for parameter in trained]
        self._adamw = torch.optim.AdamW(self._copies, lr=0.0)

    def average_gradients(self) -> None:
        """Over all processes, in one piece."""
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        whole = dist.all_reduce_sum(torch.cat([gradient.flatten() for gradient in gradients])) / dist.world_size()
        for gradient, mean in zip(gradients, whole.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    @torch.no_grad()
    def step(self) -> None:
        """Update the weights, and forget their gradients."""
        for copy, parameter in zip(self._copies, self._trained, strict=True):
            copy.grad = None if parameter.grad is None else parameter.grad.float()
        self.forget_gradients()
        self._adamw.step()
        self._adamw.zero_grad()
        for copy, parameter in zip(self._copies, self._trained, strict=True):
            parameter.copy_(copy)

    def forget_gradients(self) -> None:
        for parameter in self._trained:
            parameter.grad = None


def invent_sample(folder: Path, number: int, *, conversations: int, masks: int, photo: tuple[int, int]) -> RawSample:
    """A photo of noise, and questions of some thirty words about blots in it.

    Args:
        folder: where the photo is written.
        number: what is in it follows from this.
        masks: of each conversation.
        photo: (height, width).
    """
    rng = np.random.default_rng(number)
    path = folder / f"{number}.png"
    Image.fromarray(rng.integers(0, 256, (*photo, 3), dtype=np.uint8)).save(path, compress_level=1)
    truth = np.zeros((conversations * masks, *photo), dtype=bool)
    for mask in truth:
        top, left = (int(rng.integers(0, side - side // 3)) for side in photo)
        mask[top : top + photo[0] // 3, left : left + photo[1] // 3] = True
    talks = []
    for talk in range(conversations):
        answer = " and ".join(["the thing in the picture {seg}"] * masks) or "nothing that is in the picture"
        question = "Which of the things in this picture would you take along for a day at the sea, and why?"
        targets = tuple(range(talk * masks, (talk + 1) * masks))
        talks.append((Turn(f"{talk}. {question}", f"I would take {answer}.", targets),))
    return RawSample(path.name, path, tuple(talks), truth)
