"""LLaMA plus delta is the LLaVA that the delta was made from; what does not belong together is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor

from model.text.tokenizer import load_tokenizer
from model.weights.delta import apply_delta
from model.weights.tensors import read_weights
from scripts import apply_delta as command
from tests.support.bad_input import edit_json, edit_weights, refused
from tests.support.tiny_world import TinyWorld

TABLES = ("model.embed_tokens.weight", "lm_head.weight")
LLAMA_ROWS = 350  # ten fewer than the tiny LLaVA has
SHARD = 20_000  # bytes; the tiny model takes several


def write_bin(state: dict[str, Tensor], folder: Path) -> None:
    """Two shards and their index, as older models have them."""
    names = sorted(state)
    shards = {f"pytorch_model-0000{n}-of-00002.bin": names[n - 1 :: 2] for n in (1, 2)}
    for file, part in shards.items():
        torch.save({name: state[name].clone() for name in part}, folder / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_safetensors(state: dict[str, Tensor], folder: Path) -> None:
    save_torch_state_dict({name: tensor.clone() for name, tensor in state.items()}, folder, max_shard_size=SHARD)


class Parts:
    """A LLaMA and the delta that leads from it to the tiny LLaVA, which is kept aside."""

    def __init__(self, world: TinyWorld, root: Path, write) -> None:
        self.base, self.delta, self.out = root / "llama", root / "difference", root / "llava"
        self.target = {name: t.half() for name, t in read_weights(world.llava).items()}
        generator = torch.Generator().manual_seed(3)
        llama, difference = {}, {}
        for name, tensor in self.target.items():
            difference[name] = tensor.clone()
            if "mm_projector" in name:
                continue
            known = tensor[:LLAMA_ROWS] if name in TABLES else tensor
            llama[name] = (known.float() + 0.01 * torch.randn(known.shape, generator=generator)).half()
            difference[name][: len(known)] -= llama[name]
        llama["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
        for folder, state in ((self.base, llama), (self.delta, difference)):
            folder.mkdir()
            write(state, folder)
        settings = json.loads((world.llava / "config.json").read_text())
        llama_settings = {name: value for name, value in settings.items() if not name.startswith("mm_")}
        self.delta.joinpath("config.json").write_text(json.dumps(settings))
        self.base.joinpath("config.json").write_text(json.dumps(llama_settings | {"model_type": "llama"}))
        shutil.copy(world.llava / "tokenizer.model", self.delta)

    @property
    def arguments(self) -> list[str]:
        return [f"--base={self.base}", f"--delta={self.delta}", f"--out={self.out}"]


@pytest.fixture
def parts(tiny_world, tmp_path) -> Parts:
    return Parts(tiny_world, tmp_path, lambda state, folder: torch.save(state, folder / "pytorch_model.bin"))


@pytest.mark.parametrize("write", [write_bin, write_safetensors])
def test_the_sum_is_the_model(tiny_world, tmp_path, write):
    parts = Parts(tiny_world, tmp_path, write)
    apply_delta(parts.base, parts.delta, parts.out, shard_bytes=SHARD)
    assert len(list(parts.out.glob("model-*-of-*.safetensors"))) > 3
    found = read_weights(parts.out)
    assert set(found) == set(parts.target)
    for name, tensor in parts.target.items():
        assert found[name].dtype == torch.float16
        assert torch.allclose(found[name].float(), tensor.float(), atol=2e-3), name
    for name in TABLES:
        assert torch.equal(found[name][LLAMA_ROWS:], parts.target[name][LLAMA_ROWS:])
    assert (parts.out / "config.json").read_bytes() == (parts.delta / "config.json").read_bytes()
    assert len(load_tokenizer(parts.out)) == len(load_tokenizer(tiny_world.llava))
    assert not list(parts.out.glob("pytorch_model*"))


def test_neither_side_is_changed(parts):
    before = [path.read_bytes() for folder in (parts.base, parts.delta) for path in sorted(folder.iterdir())]
    assert command.main(parts.arguments) == 0
    assert before == [path.read_bytes() for folder in (parts.base, parts.delta) for path in sorted(folder.iterdir())]
    assert [path.name for path in parts.out.glob("*.safetensors")] == ["model.safetensors"]


def other_shape(state: dict[str, Tensor]) -> None:
    state["model.layers.1.mlp.up_proj.weight"] = state["model.layers.1.mlp.up_proj.weight"][:-1]


def nothing_but_noise(state: dict[str, Tensor]) -> None:
    state["model.layers.1.input_layernorm.weight"] *= 0


@pytest.mark.parametrize(
    ("side", "change", "says"),
    [
        ("base", other_shape, "model.layers.1.mlp.up_proj.weight is (63, 32) in the base, (64, 32) in the delta"),
        ("base", lambda state: state.pop("model.layers.1.mlp.up_proj.weight"), "the base has no model.layers.1.mlp."),
        ("delta", lambda state: state.pop("lm_head.weight"), "the delta has no lm_head.weight"),
        ("base", nothing_but_noise, "the sum of model.layers.1.input_layernorm.weight is no model's"),
        ("delta", lambda state: state["lm_head.weight"].fill_(float("nan")), "the sum of lm_head.weight is not finite"),
        ("base", lambda state: state["model.norm.weight"].mul_(0.001), "holds delta weights; give the original LLaMA"),
        ("delta", lambda state: state["model.norm.weight"].add_(1), "holds a whole model, no delta"),
    ],
)
def test_weights_that_do_not_belong_together(parts, capsys, side, change, says):
    edit_weights(getattr(parts, side), change)
    refused(command.main, parts.arguments, capsys, says, getattr(parts, side))
    assert not parts.out.exists(), "nothing half-written is left"


def test_swapped_folders(parts, capsys):
    swapped = [f"--base={parts.delta}", f"--delta={parts.base}", f"--out={parts.out}"]
    refused(command.main, swapped, capsys, f"--base {parts.delta}", "model_type llava, expected llama")


def test_a_base_that_is_no_llama(parts, capsys):
    edit_json(parts.base / "config.json", model_type="opt")
    refused(command.main, parts.arguments, capsys, f"--base {parts.base}", "model_type opt, expected llama")


def test_a_folder_in_use_is_left_alone(parts, capsys):
    parts.out.mkdir()
    (parts.out / "mine").write_text("mine")
    refused(command.main, parts.arguments, capsys, f"--out {parts.out} exists and holds mine")
    assert [path.name for path in parts.out.iterdir()] == ["mine"]


@pytest.mark.parametrize("flag", ["--base", "--delta", "--out"])
def test_every_flag_is_needed(parts, capsys, flag):
    given = [word for word in parts.arguments if not word.startswith(flag)]
    refused(command.main, given, capsys, f"{flag} is missing")


@pytest.mark.parametrize("flag", ["--base", "--delta"])
@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.to(torch.int8),
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: tensor.to(torch.float8_e4m3fn),
        lambda tensor: tensor.flatten(),
        lambda tensor: tensor[:0],
        lambda tensor: tensor[0, 0],
    ],
)
def test_only_floating_point_numbers_are_added(parts, capsys, flag, change):
    folder = parts.base if flag == "--base" else parts.delta
    state = read_weights(folder)
    state[TABLES[0]] = change(state[TABLES[0]]).clone()
    for file in folder.glob("*model*"):
        if file.name != "tokenizer.model":
            file.unlink()
    torch.save(state, folder / "pytorch_model.bin")
    refused(
        command.main, parts.arguments, capsys, f"{flag} {folder}: {TABLES[0]} is", "expected floating-point numbers"
    )
    assert not parts.out.exists()
