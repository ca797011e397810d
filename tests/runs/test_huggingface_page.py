"""docs/huggingface.md: its Python blocks run one after the other, and its command, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.support.hub import serve_hub, write_cache
from tests.support.launch import python, run
from tests.support.parrot import write_parrot
from tests.support.published import write_published
from tests.support.tiny_network import make_network
from tests.support.tiny_world import TinyWorld

PAGE = Path(__file__).resolve().parents[2] / "docs/huggingface.md"
# What the page says, of the variables that its blocks leave behind.
_CHECKS = """
from pathlib import Path
assert type(network).__name__ == type(published).__name__ == "PixelLMForCausalLM"
assert masks.shape == logits.shape == (1, photo.height, photo.width)
assert len(one_photo["pixel_values"]) == 1 and len(two_photos["pixel_values"]) == 2
assert len(reply.targets) == 1 and reply.text == "the thing is [SEG0] [SEG1]"
assert max(Image.open("answer.png").size) == 800 and Image.open("answer_mask_0.png").size == photo.size
assert found[0]["area"] == masks.sum() and found[0]["image_id"] == 1
assert Path("my-model/README.md").is_file() and Path("my-processor/processor_config.json").is_file()
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tiny_world: TinyWorld, tmp_path, repository, monkeypatch) -> Path:
    """A folder with what the page names: a model, a photo, and the published model in the hub's cache."""
    for name in ("model", "utils", "scripts"):
        (tmp_path / name).symlink_to(repository / name)
    network, tokenizer = make_network(tiny_world.llava, scales=1, tokens=2)
    model = tmp_path / "runs/toy/hf_model"
    write_parrot(model, network, tokenizer, "the thing is [SEG0] [SEG1] </s>", source=tiny_world.llava)
    Image.linear_gradient("L").resize((70, 48)).save(tmp_path / "photo.jpg")
    write_published(tmp_path / "published", tiny_world, scales=2, tokens=3)
    write_cache(tmp_path / "hub", "maverickrzw/PixelLM-7B", {"hf_model": tmp_path / "published"})
    write_cache(tmp_path / "hub", "openai/clip-vit-large-patch14-336", {"": tiny_world.clip})
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_the_python_blocks_run(place, monkeypatch):
    with serve_hub({}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", "hf_none")
        done = python("-c", "\n".join([*blocks("python"), _CHECKS]), cwd=place)
    assert done.code == 0, done.text
    assert "the thing is [0] [('thing', 0." in done.stdout
    assert {"config.json", "model.safetensors", "README.md"} <= set(hub.repositories["me/my-model"])


def test_the_command_runs(place, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (command,) = blocks("bash")
    done = run(["bash", "-c", command], cwd=place)
    assert done.code == 0, done.text
    assert (place / "pixellm-7b/processor_config.json").is_file()
