"""Weights on disk: what is written reads back bit for bit, and what does not fit is refused by name."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.errors import InputError
from model.files import read_object
from model.part_configs import clip_config
from model.PixelLM import PixelLMForCausalLM
from model.text.tokenizer import load_tokenizer, save_tokenizer
from model.weights.bases import FRESH_MODULES, TOWER_PREFIX, read_tower
from model.weights.checkpoint import check_fit
from model.weights.tensors import read_weights
from tests.support.tiny_network import make_batch, make_network
from tests.support.tiny_world import TinyWorld

TALKS = [(0, "Which thing?", "The thing is {seg}."), (1, "What is it?", "It is human {seg}.")]


@pytest.fixture(scope="module")
def tiny(tiny_world: TinyWorld):
    """A network on the tower of the tiny world, so that a folder without the tower finds it again."""
    vision = clip_config(read_object(tiny_world.clip / "config.json"))
    network, tokenizer = make_network(tiny_world.llava, vision_config=vision, vision_tower=str(tiny_world.clip))
    network.load_state_dict(read_tower(tiny_world.clip, network.config), strict=False)
    return network, tokenizer


@pytest.fixture(scope="module")
def saved(tiny, tiny_world: TinyWorld, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny[0].save_pretrained(folder, save_vision_tower=False)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A folder of one's own, to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copied"))


@pytest.mark.parametrize("with_tower", [False, True])
def test_saved_and_loaded_bit_for_bit(tiny, tiny_world, tmp_path, with_tower):
    network, tokenizer = tiny
    network.save_pretrained(tmp_path / "m", save_vision_tower=with_tower)
    loaded = PixelLMForCausalLM.from_pretrained(tmp_path / "m")
    again, report = loaded.processor.tokenizer, loaded.load_report
    own, found = network.state_dict(), loaded.state_dict()
    assert set(own) == set(found)
    for name, tensor in own.items():
        assert torch.equal(tensor, found[name]), name
    assert (report.loaded, report.initialized, report.ignored) == (len(own), [], [])
    assert again("a [SEG0] b").input_ids == tokenizer("a [SEG0] b").input_ids
    stored = load_file(tmp_path / "m/model.safetensors")
    assert any(name.startswith(TOWER_PREFIX) for name in stored) is with_tower
    with torch.no_grad():
        batch = make_batch(network, tokenizer, TALKS)
        assert torch.equal(network(**batch.inputs()).last_hidden_state, loaded(**batch.inputs()).last_hidden_state)


def test_a_folder_has_all_that_transformers_users_expect(saved):
    names = {path.name for path in saved.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"} <= names
    assert {"tokenizer.model", "tokenizer_config.json"} <= names
    assert json.loads((saved / "preprocessor_config.json").read_text())["size"] == {"longest_edge": 56}


def test_from_pretrained(saved):
    assert isinstance(PixelLMForCausalLM.from_pretrained(saved), PixelLMForCausalLM)
    assert PixelLMForCausalLM.from_pretrained(saved, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_slices_of_a_larger_storage_are_saved(tiny, tmp_path):
    """zero_to_fp32.py writes every trained weight as a slice of one flat tensor."""
    network, _ = make_network(Path(tiny[1].name_or_path))
    for parameter in network.parameters():
        flat = torch.cat([parameter.detach().flatten(), torch.zeros(7)])
        parameter.data = flat[: parameter.numel()].view(parameter.shape)
    network.save_pretrained(tmp_path / "m")
    stored = load_file(tmp_path / "m/model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("layout", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(("shards", "again"), [("1GB", "1GB"), ("200KB", "300KB"), ("200KB", "1GB"), ("1GB", "200KB")])
def test_a_model_is_saved_where_it_was_read(tiny, tmp_path, layout, shards, again):
    """Its weights lie in the files that are replaced, and files of another number of shards would be read first."""
    network, _ = tiny
    network.save_pretrained(tmp_path, max_shard_size=shards)
    if layout == "pytorch_model.bin":
        torch.save(read_weights(tmp_path), tmp_path / layout)
        for file in tmp_path.glob("model*.safetensors*"):
            file.unlink()
    read = PixelLMForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        read.lm_head.weight += 1
    read.save_pretrained(tmp_path, max_shard_size=again)
    expected = {**network.state_dict(), "lm_head.weight": network.lm_head.weight + 1}
    for found in (read.state_dict(), PixelLMForCausalLM.from_pretrained(tmp_path).state_dict()):
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert not list(tmp_path.glob(".*")), "nothing is left over"
    assert all(file.stat().st_mode & 0o044 for file in tmp_path.iterdir()), "others may read it, too"


def rewrite(folder: Path, change) -> None:
    """Apply ``change`` to the state dict of a folder."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize("layout", ["pytorch_model.bin", "sharded .bin", "sharded .safetensors"])
def test_every_layout_of_weights_is_read(copied, layout):
    state = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    if layout == "pytorch_model.bin":
        torch.save(state, copied / layout)
    else:
        suffix = layout.removeprefix("sharded .")
        stem = "pytorch_model" if suffix == "bin" else "model"
        names = sorted(state)
        weight_map = {}
        for number, part in enumerate((names[::2], names[1::2]), start=1):
            file = f"{stem}-0000{number}-of-00002.{suffix}"
            shard = {name: state[name] for name in part}
            torch.save(shard, copied / file) if suffix == "bin" else save_file(shard, copied / file)
            weight_map |= dict.fromkeys(part, file)
        (copied / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = read_weights(copied)
    assert set(found) == set(state)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert PixelLMForCausalLM.from_pretrained(copied).load_report.initialized == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("model.layers.1.mlp.up_proj.weight"),
            r"weights missing: 1, first model\.layers\.1",
        ),
        (lambda state: state.update(extra=torch.zeros(1)), r"weights that are not part of the model: 1, first extra"),
        (
            lambda state: state.update({"lm_head.weight": torch.zeros(3, 16)}),
            r"weights of another shape: 1, first lm_head.weight: found \(3, 16\), expected \(400, 16\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(copied, change, message):
    rewrite(copied, change)
    with pytest.raises(InputError, match=rf"{copied} does not fit the model: {message}.*config\.json"):
        PixelLMForCausalLM.from_pretrained(copied)


CONSTANTS = ("model.token_fusion.weights", "model.mask_decoder.scale_weights")


def test_constants_of_the_release_may_be_missing(copied):
    """Published weights have no fusion and scale weights: they were constants (docs/paper_to_code.md, row 2)."""
    for name in CONSTANTS:
        rewrite(copied, lambda state, name=name: state.pop(name))
    network = PixelLMForCausalLM.from_pretrained(copied)
    report = network.load_report
    assert torch.allclose(network.model.token_fusion.weights, torch.full((3,), 1 / 6))
    assert torch.allclose(network.model.mask_decoder.scale_weights, torch.full((2,), 1 / 2))
    assert report.initialized == []
    assert set(report.constant) == set(CONSTANTS)
    assert "at the released constants: " in report.describe()


@pytest.mark.slow
def test_nothing_else_may_be_missing(tiny):
    """One weight of every kind: a module that is silently random would answer with noise."""
    network, _ = tiny
    state = network.state_dict()
    kinds = {re.sub(r"\d+", "#", name): name for name in state}
    assert len(kinds) > 60
    for name in kinds.values():
        rest = {other: tensor for other, tensor in state.items() if other != name}
        if name in CONSTANTS:
            assert build(network, rest).load_report.constant == [name]
            continue
        with pytest.raises(InputError, match=rf"weights missing: 1, first {re.escape(name)}"):
            check_fit(state, rest, source="test", may_initialize=())


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.rotary_emb.inv_freq", f"{TOWER_PREFIX}embeddings.position_ids"]
)
def test_buffers_without_information_may_be_left_over(tiny, name):
    network, _ = tiny
    report = build(network, {**network.state_dict(), name: torch.zeros(2)}).load_report
    assert report.ignored == [name]
    assert f"not used: 1 (e.g. {name})" in report.describe()


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.vision_tower.vision_tower.vision_model.visual_projection.weight",
        "model.mm_projector.weight",
        "model.visual_model.image_encoder.pos_embed",
        "model.layers.4.mlp.up_proj.weight",
    ],
)
def test_nothing_else_may_be_left_over(tiny, name):
    """LoRA that was not merged, a linear projector, SAM, one layer too many."""
    network, _ = tiny
    with pytest.raises(InputError, match=rf"weights that are not part of the model: 1, first {re.escape(name)}"):
        build(network, {**network.state_dict(), name: torch.zeros(2)})


def build(network, state):
    return PixelLMForCausalLM.from_state(network.config, state, dtype=torch.float32, source="test")


def test_fresh_modules_are_initialized_and_reported(tiny):
    network, _ = tiny
    state = {name: t for name, t in network.state_dict().items() if not name.startswith(FRESH_MODULES)}
    built = PixelLMForCausalLM.from_state(
        network.config, state, dtype=torch.float32, source="test", may_initialize=FRESH_MODULES
    )
    report = built.load_report
    missing = {name for name in network.state_dict() if name.startswith(FRESH_MODULES)}
    assert set(report.initialized) == missing - {"model.mask_decoder.scale_weights"}, "a constant of the release"
    for name, tensor in built.state_dict().items():
        assert not tensor.is_meta, name
        assert tensor.isfinite().all(), name
        if name in report.initialized and tensor.dim() > 1:
            assert tensor.std() > 0, name


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_bad_config_json_is_named(copied, content):
    (copied / "config.json").unlink()
    if content is not None:
        (copied / "config.json").write_text(content)
    with pytest.raises(InputError, match=rf"{copied / 'config.json'} "):
        PixelLMForCausalLM.from_pretrained(copied)


def test_tokenizer_and_config_must_belong_together(copied):
    flat = read_object(copied / "config.json")
    ids = flat["seg_token_ids"]
    (copied / "config.json").write_text(json.dumps({**flat, "seg_token_ids": [ids[1], ids[0], *ids[2:]]}))
    with pytest.raises(
        InputError, match=r"its tokenizer gives the codebook ids .*take both files from the same folder"
    ):
        PixelLMForCausalLM.from_pretrained(copied)


def test_a_tower_that_is_gone(copied):
    flat = read_object(copied / "config.json")
    for name in ("mm_vision_tower", "vision_tower"):
        flat[name] = "/nowhere/clip"
    (copied / "config.json").write_text(json.dumps(flat))
    with pytest.raises(InputError, match=r"names its vision tower /nowhere/clip, which is not found; .*--vision-tower"):
        PixelLMForCausalLM.from_pretrained(copied)


def test_a_vocabulary_smaller_than_the_tokenizer(copied):
    """The image marks get ids behind the embedding table where added_tokens.json of a published folder is lost."""
    flat = read_object(copied / "config.json")
    rows = flat["text_config"]["vocab_size"]
    tokenizer = load_tokenizer(copied)
    tokenizer.add_tokens([f"[more{number}]" for number in range(rows)])
    save_tokenizer(tokenizer, copied)
    with pytest.raises(InputError, match=rf"tokenizer {copied}: .* has id \d+ but config\.json says vocab_size {rows}"):
        PixelLMForCausalLM.from_pretrained(copied)
