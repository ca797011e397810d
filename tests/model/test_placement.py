"""Where a predictor's model lies: on several devices, on the disk, or with its tower aside; answers stay the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import infer_auto_device_map

from model.errors import InputError
from model.PixelLM import PixelLMForCausalLM
from model.placement import keep_on_cpu, keep_tower_aside, main_device
from model.predictor import PixelLMPredictor
from model.replies import Reply
from tests.support.imagined_devices import ImaginedDevices, scatter
from tests.support.parrot import write_parrot
from tests.support.tiny_network import make_network

RNG = np.random.default_rng(3)
PHOTOS = [RNG.integers(0, 256, (*hw, 3), dtype=np.uint8) for hw in ((40, 60), (60, 30))]
ASKED = [(PHOTOS[0], "What?"), (PHOTOS[1], "Where is the thing?"), (PHOTOS[0], "Why?")]
PARTS = (
    "model.embed_tokens", "model.layers.0", "model.layers.1", "model.layers.2", "model.layers.3", "model.norm",
    "model.rotary_emb", "model.vision_tower", "model.mm_projector", "model.out_mm_projector", "model.prompt_encoder",
    "model.mask_decoder", "model.image_feature_neck", "model.text_hidden_fcs", "model.token_fusion", "lm_head",
)  # fmt: skip
EVERY_SECOND = {part: ("disk", "cpu")[number % 2] for number, part in enumerate(PARTS)}
GPU = torch.device("meta")  # a device that a CPU is not, to see what goes there


@pytest.fixture(scope="module")
def folder(tiny_tokenizer_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    network, tokenizer = make_network(tiny_tokenizer_dir, scales=2, tokens=2)
    sentence = "the thing is [SEG0] [SEG1] [SEG2] [SEG3] </s>"
    write_parrot(folder, network, tokenizer, sentence, source=tiny_tokenizer_dir)
    return folder


def assert_same(found: list[Reply], expected: list[Reply]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.output_ids == theirs.output_ids
        assert len(mine.targets) == 1
        assert torch.equal(mine.targets[0].mask, theirs.targets[0].mask)


@pytest.mark.parametrize(
    ("placed", "devices"),
    [
        ({"device_map": "auto"}, set()),
        ({"device_map": "auto", "max_memory": {"cpu": 10**5}}, {"disk"}),
        ({"device_map": EVERY_SECOND}, {"cpu", "disk"}),
    ],
    ids=["all on the CPU", "what does not fit lies on the disk", "half on the disk"],
)
def test_a_divided_model_answers_as_a_whole_one(folder, tmp_path, placed, devices):
    """With accelerate's own hooks: a weight on the disk is there only while its module runs."""
    whole = PixelLMPredictor.from_pretrained(folder, device="cpu")
    divided = PixelLMPredictor.from_pretrained(folder, **placed, offload_folder=tmp_path)
    assert set(getattr(divided.model, "hf_device_map", {}).values()) == devices
    assert divided.model.device == torch.device("cpu")
    assert_same(divided.ask_batch(ASKED), whole.ask_batch(ASKED))
    dialogues = []
    for predictor in (divided, whole):
        predictor.set_image(PHOTOS[0])
        dialogues.append([predictor.ask("What?"), predictor.ask("And now?", follows=True)])
    assert_same(*dialogues)
    inputs = whole.processor(images=PHOTOS, text=["What?", "Where is it?"])
    found, expected = (one.model.generate(**inputs.to(one.model.device)) for one in (divided, whole))
    assert torch.equal(found.sequences, expected.sequences)


@pytest.mark.parametrize("seed", range(3))
def test_no_operation_mixes_tensors_of_two_devices(tiny_tokenizer_dir, seed):
    """Of a random model, whose answers are of unlike lengths, over three GPUs that are imagined."""
    network, tokenizer = make_network(tiny_tokenizer_dir, scales=2, tokens=2)
    with torch.no_grad():
        for layer in network.model.layers:  # a few tokens of the prompt decide
            for name, factor in (("q_proj", 50), ("k_proj", 5), ("o_proj", 40)):
                getattr(layer.self_attn, name).weight *= factor
        network.lm_head.weight[len(tokenizer) :] = 0
        network.lm_head.weight[network.codebook.ids[0]] *= 3
    predictor = PixelLMPredictor(network, tokenizer)
    expected = [reply.output_ids for reply in predictor.ask_batch(ASKED, max_new_tokens=12)]
    devices = ImaginedDevices()
    scatter(network, list(PARTS), devices, number=3, seed=seed)
    with devices:
        found = predictor.ask_batch(ASKED, max_new_tokens=12)
        predictor.ask_batch(ASKED, max_new_tokens=12, stop=["[SEG0]"])  # some end before others
        predictor.set_image(PHOTOS[0])
        predictor.ask("What?", max_new_tokens=12, repetition_penalty=1.2)
        predictor.ask("And now?", follows=True, max_new_tokens=12, max_targets=0)
        predictor.segment(PHOTOS[1], ["the thing", "the mask"])
        inputs = predictor.processor(images=PHOTOS, text=["What?", "Where is the thing?"])
        network.generate(**{name: tensor.to("cuda:1") for name, tensor in inputs.items()}, max_new_tokens=6)
        inputs = {name: tensor.to(network.device) for name, tensor in inputs.items()}
        network.generate(**inputs, max_new_tokens=4, num_beams=2)
        with torch.no_grad():
            network(**inputs)
    assert devices.mixed == []
    assert [reply.output_ids for reply in found] == expected
    assert any(reply.targets for reply in found)


def test_mixed_devices_are_noticed():
    first, second = torch.zeros(2), torch.ones(2)
    devices = ImaginedDevices()
    devices.put(second, torch.device("cuda:1"))
    with devices:
        assert (second + 1).device == torch.zeros(3, device=second.device).device == torch.device("cuda:1")
        assert (first.to(second) + second).device == torch.device("cuda:1")
        assert second[torch.tensor([0])].tolist() == [1]
        assert devices.mixed == []
        _ = first + second
    assert len(devices.mixed) == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"device_map": "auto", "max_memory": {"cpu": 10**5}}, "give offload_folder, a folder on the disk for it"),
        ({"device_map": {"model.layers": "cpu", "lm_head": "disk"}, "offload_folder": "."}, "not give any device for"),
        ({"device_map": "everywhere"}, "device_map names 'everywhere'; expected a device such as cpu"),
        ({"device_map": "cuda:999"}, "device_map names cuda:999, but torch finds"),
        ({"device_map": "auto", "compile": True}, "compile and device_map exclude each other"),
        ({"device_map": "auto", "device": "cpu"}, "device and device_map exclude each other"),
        ({"device_map": "auto", "offload_vision": True}, "offload_vision is for a model on one device"),
    ],
)
def test_a_placement_that_cannot_be_is_one_line(folder, options, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # accelerate writes weights before it looks at the whole map
    with pytest.raises(InputError) as caught:
        PixelLMPredictor.from_pretrained(folder, **options)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_parts_on_cpu_and_disk_compute_on_the_device_beside_them():
    assert main_device({"model.layers": "disk", "lm_head": "cpu"}) == torch.device("cpu")
    assert main_device({"model.layers": "cpu", "lm_head": "meta"}) == torch.device("meta")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_what_belongs_together_is_never_cut(folder, share):
    """Residual sums and gates join tensors of one part, which no hook moves."""
    network = PixelLMForCausalLM.from_pretrained(folder)
    whole = sum(weight.nbytes for weight in network.parameters())
    memory = {0: int(share * whole), 1: int(0.4 * whole), "cpu": 2 * whole}
    placed = infer_auto_device_map(network, memory, no_split_module_classes=network._no_split_modules)
    assert len(set(placed.values())) > 1
    parts = {"LlamaDecoderLayer", "VisionTower", "MaskDecoder", "PromptEncoder"}
    whole_parts = [name for name, module in network.named_modules() if type(module).__name__ in parts]
    assert len(whole_parts) == 3 + network.config.text_config.num_hidden_layers
    for part in whole_parts:
        assert not [name for name in placed if name.startswith(f"{part}.")]


def test_the_tower_is_on_its_device_only_while_it_sees(folder):
    network = PixelLMForCausalLM.from_pretrained(folder)
    tower, config = network.model.vision_tower, network.config
    before = dict(tower.named_parameters())
    inside = []
    tower.vision_tower["vision_model"].pre_layrnorm.register_forward_hook(
        lambda *_: inside.append({weight.device for weight in tower.parameters()})
    )
    keep_on_cpu(tower, GPU)
    assert {weight.device.type for weight in tower.parameters()} == {"cpu"}
    pixels = torch.zeros(1, 3, config.image_size, config.image_size, device=GPU)
    valid_hw = torch.tensor([[config.image_size // 2, config.image_size]])
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert tower(pixels, valid_hw).device == GPU
    assert inside == [{GPU}, {GPU}]
    assert all(weight is before[name] for name, weight in tower.named_parameters())
    with pytest.raises(RuntimeError):
        tower(torch.zeros(1, 5, 7, 7, device=GPU), valid_hw)
    assert all(weight is before[name] for name, weight in tower.named_parameters())


def test_a_tower_aside_sees_the_same(folder):
    """The way of the weights is the same where both devices are a CPU."""
    whole, aside = (PixelLMPredictor.from_pretrained(folder, device="cpu") for _ in range(2))
    keep_on_cpu(aside.model.model.vision_tower, torch.device("cpu"))
    assert_same(aside.ask_batch(ASKED), whole.ask_batch(ASKED))
    aside.model.save_pretrained(folder.parent / "again")
    again = PixelLMPredictor.from_pretrained(folder.parent / "again", device="cpu")
    assert_same(again.ask_batch(ASKED), whole.ask_batch(ASKED))


def test_without_a_gpu_nothing_is_aside_and_the_user_is_told(folder, caplog):
    tower = PixelLMForCausalLM.from_pretrained(folder).model.vision_tower
    keep_tower_aside(tower, {"": "cpu"})
    assert "offload_vision has no effect: the whole model is on the CPU" in caplog.text
    assert not tower._forward_pre_hooks
