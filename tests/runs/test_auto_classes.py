"""transformers' own verbs, in a process that imports ``model.hf``, transformers, NumPy and Pillow alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import chat
from model.image import read_image
from model.PixelLM import PixelLMForCausalLM
from tests.support.hub import COMMIT, write_cache
from tests.support.launch import python
from tests.support.parrot import write_parrot
from tests.support.tiny_network import make_network
from tests.support.tiny_world import TinyWorld
from utils.masks.rle import decode_rles

QUESTION = "What is the thing?"
_ASK = """
import json, sys
import numpy as np
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
import model.hf

folder, photo, question, out, options = *sys.argv[1:5], json.loads(sys.argv[5])
config = AutoConfig.from_pretrained(folder, **options)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", device_map="auto", **options)
processor = AutoProcessor.from_pretrained(folder, **options)
image = Image.open(photo)
inputs = processor(images=photo, text=question).to(model.device)
messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
chat = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs)
length = inputs["input_ids"].shape[1]
(masks,) = processor.post_process_masks(output.mask_logits, [image.size[::-1]])
assert config == model.config
np.savez(out, masks=masks.cpu().numpy(), prompt=inputs["input_ids"].cpu().numpy(), chat=chat["input_ids"].numpy())
others = {"utils", "scripts", "deepspeed", "peft", "model.predictor"} & {*sys.modules}
print(json.dumps([
    type(model).__name__, type(processor).__name__, output.sequences[0, length:].tolist(),
    processor.decode(output.sequences[0, length:]), str(model.dtype), sorted(others),
]))
"""


@pytest.fixture(scope="module")
def big_parrot(tiny_world: TinyWorld, tmp_path_factory) -> Path:
    """It says two groups, in both of which the tokens differ."""
    folder = tmp_path_factory.mktemp("auto") / "hf_model"
    network, tokenizer = make_network(tiny_world.llava, scales=2, tokens=2, conv_type="llava_llama_2", seed=4)
    write_parrot(folder, network, tokenizer, "the thing is [SEG0] [SEG1] [SEG2] [SEG3] </s>", source=tiny_world.llava)
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (48, 70, 3), dtype=np.uint8)).save(file)
    return file


def ask(folder: Path | str, photo: Path, out: Path, repository: Path, **options: str) -> tuple[list, dict]:
    """What the other process found: classes, ids, words; and its arrays."""
    done = python("-c", _ASK, folder, photo, QUESTION, out, json.dumps(options), cwd=repository)
    assert done.code == 0, done.text
    assert "has generative capabilities" not in done.text, "no warning of transformers about our classes"
    with np.load(out) as arrays:
        return json.loads(done.stdout.splitlines()[-1]), dict(arrays)


@pytest.fixture(scope="module")
def by_chat(big_parrot, photo, tmp_path_factory) -> dict:
    """What chat.py writes about the same question."""
    out = tmp_path_factory.mktemp("chat")
    flags = [f"--version={big_parrot}", f"--image={photo}", f"--prompt={QUESTION}", "--precision=fp32"]
    assert chat.main([*flags, f"--output_json={out / 'a.json'}", f"--vis_save_path={out}"]) == 0
    return json.loads((out / "a.json").read_text(encoding="utf-8"))


def assert_equals_chat(found: list, arrays: dict, by_chat: dict, photo: Path) -> None:
    model, processor, ids, words, dtype, others = found
    assert (model, processor, dtype) == ("PixelLMForCausalLM", "PixelLMProcessor", "torch.float32")
    assert others == [], "nothing else of ours is needed"
    assert ids == by_chat["output_ids"]
    assert words == by_chat["text"]
    hw = read_image(photo).shape[:2]
    assert arrays["masks"].shape == (1, *hw)
    expected = decode_rles([target["segmentation"] for target in by_chat["targets"]], hw=hw)
    assert np.array_equal(arrays["masks"], expected)
    assert arrays["masks"].any()
    assert not arrays["masks"].all()
    assert np.array_equal(arrays["prompt"], arrays["chat"]), "messages are the same input as the bare question"


def test_auto_classes_answer_as_chat_does(big_parrot, photo, by_chat, tmp_path, repository):
    assert_equals_chat(*ask(big_parrot, photo, tmp_path / "a.npz", repository), by_chat, photo)


def test_auto_classes_read_a_subfolder_of_the_hub(big_parrot, photo, by_chat, tmp_path, repository, monkeypatch):
    """From a cache, as after a download; nothing asks a network."""
    write_cache(tmp_path / "hub", "somebody/models", {"deep/model": big_parrot})
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = {"subfolder": "deep/model", "revision": COMMIT}
    assert_equals_chat(*ask("somebody/models", photo, tmp_path / "a.npz", repository, **options), by_chat, photo)


def test_real_photos(big_parrot, shared, tmp_path, forks):
    """A JPEG gives the same input as a file, as Pillow opens it in messages, and in chat."""
    file = sorted((shared / "real_mini/coco").rglob("*.jpg"))[0]
    done = forks.python("-c", _ASK, big_parrot, file, QUESTION, tmp_path / "a.npz", "{}")
    assert done.code == 0, done.text
    with np.load(tmp_path / "a.npz") as found:
        arrays = dict(found)
    network = PixelLMForCausalLM.from_pretrained(big_parrot)
    with torch.no_grad():
        output = network.generate(**network.processor(images=Image.open(file), text=QUESTION))
    hw = read_image(file).shape[:2]
    (masks,) = network.processor.post_process_masks(output.mask_logits, [hw])
    assert arrays["masks"].shape == (1, *hw)
    assert (arrays["masks"] == masks.numpy()).mean() > 0.999
