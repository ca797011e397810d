"""A small CLIP vision tower that has seen the toy world.

CLIP learned from captions what things are and where; here throw-away linear heads ask for it directly, patch
by patch, at the two depths that PixelLM reads: the last but one hidden state, and the one after the first
block.

Shapes: B images, R input side, T patches, V tower width.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from model.files import write_json
from model.image import CLIP_MEAN, CLIP_STD

from .pretraining import Pretrainer, draw_batches
from .views import CELLS, PATCH, TRAITS, PatchTargets, Views

logger = logging.getLogger(__name__)

# The hidden states that PixelLM reads from a tower of six blocks (--image_feature_scale_num=2).
DEEP_LAYER, SHALLOW_LAYER = _LAYERS = (-2, -6)
_CENTER_VALUES = 4
_BACKGROUND_WEIGHT = 0.3
_CENTER_WEIGHT = 4.0
_TRAIT_WEIGHTS = {"color": 1.0, "shape": 2.0, "texture": 1.0, "size": 1.0}
# One block sees too little to tell shapes and sizes; its state should know local color, texture and outline.
_SHALLOW_WEIGHT, _SHALLOW_TRAITS_WEIGHT = 0.3, 0.5
_LOG_EVERY = 100
_MEASURE_BATCH = 50


@dataclass(frozen=True)
class TowerTraining:
    """How the tower is pre-trained; the defaults take about two minutes on two cores."""

    num_scenes: int = 3000
    num_held_out: int = 200
    steps: int = 1000
    batch_size: int = 16
    muon_lr: float = 0.02
    adam_lr: float = 0.002


def tower_config(image_size: int) -> CLIPVisionConfig:
    """Six narrow blocks under CLIP's own configuration."""
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=PATCH,
        hidden_act="quick_gelu",
        projection_dim=128,
    )


def _position_waves(grid: int, width: int) -> Tensor:
    """(grid * grid, width) sines and cosines of row and column: neighbors start out alike."""
    frequency = math.pi * 100.0 ** (-torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = [place.flatten()[:, None] * frequency for place in (column, row)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)


class ToyTower(nn.Module):
    """A ``CLIPVisionModel`` with a padding mask, and one linear head per depth that is read."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        model = CLIPVisionModel(config)
        # Some versions of transformers keep the parts of the tower one level deeper.
        self.clip = getattr(model, "vision_model", model)
        self.grid = cast(int, config.image_size) // PATCH
        with torch.no_grad():
            table = self.clip.embeddings.position_embedding.weight
            table[0] = 0
            table[1:] = 0.5 * _position_waves(self.grid, config.hidden_size)
            patch = self.clip.embeddings.patch_embedding.weight
            nn.init.normal_(patch, std=patch[0].numel() ** -0.5)
            for block in cast(list[CLIPEncoderLayer], self.clip.encoder.layers):
                attention = block.self_attn
                for linear in (attention.q_proj, attention.k_proj, attention.v_proj, block.mlp.fc1):
                    nn.init.xavier_uniform_(linear.weight)
        classes = [len(names) + 1 for names in TRAITS.values()]
        self.answer_sizes = [*classes, _CENTER_VALUES, CELLS**2, CELLS**2]
        width = sum(self.answer_sizes)
        self.heads = nn.ModuleDict({str(layer): nn.Linear(config.hidden_size, width) for layer in _LAYERS})

    def hidden_states(self, pixels: Tensor, valid: Tensor) -> list[Tensor]:
        """(B, 3, R, R) pixels, (B, T) visible patches -> (B, T, V) hidden states up to the last one read."""
        hidden = self.clip.pre_layrnorm(self.clip.embeddings(pixels))
        visible = F.pad(valid, (1, 0), value=True)  # the class token
        bias = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(hidden.dtype).min)
        bias = bias[:, None, None].expand(-1, 1, visible.shape[1], -1)
        states = [hidden]
        for block in self.clip.encoder.layers[: DEEP_LAYER + 1]:
            states.append(block(states[-1], bias))
        return [state[:, 1:] for state in states]

    def read(self, pixels: Tensor, valid: Tensor) -> dict[int, tuple[Tensor, ...]]:
        """For each depth: what its head says, in the order of ``answer_sizes``, each (B, T, size)."""
        states = self.hidden_states(pixels, valid)
        # ``states`` ends with DEEP_LAYER, so an index from the end of all states shifts by what is missing.
        return {
            layer: self.heads[str(layer)](states[layer - DEEP_LAYER - 1]).split(self.answer_sizes, dim=-1)
            for layer in _LAYERS
        }


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum()


def _reading_loss(said: tuple[Tensor, ...], targets: PatchTargets, *, traits_weight: float) -> Tensor:
    """Sum of the losses of one head; see ``ToyTower.read`` for ``said``."""
    *traits, centers, foreground, own = said
    on_object = targets.on_object.float()
    weight = torch.where(targets.on_object, 1.0, _BACKGROUND_WEIGHT) * targets.valid
    loss = centers.new_zeros(())
    for number, (name, logits) in enumerate(zip(TRAITS, traits, strict=True)):
        truth = targets.traits[..., number]
        wrong = F.cross_entropy(logits.flatten(0, 1), truth.flatten(), reduction="none").view_as(truth)
        loss = loss + traits_weight * _TRAIT_WEIGHTS[name] * _mean(wrong, weight)
    far = F.smooth_l1_loss(centers, targets.centers, reduction="none", beta=0.05).mean(-1)
    loss = loss + traits_weight * _CENTER_WEIGHT * _mean(far, on_object)
    missed = F.binary_cross_entropy_with_logits(foreground, targets.foreground, reduction="none").mean(-1)
    strayed = F.binary_cross_entropy_with_logits(own, targets.own, reduction="none").mean(-1)
    return loss + _mean(missed, targets.valid.float()) + _mean(strayed, on_object)


def train_tower(tower: ToyTower, views: Views, training: TowerTraining, *, seed: int) -> None:
    """Pre-train in place. The last block is not read by PixelLM and keeps its initial weights."""
    clip = tower.clip
    blocks = clip.encoder.layers[: DEEP_LAYER + 1]
    trained = (clip.embeddings, clip.pre_layrnorm, blocks, tower.heads)
    trainer = Pretrainer(
        [parameter for module in trained for parameter in module.parameters()],
        blocks=blocks,
        muon_lr=training.muon_lr,
        adam_lr=training.adam_lr,
        steps=training.steps,
    )
    generator = torch.Generator().manual_seed(seed)
    size, steps = training.batch_size, training.steps
    batches = draw_batches(len(views), batch_size=size, steps=steps, generator=generator)
    for step, index in enumerate(batches, start=1):
        pixels, targets = views.batch(index, mirror=torch.rand(len(index), generator=generator) < 0.5)
        said = tower.read(pixels, targets.valid)
        deep = _reading_loss(said[DEEP_LAYER], targets, traits_weight=1.0)
        shallow = _reading_loss(said[SHALLOW_LAYER], targets, traits_weight=_SHALLOW_TRAITS_WEIGHT)
        trainer.step(deep + _SHALLOW_WEIGHT * shallow)
        if step % _LOG_EVERY == 0:
            logger.info("tower step %d of %d: loss %.2f", step, training.steps, float(deep.detach()))


@torch.no_grad()
def measure_tower(tower: ToyTower, views: Views, *, layer: int = DEEP_LAYER) -> dict[str, float]:
    """How well one depth can be read, on patches that show an object.

    Returns:
        accuracy per trait; ``center_error``, mean distance of a coordinate in shares of the picture;
        ``foreground``, accuracy over all cells; ``own_iou``, of the owner's cells within its patches.
    """
    totals: Counter[str] = Counter()
    for index in torch.arange(len(views)).split(_MEASURE_BATCH):
        pixels, targets = views.batch(index, mirror=torch.zeros(len(index), dtype=torch.bool))
        totals.update(_reading_counts(tower.read(pixels, targets.valid)[layer], targets))
    return {
        **{name: totals[name] / totals["patches"] for name in (*TRAITS, "center_error")},
        "foreground": totals["cells right"] / totals["cells"],
        "own_iou": totals["own intersection"] / totals["own union"],
    }


def _reading_counts(said: tuple[Tensor, ...], targets: PatchTargets) -> dict[str, Any]:
    """What one batch adds to the sums of ``measure_tower``."""
    *traits, centers, foreground, own = said
    shown = targets.on_object
    counts: dict[str, Any] = {"patches": int(shown.sum())}
    for number, (name, logits) in enumerate(zip(TRAITS, traits, strict=True)):
        counts[name] = int((logits.argmax(-1) == targets.traits[..., number])[shown].sum())
    counts["center_error"] = float((centers - targets.centers)[shown][:, 2:].abs().mean(-1).sum())
    agrees = ((foreground > 0) == (targets.foreground > 0))[targets.valid]
    counts["cells right"], counts["cells"] = int(agrees.sum()), agrees.numel()
    own_said, own_true = (own > 0)[shown], (targets.own > 0)[shown]
    counts["own intersection"] = int((own_said & own_true).sum())
    counts["own union"] = int((own_said | own_true).sum())
    return counts


def write_tower(tower: ToyTower, folder: Path) -> None:
    """Write a CLIP folder with the released parameter names."""
    config = tower.clip.config
    state = {f"vision_model.{name}": tensor.contiguous() for name, tensor in tower.clip.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    keys = (
        *("attention_dropout", "hidden_act", "hidden_size", "image_size", "initializer_factor"),
        *("initializer_range", "intermediate_size", "layer_norm_eps", "num_attention_heads", "num_channels"),
        *("num_hidden_layers", "patch_size", "projection_dim"),
    )
    values = {key: getattr(config, key) for key in keys}
    head = {"architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", "torch_dtype": "float32"}
    write_json(folder / "config.json", {**head, **values})
    side = config.image_size
    preprocessor = {
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": CLIP_MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": CLIP_STD,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": side},
    }
    write_json(folder / "preprocessor_config.json", preprocessor)
