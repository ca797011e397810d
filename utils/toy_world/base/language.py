"""A small LLaVA base: a language model that can talk about toy pictures, but cannot draw masks.

LLaVA learned from dialogues about pictures; so does this one, through LLaVA's linear projector and over a frozen
tower. Where a mask will be asked for, its answers have the square of a map that the object lies in ("the red star
CF"), so that it learns to look objects up; masks and their tokens come with PixelLM.

Shapes: B dialogues, L tokens, P image tokens, V tower width, D language-model width.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from model.files import write_json
from model.image import CLIP_MEAN, CLIP_STD, ImageInput, ImagePreprocessor, patch_valid_mask
from model.text.conversation import IMAGE_MARK, OURS, Rendered, get_conversation
from model.text.tokens import IGNORE_INDEX, IMAGE_TOKEN_ID, encode_conversation
from utils.data import prompts
from utils.data.records import SEG_MARK
from utils.toy_world.parallel import OrderedMap
from utils.toy_world.questions import square_of
from utils.toy_world.tree import MUSE_SPLITS, draw_muse_item

from .pretraining import Pretrainer, draw_batches
from .tower import ToyTower

logger = logging.getLogger(__name__)

_MASK_REQUEST_SHARE = 0.7
# Scenes like those of the training split, with more to say about each.
_QUESTIONS = replace(MUSE_SPLITS[0], name="dialogues", min_questions=4, max_questions=8)
# Size of an image token's entries at the start, and what counts as noise among the features' directions.
_IMAGE_TOKEN_SCALE, _QUIET_FLOOR = 0.5, 0.02
_LOG_EVERY = 100
_MEASURE_BATCH = 20


@dataclass(frozen=True)
class LanguageTraining:
    """How the language model is pre-trained; the defaults take about half an hour on two cores."""

    num_dialogues: int = 12000
    num_held_out: int = 150
    steps: int = 8000
    batch_size: int = 8
    muon_lr: float = 0.02
    adam_lr: float = 0.004


@dataclass
class Dialogues:
    """Pictures as the tower sees them, and a dialogue of several rounds about each.

    Attributes:
        features: (N, P, V) float16, the tower's deep patches.
        visible: (N, P) bool, false where a patch is padding.
        input_ids, labels: N tensors (L,), ``IMAGE_TOKEN_ID`` at every image token.
    """

    features: Tensor
    visible: Tensor
    input_ids: list[Tensor]
    labels: list[Tensor]

    def __len__(self) -> int:
        return len(self.input_ids)


class ToyLlava(nn.Module):
    """LLaMA behind LLaVA's linear projector."""

    def __init__(self, config: LlamaConfig, *, tower_width: int) -> None:
        super().__init__()
        self.llama = LlamaForCausalLM(config)
        self.projector = nn.Linear(tower_width, config.hidden_size)

    @torch.no_grad()
    def whiten(self, dialogues: Dialogues) -> None:
        """Start the projector so that it shows every direction of the features at about the same strength.

        A tower's features have a large common part and a few loud directions; what tells objects apart is quiet.
        """
        seen = dialogues.features[dialogues.visible].float()
        mean = seen.mean(0)
        variance, directions = torch.linalg.eigh((seen - mean).T.cov(correction=0))
        scale = _IMAGE_TOKEN_SCALE * (variance + _QUIET_FLOOR * variance.mean()).rsqrt()
        self.projector.weight.copy_(directions @ torch.diag(scale) @ directions.T)
        self.projector.bias.copy_(-self.projector.weight @ mean)

    def loss(self, dialogues: Dialogues, index: list[int]) -> Tensor:
        """Mean cross-entropy of the answers of B dialogues."""
        pad = nn.utils.rnn.pad_sequence
        ids = pad([dialogues.input_ids[i] for i in index], batch_first=True)  # (B, L)
        labels = pad([dialogues.labels[i] for i in index], batch_first=True, padding_value=IGNORE_INDEX)
        is_image = ids == IMAGE_TOKEN_ID
        embeds = self.llama.model.embed_tokens(ids.masked_fill(is_image, 0))
        pictures = self.projector(dialogues.features[index].float())  # (B, P, D)
        embeds = embeds.masked_scatter(is_image[..., None], pictures.flatten(0, 1))
        attended = torch.ones_like(is_image).masked_scatter(is_image, dialogues.visible[index].flatten())
        # Text padding stands at the end, where causal attention never looks.
        hidden = self.llama.model(inputs_embeds=embeds, attention_mask=attended, use_cache=False).last_hidden_state
        answered = labels[:, 1:] != IGNORE_INDEX
        return F.cross_entropy(self.llama.lm_head(hidden[:, :-1][answered]), labels[:, 1:][answered])


def language_config(vocab_size: int) -> LlamaConfig:
    """Four narrow layers under LLaMA's own configuration."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        rms_norm_eps=1e-6,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )


@dataclass(frozen=True)
class RawDialogue:
    """A picture (H, W, 3) uint8 RGB, and rounds of question and answer about it: what a worker process sends back."""

    image: np.ndarray
    turns: tuple[tuple[str, str], ...]


def draw_dialogue(index: int, *, seed: int, stream: int) -> RawDialogue:
    """Dialogue number ``index`` of a stream."""
    scene, turns = draw_muse_item(replace(_QUESTIONS, stream=stream), index, seed=seed)
    rng = np.random.default_rng([seed, stream, index, 1])
    rounds = []
    for turn in turns:
        question = turn.question
        if rng.random() < _MASK_REQUEST_SHARE:
            question = prompts.long_question(rng, question, expand=True)
        answer = turn.answer
        for target in turn.targets:
            answer = answer.replace(SEG_MARK, square_of(scene.objects[target]), 1)
        rounds.append((question, answer))
    return RawDialogue(scene.image, tuple(rounds))


def draw_dialogues(
    count: int,
    tower: ToyTower,
    tokenizer: LlamaTokenizer,
    *,
    seed: int,
    stream: int,
    image_size: int,
    ordered_map: OrderedMap,
) -> Dialogues:
    """Draw pictures of their own, look at them, and tokenize what is said about them."""
    preprocess = ImagePreprocessor(image_size, pad=True, mean=CLIP_MEAN, std=CLIP_STD)
    inputs, input_ids, labels = [], [], []
    features, visible = [], []
    for number, raw in enumerate(ordered_map(partial(draw_dialogue, seed=seed, stream=stream), range(count)), start=1):
        ids, answered = encode_conversation(tokenizer, _render(raw.turns), num_image_tokens=tower.grid**2)
        input_ids.append(torch.tensor(ids))
        labels.append(torch.tensor(answered))
        inputs.append(preprocess(raw.image))
        if len(inputs) == _MEASURE_BATCH or number == count:
            deep, valid = _look_at(inputs, tower, image_size=image_size)
            features.append(deep)
            visible.append(valid)
            inputs = []
    return Dialogues(torch.cat(features), torch.cat(visible), input_ids, labels)


def _render(turns: tuple[tuple[str, str], ...]) -> Rendered:
    """A dialogue in LLaVA's words, the picture without PixelLM's marks around it."""
    template = get_conversation("llava_v1")
    return replace(template, head=template.head.rstrip()).render(turns, image=OURS + IMAGE_MARK)


@torch.no_grad()
def _look_at(inputs: list[ImageInput], tower: ToyTower, *, image_size: int) -> tuple[Tensor, Tensor]:
    """Deep patches (N, P, V) float16 of pictures, and which of them show something (N, P)."""
    valid_hw = torch.tensor([item.valid_hw for item in inputs])
    valid = patch_valid_mask(valid_hw, size=image_size, grid=tower.grid).flatten(1)
    return tower.hidden_states(torch.stack([item.pixel_values for item in inputs]), valid)[-1].half(), valid


def train_language(llava: ToyLlava, dialogues: Dialogues, training: LanguageTraining, *, seed: int) -> None:
    """Pre-train in place."""
    trainer = Pretrainer(
        llava.parameters(),
        blocks=llava.llama.model.layers,
        muon_lr=training.muon_lr,
        adam_lr=training.adam_lr,
        steps=training.steps,
    )
    generator = torch.Generator().manual_seed(seed)
    batches = draw_batches(len(dialogues), batch_size=training.batch_size, steps=training.steps, generator=generator)
    for step, index in enumerate(batches, start=1):
        loss = llava.loss(dialogues, index.tolist())
        trainer.step(loss)
        if step % _LOG_EVERY == 0:
            logger.info("language step %d of %d: loss %.3f", step, training.steps, float(loss.detach()))


@torch.no_grad()
def measure_language(llava: ToyLlava, dialogues: Dialogues) -> float:
    """Mean loss of an answer's token, in nats, over dialogues that training did not read."""
    index = range(len(dialogues))
    batches = [list(index[start : start + _MEASURE_BATCH]) for start in range(0, len(index), _MEASURE_BATCH)]
    tokens = [sum(int((dialogues.labels[i] != IGNORE_INDEX).sum()) for i in batch) for batch in batches]
    losses = [float(llava.loss(dialogues, batch)) for batch in batches]
    return sum(loss * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens)


def write_language(llava: ToyLlava, folder: Path, *, tower_name: str) -> None:
    """Write a LLaVA folder with the released parameter names and flat configuration, next to its tokenizer."""
    config = llava.llama.config
    state = {name: tensor.contiguous() for name, tensor in llava.llama.state_dict().items()}
    # Older libraries saved the rotary frequencies of every layer.
    frequencies = llava.llama.model.rotary_emb.inv_freq.clone()
    for layer in range(config.num_hidden_layers):
        state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = frequencies
    state |= {f"model.mm_projector.{name}": tensor for name, tensor in llava.projector.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    keys = (
        *("bos_token_id", "eos_token_id", "pad_token_id", "hidden_act", "hidden_size", "initializer_range"),
        *("intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers"),
        *("num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "use_cache", "vocab_size"),
    )
    flat = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        **{key: getattr(config, key) for key in keys},
        "rope_scaling": None,
        "pretraining_tp": 1,
        "torch_dtype": "float32",
        "mm_hidden_size": llava.projector.in_features,
        "mm_projector_type": "linear",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": True,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": tower_name,
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
    }
    write_json(folder / "config.json", flat)
    generation = {key: flat[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", {"_from_model_config": True, **generation})
