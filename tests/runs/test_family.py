"""Every member of the family trains a step and then chats: counts, sizes, padding, projectors, templates, precisions.

The real builders, one process, tiny weights. The table covers every pair of values; the last test checks that it does.
"""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch

from model.configuration import PRECISIONS
from model.image import read_image
from model.losses import LossWeights, pixellm_loss
from model.predictor import PixelLMPredictor
from model.text.tokens import seg_text
from tests.support.parrot import teach
from tests.support.tiny_world import TinyWorld
from utils.cli.args import parse
from utils.cli.config import RunConfig
from utils.data.collate import collate
from utils.data.encode import Encoder
from utils.data.registry import DataOptions, build_train_sources
from utils.training.start import TrainingModel, build_for_training, resolve_run_flags

SCALES, TOKENS, SIZES = (1, 2, 3), (1, 2, 3, 4, 5), (224, 336, 448, 512)
PARTS = (
    "lora_A", "lora_B", "embed_tokens", "lm_head", "mm_projector", "out_mm_projector", "text_hidden_fcs",
    "image_feature_neck", "no_mask_embed", "mask_decoder", "token_fusion", "scale_weights",
)  # fmt: skip
SWITCH, TEMPLATES = (True, False), ("llava_v1", "llava_llama_2")
AXES = (SCALES, TOKENS, SIZES, SWITCH, SWITCH, TEMPLATES, tuple(PRECISIONS))
# scales, tokens per scale, pixels, padding, a projector of its own for the decoder, template, precision
FAMILY = [
    (1, 1, 224, False, False, "llava_v1", "bf16"),  # one token, called [SEG]
    (1, 1, 448, True, True, "llava_llama_2", "fp16"),
    (1, 2, 224, False, True, "llava_v1", "fp16"),
    (1, 2, 336, True, True, "llava_v1", "fp16"),
    (1, 3, 448, False, False, "llava_llama_2", "fp32"),
    (1, 3, 512, True, False, "llava_llama_2", "fp16"),
    (1, 4, 448, True, False, "llava_v1", "fp32"),
    (1, 5, 512, False, True, "llava_v1", "bf16"),
    (2, 1, 336, False, True, "llava_llama_2", "fp16"),
    (2, 1, 448, True, True, "llava_v1", "bf16"),
    (2, 2, 336, False, False, "llava_v1", "fp32"),
    (2, 2, 512, False, False, "llava_llama_2", "fp32"),
    (2, 3, 224, True, False, "llava_v1", "fp32"),
    (2, 4, 448, True, True, "llava_v1", "fp16"),
    (2, 4, 512, True, False, "llava_v1", "bf16"),
    (2, 5, 448, False, False, "llava_llama_2", "fp32"),
    (3, 1, 512, False, True, "llava_v1", "fp32"),
    (3, 2, 448, False, False, "llava_llama_2", "bf16"),
    (3, 3, 336, False, True, "llava_v1", "bf16"),
    (3, 4, 224, False, True, "llava_llama_2", "fp32"),
    (3, 4, 336, False, False, "llava_llama_2", "bf16"),
    (3, 5, 224, True, False, "llava_v1", "fp16"),
    (3, 5, 336, False, False, "llava_v1", "fp16"),
]


def start(world: TinyWorld, member: tuple) -> tuple[RunConfig, TrainingModel]:
    scales, tokens, size, pad, separate, template, precision = member
    switches = [("pad_train_clip_images", pad), ("separate_mm_projector", separate)]
    flags = [
        *world.arguments, "--resize_vision_tower", f"--resize_vision_tower_size={size}", f"--conv_type={template}",
        f"--image_feature_scale_num={scales}", f"--seg_token_num={tokens}", f"--precision={precision}",
        "--out_dim=32", "--lora_dropout=0", "--no_gradient_checkpointing", "--model_max_length=900",
        "--dataset=multi_reason_seg||refer_seg", "--sample_rates=1,1", "--refer_seg_data=refcoco",
        *(f"--{name}" if on else f"--no_{name}" for name, on in switches),
    ]  # fmt: skip
    run = resolve_run_flags(parse(RunConfig, flags, ""))
    return run, build_for_training(run)


def train_one_step(run: RunConfig, training: TrainingModel) -> None:
    """A batch of the training sources, forward, backward, AdamW; every loss and every trained weight stays finite."""
    encoder = Encoder(training.tokenizer, training.network.codebook, training.config)
    rng = np.random.default_rng(0)
    samples = [encoder(source.get(0, rng)) for source in build_train_sources(DataOptions.of(run))[0]]
    batch = collate(samples, training.network.codebook, training.tokenizer.pad_token_id)
    batch = batch.to("cpu", PRECISIONS[run.precision])
    trained = {name: p for name, p in training.wrapped.named_parameters() if p.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    training.wrapped.train()
    output = training.wrapped(**batch.inputs())
    assert [len(logits) for logits in output.photo_logits] == [len(masks) for masks in batch.masks]
    terms = pixellm_loss(output.loss, output.photo_logits, batch.masks, output.query_index, LossWeights())
    assert torch.isfinite(terms.total)
    assert terms.num_masks >= 2
    terms.total.backward()
    update(trained)
    assert all(parameter.isfinite().all() for parameter in trained.values())
    moved = [name for name, parameter in trained.items() if not torch.equal(before[name], parameter)]
    parts = [part for part in PARTS if run.separate_mm_projector or part != "out_mm_projector"]
    assert [part for part in parts if not any(f".{part}." in f"{name}." for name in moved)] == []


@torch.no_grad()
def update(trained: dict[str, torch.nn.Parameter]) -> None:
    """AdamW on float32 copies, as DeepSpeed does it in half precision."""
    masters = [torch.nn.Parameter(parameter.float()) for parameter in trained.values()]
    for master, parameter in zip(masters, trained.values(), strict=True):
        master.grad = None if parameter.grad is None else parameter.grad.float()
    torch.optim.AdamW(masters, lr=1e-2).step()
    for master, parameter in zip(masters, trained.values(), strict=True):
        parameter.copy_(master)


@pytest.mark.parametrize("member", FAMILY, ids=lambda member: "-".join(map(str, member)))
def test_trains_a_step_and_chats(tiny_world, member):
    run, training = start(tiny_world, member)
    assert training.network.dtype == PRECISIONS[run.precision]
    train_one_step(run, training)
    network = training.wrapped.merge_and_unload().eval()
    group = seg_text(run.image_feature_scale_num, run.seg_token_num)
    teach(network, training.tokenizer, training.tokenizer(f"the {group} thing</s>", add_special_tokens=False).input_ids)
    predictor = PixelLMPredictor(network, training.tokenizer)
    photo = read_image(a_photo(tiny_world))
    predictor.set_image(photo)
    reply = predictor.ask("What is the thing?", max_new_tokens=40, keep_logits=True)
    assert reply.text == f"the {group} thing"
    (target,) = reply.targets
    assert target.mask.shape == photo.shape[:2]
    assert 0 <= target.score <= 1
    cropped = not run.pad_train_clip_images
    assert bool(torch.isinf(target.logits).any()) is cropped, "the edges that a center crop leaves out are no mask"
    assert not torch.isnan(target.logits).any()


def a_photo(world: TinyWorld) -> Path:
    return world.dataset / "refer_seg/images/mscoco/images/train2014/1.jpg"


def test_the_table_covers_every_pair():
    def pairs(member: tuple) -> set:
        return {(i, member[i], j, member[j]) for i, j in combinations(range(len(AXES)), 2)}

    missing = set().union(*map(pairs, product(*AXES))) - set().union(*map(pairs, FAMILY))
    assert not missing
