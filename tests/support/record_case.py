"""Write a seeded case of any counts and sizes, with what this code computes in place of a recording.

It is no proof of anything about the release: it shows that the comparison has nothing about a shipped case built in.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.configuration import PixelLMConfig, feature_layers
from model.losses import LossWeights, pixellm_loss
from model.part_configs import clip_config, llama_config, llama_keys
from model.PixelLM import PixelLMForCausalLM
from model.text.conversation import IMAGE, get_conversation
from model.text.tokenizer import add_codebook, load_tokenizer
from model.text.tokens import IGNORE_INDEX, seg_text
from utils.parity.recording import Case, released_ids

from .tiny_world import TinyWorld

QUESTIONS = [["What is the thing?", "Which image?"], ["Is the mask human?"]]
ANSWERS = [["the thing is {seg} is {seg}.", "It is {seg}."], ["human {seg}."]]
PHOTO_HW = ((30, 50), (64, 40))


def write_case(
    root: Path, world: TinyWorld, *, scales: int, tokens: int, size: int, conv_type: str = "llava_v1"
) -> Path:
    """A folder of recordings with one case, ``other``; photos are noise and masks boxes."""
    folder = root / "other"
    for path in (folder, root / "images", root / "base", root / "tower"):
        path.mkdir(parents=True)
    for name in ("tokenizer.model", "config.json"):
        shutil.copy(world.llava / name, root / "base")
    shutil.copy(world.clip / "config.json", root / "tower")
    flat, vision = (json.loads((root / name / "config.json").read_text()) for name in ("base", "tower"))
    tokenizer = load_tokenizer(root / "base")
    codebook = add_codebook(tokenizer, scales=scales, tokens=tokens)
    llama = {**llama_keys(flat), "vocab_size": len(tokenizer)}
    layers = feature_layers(scales, depth=vision["num_hidden_layers"])
    config = PixelLMConfig(
        text_config=llama_config(llama), vision_config=clip_config(vision), vision_tower="tower", seg_token_num=tokens,
        image_feature_scale_num=scales, seg_token_ids=codebook.ids, image_size=size, vision_feature_layers=layers,
        out_dim=32,
    )  # fmt: skip
    shapes = {name: list(tensor.shape) for name, tensor in PixelLMForCausalLM(config).state_dict().items()}
    constants = ("model.token_fusion.weights", "model.mask_decoder.scale_weights")
    write(folder / "state_dict_shapes.json", {name: shape for name, shape in shapes.items() if name not in constants})
    write(folder / "config.json", llama)
    write_dialogues(folder, root / "images", seg_text(scales, tokens), conv_type)
    write_results(Case(folder))
    return root


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_dialogues(folder: Path, images: Path, group: str, conv_type: str) -> None:
    rng = np.random.default_rng(0)
    answers = [[answer.replace("{seg}", group) for answer in of_image] for of_image in ANSWERS]
    names = ["one.png", "two.png"]
    conversations = [
        get_conversation(conv_type).render([(question, answer)], image=IMAGE).text
        for questions, of_image in zip(QUESTIONS, answers, strict=True)
        for question, answer in zip(questions, of_image, strict=True)
    ]
    write(
        folder / "batch.json",
        {"images": names, "questions": QUESTIONS, "answers": answers, "conversations": conversations},
    )
    masks = {}
    for index, (name, hw, of_image) in enumerate(zip(names, PHOTO_HW, ANSWERS, strict=True)):
        Image.fromarray(rng.integers(0, 256, (*hw, 3), dtype=np.uint8)).save(images / name)
        boxes = np.zeros((sum(answer.count("{seg}") for answer in of_image), *hw), dtype=bool)
        for number, box in enumerate(boxes):
            box[5 : 15 + number, 5:20] = True
        masks[f"masks_{index}"] = boxes
    np.savez(folder / "masks.npz", **masks)


def write_results(case: Case) -> None:
    """expected.npz and train_step.json."""
    network, batch = case.network, case.batch
    with sdpa_kernel(SDPBackend.MATH):
        output = network(**batch.inputs())
        features = network.encode_images(batch.pixel_values, batch.valid_hw)
        tower = network.model.vision_tower(batch.pixel_values, batch.valid_hw)
    whole = {"images_clip": batch.pixel_values, "clip_last": tower[0], "hidden": output.last_hidden_state}
    whole["logits"] = network.lm_head(output.last_hidden_state)
    pyramid = features.pyramid.flatten(3).transpose(2, 3)
    whole |= {f"multi_{scale}": projected for scale, projected in enumerate(pyramid)}
    whole |= {f"low_res_masks_{image}": logits[:, None] for image, logits in enumerate(output.mask_logits)}
    arrays = {name: case.thin(name, tensor) for name, tensor in whole.items()}
    rows = [released_ids(ids) for ids in batch.input_ids.tolist()]
    labels = [row[-len(ids) :] for row, ids in zip(batch.labels.tolist(), rows, strict=True)]
    assert all(row[0] == IGNORE_INDEX for row in labels)
    padding = [row[-len(ids) :] for row, ids in zip(batch.attention_mask.tolist(), rows, strict=True)]
    arrays |= {"input_ids": np.array(rows), "labels": np.array(labels), "attention_masks": np.array(padding)}
    arrays["resize"] = batch.valid_hw.numpy()
    np.savez(case.folder / "expected.npz", **arrays)
    terms = pixellm_loss(
        output.loss, output.photo_logits, batch.masks, output.query_index, LossWeights(refine_alpha=1.0)
    )
    terms.total.backward()
    norms = {n: float(torch.norm(p.grad)) for n, p in network.named_parameters() if p.grad is not None}
    losses = {"loss": terms.total, "ce_loss": terms.ce, "mask_bce_loss": terms.bce, "mask_dice_loss": terms.dice}
    write(
        case.folder / "train_step.json",
        {"losses": {name: value.item() for name, value in losses.items()}, "grad_norms": norms},
    )
