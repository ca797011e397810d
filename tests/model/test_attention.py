"""Every attention implementation gives the same answers and masks; one that cannot work here is refused first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

import chat
import model.hf  # noqa: F401  registers the model with transformers
import train_ds
from model import attention
from model.attention import check_attention
from model.errors import InputError
from model.losses import LossWeights, pixellm_loss
from model.PixelLM import PixelLMForCausalLM
from model.pretrained import PixelLMPreTrainedModel
from scripts import evaluate
from tests.support.bad_input import refused
from tests.support.tiny_network import make_batch, make_network
from utils.cli.args import parse
from utils.cli.config import RunConfig
from utils.training.lora import set_trained
from utils.training.start import build_for_training

# Photos that are padded below and at the right: hidden image tokens stand between visible ones.
TALKS = [(0, "Which thing?", "The thing is {seg} and {seg}."), (1, "What?", "{seg}."), (0, "Is it human?", "{seg}.")]
SAME = {"atol": 1e-5, "rtol": 1e-4}


@contextmanager
def computing_by(network: PixelLMForCausalLM, name: str) -> Iterator[None]:
    """flex_attention as torch defines it: compiling it for a CPU takes minutes, and we refuse it there."""
    if name == "flex_attention":
        network.model.config._attn_implementation = name
    else:
        network.set_attn_implementation(name)
    assert network.model.config._attn_implementation == name
    with torch.compiler.set_stance("force_eager") if name == "flex_attention" else nullcontext():
        yield


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ["eager", "flex_attention"])
def test_masks_are_those_of_sdpa(tiny_tokenizer_dir, name):
    network, tokenizer = make_network(tiny_tokenizer_dir)
    batch = make_batch(network, tokenizer, TALKS)
    assert not batch.attention_mask.all()
    with torch.no_grad():
        expected = network(**batch.inputs())
        with computing_by(network, name):
            found = network(**batch.inputs())
    for mine, theirs in zip(expected.mask_logits, found.mask_logits, strict=True):
        assert len(mine)
        torch.testing.assert_close(theirs, mine, **SAME)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ["sdpa", "eager", "flex_attention"])
def test_answers_in_a_left_padded_batch_are_those_alone(tiny_tokenizer_dir, name):
    network, _ = make_network(tiny_tokenizer_dir)
    rng = np.random.default_rng(5)
    photos = [rng.integers(0, 256, (*hw, 3), dtype=np.uint8) for hw in ((40, 60), (60, 30))]
    questions = ["What?", "Which thing is the human mask of the image?"]
    alone = []
    for photo, question in zip(photos, questions, strict=True):
        inputs = network.processor(images=[photo], text=[question])
        alone.append(network.generate(**inputs, eos_token_id=None, max_new_tokens=5).states[0])
    inputs = network.processor(images=photos, text=questions)
    assert not inputs["attention_mask"][0, 0], "the first row is padded"
    with computing_by(network, name):
        together = network.generate(**inputs, eos_token_id=None, max_new_tokens=5).states
    torch.testing.assert_close(together, torch.stack(alone), **SAME)


def test_gradients_of_eager_are_those_of_sdpa(tiny_tokenizer_dir):
    network, tokenizer = make_network(tiny_tokenizer_dir)
    batch = make_batch(network, tokenizer, TALKS)
    set_trained(network)
    gradients = []
    for name in ("sdpa", "eager"):
        network.zero_grad(set_to_none=True)
        with computing_by(network, name):
            output = network(**batch.inputs())
            terms = pixellm_loss(output.loss, output.photo_logits, batch.masks, output.query_index, LossWeights())
            terms.total.backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize(("name", "of_tower"), [("sdpa", "sdpa"), ("eager", "eager"), ("flex_attention", "sdpa")])
def test_the_tower_keeps_to_what_takes_its_mask(parrot, monkeypatch, name, of_tower):
    monkeypatch.setattr(attention, "_check_gpu", lambda name: None)
    network = PixelLMForCausalLM.from_pretrained(parrot, attn_implementation=name)
    assert network.model.config._attn_implementation == name
    block = network.model.vision_tower.vision_tower["vision_model"].encoder["layers"][0]
    assert block.self_attn.config._attn_implementation == of_tower


def test_positions_that_start_anew_cut_nothing(tiny_tokenizer_dir):
    """transformers takes them for packed conversations where it gets no mask."""
    network, _ = make_network(tiny_tokenizer_dir)
    embeds = torch.randn(1, 8, network.config.text_config.hidden_size, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    whole = torch.ones(1, 8, dtype=torch.bool)
    with torch.no_grad():
        without = network(inputs_embeds=embeds, position_ids=places).last_hidden_state
        expected = network(inputs_embeds=embeds, position_ids=places, attention_mask=whole).last_hidden_state
        cut = network(inputs_embeds=embeds[:, 4:], position_ids=places[:, 4:]).last_hidden_state
    torch.testing.assert_close(without, expected)
    assert not torch.allclose(without[:, 4:], cut)


HUB_KERNEL = "kernels-community/flash-attn2"
REFUSED = [
    (HUB_KERNEL, f"attn_implementation is '{HUB_KERNEL}'; expected one of sdpa, eager"),
    ("flash_attention_3", "attn_implementation is 'flash_attention_3'; expected one of"),
    ("paged|sdpa", r"attn_implementation is 'paged\|sdpa'"),
    ("flash_attention_2", "flash_attention_2 needs a CUDA GPU, and torch finds none here; use sdpa"),
    ("flex_attention", "flex_attention needs a CUDA GPU"),
    ({"text_config": HUB_KERNEL}, f"'{HUB_KERNEL}'"),
    ({"": "sdpa", "text_config": "flash_attention_2"}, "flash_attention_2 needs a CUDA GPU"),
]
CONFIG = PixelLMForCausalLM.config_class
# A folder, a network that was read from it, and what is asked for.
WAYS = {
    "AutoModel": lambda folder, _, name: AutoModelForImageTextToText.from_pretrained(folder, attn_implementation=name),
    "from_pretrained": lambda folder, _, name: PixelLMForCausalLM.from_pretrained(folder, attn_implementation=name),
    "from_config": lambda folder, _, name: AutoModelForImageTextToText.from_config(
        CONFIG.from_pretrained(folder), attn_implementation=name
    ),
    "config": lambda folder, _, name: PixelLMForCausalLM(CONFIG.from_pretrained(folder, attn_implementation=name)),
    "set": lambda _, network, name: network.set_attn_implementation(name),
    "set of the language model": lambda _, network, name: network.model.set_attn_implementation(name),
}


@pytest.fixture(scope="module")
def network(parrot) -> PixelLMForCausalLM:
    return PixelLMForCausalLM.from_pretrained(parrot)


@pytest.fixture(params=[False, True], ids=["no kernels", "kernels"])
def kernels(request, monkeypatch) -> None:
    """With the package ``kernels``, transformers fetches code in place of what is missing: here that is a failure."""
    if request.param:

        def fetch(*args, **options):
            pytest.fail("a kernel would be fetched")

        monkeypatch.setattr("transformers.modeling_utils.is_kernels_available", lambda: True)
        monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", fetch)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU says")
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("way", WAYS)
def test_what_cannot_work_is_refused_on_every_way(parrot, network, way):
    for name, says in REFUSED:
        with pytest.raises(InputError, match=says):
            WAYS[way](parrot, network, name)


def test_a_gpu_without_the_package(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check_attention("flex_attention")
    with pytest.raises(InputError, match=r"flash_attention_2 needs the package flash-attn, .* requirements-gpu\.txt"):
        check_attention("flash_attention_2")


def test_flash_attention_computes_in_16_bits(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: True)
    for dtype in (torch.bfloat16, torch.float16, None):
        check_attention("flash_attention_2", dtype=dtype)
    with pytest.raises(InputError, match="computes in 16 bits only; give bf16 or fp16"):
        check_attention("flash_attention_2", dtype=torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU says")
@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention"])
@pytest.mark.parametrize("command", [chat, evaluate, train_ds])
def test_commands_refuse_it_before_weights_are_read(monkeypatch, parrot, tiny_world, tmp_path, capsys, command, name):
    monkeypatch.setattr(PixelLMPreTrainedModel, "from_state", lambda *args, **options: pytest.fail("weights are read"))
    model = tiny_world.arguments if command is train_ds else [f"--version={parrot}"]
    place = {chat: "vis_save_path", evaluate: "output_dir", train_ds: "log_base_dir"}[command]
    flags = [*model, f"--{place}={tmp_path / 'out'}", f"--attn_implementation={name}"]
    if command is evaluate:
        flags.append(f"--dataset_dir={tiny_world.dataset}")
    refused(command.main, flags, capsys, f"{name} needs a CUDA GPU")
    assert not list(tmp_path.iterdir())


def test_chat_computes_as_it_is_told(parrot, monkeypatch, tiny_world, tmp_path):
    seen = []
    from_state = PixelLMPreTrainedModel.from_state.__func__

    def remember(cls, *args, **options):
        seen.append(from_state(cls, *args, **options))
        return seen[-1]

    monkeypatch.setattr(PixelLMPreTrainedModel, "from_state", classmethod(remember))
    photo = next(tiny_world.dataset.rglob("*.jpg"))
    flags = [f"--version={parrot}", f"--image={photo}", "--prompt=What?", "--attn_implementation=eager"]
    assert chat.main([*flags, f"--vis_save_path={tmp_path}"]) == 0
    assert [network.model.config._attn_implementation for network in seen] == ["eager"]


def test_training_computes_as_it_is_told(tiny_world):
    flags = [*tiny_world.arguments, "--precision=fp32", "--attn_implementation=eager"]
    network = build_for_training(parse(RunConfig, flags, "").config).network
    assert network.model.config._attn_implementation == "eager"
