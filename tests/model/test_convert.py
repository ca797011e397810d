"""scripts/convert_to_hf.py: a published folder becomes one of ours, bit for bit, or nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, LlavaConfig

import model.hf  # noqa: F401  (what users import)
from model.configuration import PixelLMConfig
from model.errors import InputError
from model.outputs import MARK
from model.PixelLM import PixelLMForCausalLM
from model.processor import PixelLMProcessor
from model.weights.bases import TOWER_PREFIX
from model.weights.tensors import read_weights
from scripts import convert_to_hf
from tests.support.bad_input import refused
from tests.support.published import CONSTANTS, write_published
from tests.support.snapshot import snapshot
from utils.cli.args import parse


@pytest.fixture
def published(world) -> Path:
    folder = world.llava.parent / "hf_model"
    write_published(folder, world, scales=2, tokens=3)
    return folder


def test_auto_config_takes_a_published_folder_for_another_model(published):
    """Its config.json says model_type llava, which transformers has a class for: docs/huggingface.md warns of it."""
    assert type(AutoConfig.from_pretrained(published)) is LlavaConfig
    with pytest.raises(InputError, match=r"PixelLMForCausalLM\.from_pretrained reads .*scripts/convert_to_hf\.py conv"):
        PixelLMConfig.from_pretrained(published)
    assert PixelLMForCausalLM.from_pretrained(published).processor is not None


@pytest.mark.parametrize(("with_tower", "dtype"), [(False, torch.float16), (True, torch.float32)])
def test_a_published_folder_becomes_one_that_auto_classes_read(published, tmp_path, capsys, with_tower, dtype):
    for shard in published.glob("*.bin"):
        torch.save({name: tensor.to(dtype) for name, tensor in torch.load(shard).items()}, shard)
    out = tmp_path / "elsewhere/out"
    flags = [f"--version={published}", f"--out={out}", *(["--save_vision_tower"] if with_tower else [])]
    assert convert_to_hf.main([*flags, "--conv_type=llava_llama_2"]) == 0
    assert f"{out} can be read by AutoModelForImageTextToText.from_pretrained" in capsys.readouterr().out
    source, written = read_weights(published), read_weights(out)
    del source["model.layers.0.self_attn.rotary_emb.inv_freq"]
    tower = {name for name in written if name.startswith(TOWER_PREFIX)}
    assert bool(tower) is with_tower
    assert set(written) - tower == {*source, *CONSTANTS}
    assert all(
        torch.equal(tensor, written[name]) and tensor.dtype == written[name].dtype for name, tensor in source.items()
    )
    found, expected = AutoModelForImageTextToText.from_pretrained(out), PixelLMForCausalLM.from_pretrained(published)
    assert type(found) is PixelLMForCausalLM
    assert type(AutoProcessor.from_pretrained(out)) is PixelLMProcessor
    assert found.config.conv_type == "llava_llama_2"
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in expected.state_dict().items())
    assert json.loads((out / MARK).read_text())["kind"] == "merged model"


def test_a_folder_of_before_there_was_a_text_config(parrot, tmp_path):
    old = Path(shutil.copytree(parrot, tmp_path / "old"))
    content = json.loads((old / "config.json").read_text())
    content |= content.pop("text_config")
    content["model_type"] = "pixellm"
    (old / "config.json").write_text(json.dumps(content))
    for name in ("processor_config.json", "chat_template.jinja", "generation_config.json"):
        (old / name).unlink()
    flags = [f"--version={old}", f"--out={tmp_path / 'new'}", "--save_vision_tower"]
    assert convert_to_hf.main(flags) == 0
    assert PixelLMConfig.from_pretrained(tmp_path / "new") == PixelLMConfig.from_pretrained(parrot)
    before, after = read_weights(parrot), read_weights(tmp_path / "new")
    assert set(before) == set(after)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_an_edited_card_stays(published, tmp_path):
    flags = [f"--version={published}", f"--out={tmp_path / 'out'}"]
    assert convert_to_hf.main(flags) == 0
    (tmp_path / "out/README.md").write_text("# Mine\n")
    assert convert_to_hf.main(flags) == 0
    assert (tmp_path / "out/README.md").read_text() == "# Mine\n"


def test_a_model_without_its_tokenizer_is_refused(parrot, tmp_path, capsys):
    old = Path(shutil.copytree(parrot, tmp_path / "old"))
    for file in old.glob("tokenizer*"):
        file.unlink()
    refused(
        convert_to_hf.main, [f"--version={old}", f"--out={tmp_path / 'out'}"], capsys, f"{old} has no tokenizer; copy"
    )


@pytest.mark.parametrize(
    ("flags", "messages"),
    [
        (["--out={root}/out"], ["--version is missing"]),
        (["--version={model}"], ["--out is missing"]),
        (["--version={root}/nowhere", "--out={root}/out"], ["nowhere", "no such folder"]),
        (["--version={model}", "--out={model}"], ["--out", "is or contains"]),
        (["--version={model}", "--out={root}/mine"], ["--out", "holds notes.txt"]),
        (["--version={model}", "--out={root}/out", "--conv_type=vicuna"], ["conv_type 'vicuna' is unknown"]),
        (["--version={model}", "--out={root}/out", "--vision-tower={root}/mine"], ["config.json does not exist"]),
    ],
)
def test_what_cannot_be_converted_is_refused(published, tmp_path, capsys, flags, messages):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    before = snapshot(tmp_path)
    refused(convert_to_hf.main, [flag.format(root=tmp_path, model=published) for flag in flags], capsys, *messages)
    assert snapshot(tmp_path) == before


def test_the_tower_flag_has_both_spellings():
    for name in ("--vision-tower", "--vision_tower"):
        assert (
            parse(convert_to_hf.ConvertConfig, ["--version=a", "--out=b", f"{name}=c"], "").config.vision_tower == "c"
        )
