"""Names of weights: folders, hub ids with or without the sub-folder, the cache without a network, and what fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import merge_lora_weights_and_save_hf_model as merge
from model.errors import InputError
from model.hub import HubName, parse_hub_name, resolve_folder
from model.outputs import MARK
from model.PixelLM import PixelLMForCausalLM
from model.predictor import PixelLMPredictor
from model.weights.card import is_ours
from tests.support.hub import serve_hub, write_cache
from tests.support.published import write_published
from tests.utils.training.test_init_from import settle
from utils.cli.args import parse
from utils.cli.config import MergeConfig, RunConfig
from utils.training.start import build_for_training, resolve_run_flags

PIXELLM, TOWER = "maverickrzw/PixelLM-7B", "openai/clip-vit-large-patch14-336"
NOWHERE = "http://127.0.0.1:9"  # the port "discard": nobody listens


def set_endpoint(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """What HF_ENDPOINT does before huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    """An empty cache, and a hub that cannot be reached."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    set_endpoint(monkeypatch, NOWHERE)
    return folder


@pytest.fixture
def offline_hub(cache, world) -> Path:
    """A cache with a published model and its tower; returns the model's snapshot."""
    published = world.llava.parent / "hf_model"
    write_published(published, world, scales=2, tokens=3)
    snapshot = write_cache(cache, PIXELLM, {"hf_model": published})
    write_cache(cache, TOWER, {"": world.clip})
    shutil.rmtree(published)
    return snapshot


@pytest.fixture
def hub(cache, monkeypatch):
    """A hub with a published model, a tower in three formats, and a repository of several models."""
    tower = {"config.json": b'{"model_type": "clip"}', "model.safetensors": b"1", "pytorch_model.bin": b"2"}
    model = {"config.json": b"{}", "tokenizer.model": b"3", "pytorch_model.bin.index.json": b"{}"}
    model["pytorch_model-00001-of-00002.bin"] = b"4"
    repositories = {
        TOWER: {**tower, "tf_model.h5": b"5", "README.md": b"6", "onnx/model.onnx": b"7"},
        PIXELLM: {"README.md": b"8", **{f"hf_model/{name}": content for name, content in model.items()}},
        "some/models": {"a/config.json": b"{}", "b/c/config.json": b"{}"},
    }
    with serve_hub(repositories) as served:
        set_endpoint(monkeypatch, served.address)
        yield served


@pytest.mark.parametrize(
    "name", ["/nowhere/at/all", "./nowhere", "nowhere", "~/nowhere", "a/../c", "a//b", "a/b@", "a--b/c", "x" * 300]
)
def test_a_folder_that_is_not_there(name):
    with pytest.raises(InputError, match=rf"--version {name}: no such folder; give a folder or a hub id"):
        resolve_folder(name, flag="--version")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (PIXELLM, (PIXELLM, "", "main")),
        (f"{PIXELLM}/hf_model", (PIXELLM, "hf_model", "main")),
        (f"{PIXELLM}/a/b@v1.0", (PIXELLM, "a/b", "v1.0")),
        (f"{PIXELLM}@refs/pr/1", (PIXELLM, "", "refs/pr/1")),
    ],
)
def test_the_parts_of_a_name(name, parts):
    assert parse_hub_name(name) == HubName(*parts)


def test_local_folders(tmp_path, monkeypatch):
    """A copy of a whole repository is as good as its model folder; ~ is the home."""
    (tmp_path / "PixelLM-7B/hf_model").mkdir(parents=True)
    assert resolve_folder(str(tmp_path / "PixelLM-7B")) == tmp_path / "PixelLM-7B"
    (tmp_path / "PixelLM-7B/hf_model/config.json").write_text("{}")
    assert resolve_folder(str(tmp_path / "PixelLM-7B")) == tmp_path / "PixelLM-7B/hf_model"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_folder("~/PixelLM-7B/hf_model") == tmp_path / "PixelLM-7B/hf_model"


def test_a_folder_missing_from_a_local_copy_is_not_looked_for_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "runs/toy").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--version runs/toy/hf_model: no such folder"):
        resolve_folder("runs/toy/hf_model", flag="--version")


@pytest.mark.parametrize("is_offline", [True, False])
@pytest.mark.parametrize("name", [PIXELLM, f"{PIXELLM}/hf_model", f"{PIXELLM}@main"])
def test_chat_answers_from_the_cache(offline_hub, monkeypatch, name, is_offline):
    """With HF_HUB_OFFLINE=1, and where the hub just cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
    assert resolve_folder(name) == offline_hub / "hf_model"
    predictor = PixelLMPredictor.from_pretrained(name, vision_tower=TOWER, device="cpu")
    assert predictor.model.config.seg_token_num == 3


def test_a_run_starts_from_the_cache(offline_hub):
    run = settle(PIXELLM, f"--vision-tower={TOWER}")
    assert (run.seg_token_num, run.vision_tower) == (3, TOWER)


def test_a_run_from_a_base_starts_from_the_cache(offline_hub, cache, world):
    """The default base and the default tower, which no flag names."""
    write_cache(cache, RunConfig.version, {"": world.llava})
    write_cache(cache, RunConfig.vision_tower, {"": world.clip})
    training = build_for_training(resolve_run_flags(parse(RunConfig, ["--precision=fp32"], "")))
    assert training.config.vision_tower == RunConfig.vision_tower
    assert (training.base_folder / "tokenizer.model").is_file()


@pytest.mark.slow
def test_a_merge_finds_base_and_tower_in_the_cache(shared, cache, tmp_path):
    golden = shared / "golden"
    write_cache(cache, MergeConfig.version, {"": golden / "llava-tiny"})
    write_cache(cache, TOWER, {"": golden / "clip-vit-tiny-patch14-336"})
    weight = golden / "pixellm-tiny/pytorch_model.bin"
    flags = [f"--weight={weight}", f"--vision-tower={TOWER}", f"--save_path={tmp_path / 'out'}", "--precision=fp32"]
    assert merge.main([*flags, "--pad_train_clip_images"]) == 0
    assert json.loads((tmp_path / "out/config.json").read_text())["vision_tower"] == TOWER


def test_an_interrupted_download_names_what_it_lacks(offline_hub):
    (offline_hub / "hf_model/pytorch_model-00002-of-00002.bin").unlink()
    (offline_hub / "hf_model/tokenizer.model").unlink()
    lacks = r"incomplete .*cannot be reached.*lacks pytorch_model-00002-of-00002\.bin, tokenizer\.model or "
    with pytest.raises(InputError, match=rf"--version {PIXELLM}: its copy in {offline_hub}/hf_model is {lacks}"):
        resolve_folder(PIXELLM, flag="--version")


def test_no_network_and_no_copy(cache):
    with pytest.raises(InputError) as caught:
        resolve_folder(f"{PIXELLM}/hf_model", flag="--version")
    assert f'`hf download {PIXELLM} --include "hf_model/*" --local-dir DIR`; then give DIR/hf_model' in str(
        caught.value
    )
    with pytest.raises(InputError, match=rf"`hf download {TOWER} --revision v1 --local-dir DIR`; then give DIR$"):
        resolve_folder(f"{TOWER}@v1")
    with pytest.raises(InputError, match=r"LLaVA-Lightning-7B-v1-1: .*`hf download mmaaz60/LLaVA-7B-Lightening-v1-1"):
        resolve_folder("liuhaotian/LLaVA-Lightning-7B-v1-1")


def test_only_what_is_read_is_downloaded(hub, cache):
    tower = resolve_folder(TOWER)
    assert sorted(path.name for path in tower.rglob("*")) == ["config.json", "model.safetensors"]
    model = resolve_folder(PIXELLM)
    assert model.name == "hf_model"
    assert sorted(path.name for path in model.parent.rglob("*") if path.is_file()) == [
        "config.json", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "tokenizer.model",
    ]  # fmt: skip
    served = len(hub.served)
    assert resolve_folder(f"{PIXELLM}/hf_model") == model
    assert len(hub.served) == served, "nothing is fetched twice"


def test_what_was_downloaded_serves_without_a_network(hub, monkeypatch):
    folder = resolve_folder(TOWER)
    set_endpoint(monkeypatch, NOWHERE)
    assert resolve_folder(TOWER) == folder


def test_an_interrupted_download_goes_on(hub):
    folder = resolve_folder(TOWER)
    (folder / "model.safetensors").unlink()
    assert (resolve_folder(TOWER) / "model.safetensors").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nobody/nothing", r"neither a folder here nor a repository of the hub, unless it is a private one \(`hf auth"),
        ("liuhaotian/LLaVA-Lightning-7B-v1-1", r"a hub id such as mmaaz60/LLaVA-7B-Lightening-v1-1$"),
        ("some/models", r"the repository has no config\.json; its models are in a, b/c$"),
        ("some/models/d", r"the repository has no d/config\.json; its models are in a, b/c$"),
        (f"{PIXELLM}@old", r"has no revision old; leave @old out"),
    ],
)
def test_what_the_hub_does_not_have(hub, name, says):
    with pytest.raises(InputError, match=rf"--version {name}: .*{says}"):
        resolve_folder(name, flag="--version")


def test_a_gated_repository(hub):
    hub.gated.add(PIXELLM)
    with pytest.raises(InputError, match=rf"{PIXELLM} only to those who accepted its terms.*`hf auth login`"):
        resolve_folder(PIXELLM)


def test_configurations_name_what_exists(repository):
    known = {"mmaaz60/LLaVA-7B-Lightening-v1-1", "liuhaotian/llava-llama-2-13b-chat-lightning-preview"}
    names = [json.loads((repository / f"configs/pixellm_{size}.json").read_text())["version"] for size in ("7b", "13b")]
    assert set(names) == known


@pytest.mark.parametrize("content", ["[]", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', '{"weight_map": "a"}'])
def test_a_damaged_index_in_the_cache_is_named(offline_hub, content):
    (offline_hub / "hf_model/pytorch_model.bin.index.json").write_text(content)
    with pytest.raises(InputError, match=r"pytorch_model\.bin\.index\.json"):
        resolve_folder(PIXELLM, flag="--version")


def test_a_cache_whose_revision_is_damaged_is_none(offline_hub):
    (offline_hub.parents[1] / "refs/main").write_bytes(b"\xff\0")
    with pytest.raises(InputError, match=r"neither a folder here nor in the hub's cache"):
        resolve_folder(PIXELLM, flag="--version")


def test_a_pushed_model_is_whole_with_its_card(hub, parrot):
    network = PixelLMForCausalLM.from_pretrained(parrot)
    network.push_to_hub("me/parrot", commit_message="First")
    pushed = hub.repositories["me/parrot"]
    written = {path.name: path.read_bytes() for path in parrot.iterdir() if path.name != MARK}
    assert set(pushed) == set(written)
    assert pushed["README.md"] == written["README.md"]
    again = PixelLMForCausalLM.from_pretrained("me/parrot").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())


def test_a_push_keeps_a_readme_that_somebody_wrote_on_the_hub(hub, parrot, tmp_path):
    network = PixelLMForCausalLM.from_pretrained(parrot)
    hub.repositories["me/parrot"] = {"README.md": b"# Mine"}
    network.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="me/parrot")
    (tmp_path / "model/notes.txt").write_text("mine")
    network.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="me/parrot")
    written = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir() if path.name != "notes.txt"}
    assert hub.repositories["me/parrot"] == {**written, "README.md": b"# Mine"}
    assert is_ours((tmp_path / "model/README.md").read_bytes())
