"""The model card: true, complete, safe against what names hold, and never in the way of a README of one's own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from codespell_lib import main as codespell
from huggingface_hub import ModelCard
from PIL import Image

from model.configuration import PixelLMConfig
from model.PixelLM import PixelLMForCausalLM
from model.recipe import RECIPE_OF_PUBLISHED_WEIGHTS, TERMS_OF_BASES
from model.text.tokens import SegCodebook
from model.weights.card import keep_own_card, render_card, write_card
from tests.support.published import write_published
from tests.support.tiny_data import tiny_config
from utils.cli.config import RunConfig
from utils.data.options import DataOptions
from utils.data.registry import FAMILIES
from utils.data.sources import custom
from utils.training.recipe import recipe_of

BASE = "mmaaz60/LLaVA-7B-Lightening-v1-1"
TOWER = "openai/clip-vit-large-patch14-336"
EVERYTHING = {
    "dataset": "sem_seg||refer_seg||vqa||reason_seg||multi_reason_seg||custom",
    "sample_rates": "9,3,3,1,2,2",
    "refer_seg_data": "refclef||refcoco||refcoco+||refcocog||grefcoco",
    "custom_data": "/home/somebody/secret/mine.jsonl",
}
NASTY = "x`y`\n---\n# Head | cell <script>alert(1)</script> [a](http://b) *c* ${d} \u202e\x1b[31m"


def own(**flags) -> PixelLMConfig:
    run = RunConfig(**{"version": BASE, "vision_tower": TOWER, **EVERYTHING, **flags})
    return config(recipe={**recipe_of(run), "updates": 5000}, vision_tower=TOWER)


def config(**changes) -> PixelLMConfig:
    return tiny_config(SegCodebook(2, 3, tuple(range(50, 56))), **changes)


CARDS = {
    "own": own(),
    "own of an earlier version": config(recipe={"release_recipe": False, "refine_alpha": 2.0}),
    "published": config(recipe={**RECIPE_OF_PUBLISHED_WEIGHTS}, vision_tower=TOWER),
    "bare": config(),
    "on top of another": config(recipe=recipe_of(RunConfig(init_from="a/b"), before=own().recipe)),
    "on top of a published one": config(
        recipe=recipe_of(RunConfig(init_from="maverickrzw/PixelLM-7B"), before={**RECIPE_OF_PUBLISHED_WEIGHTS})
    ),
}


def hub_data(text: str) -> dict:
    return ModelCard(text).data.to_dict()


@pytest.mark.parametrize("kind", CARDS)
@pytest.mark.parametrize("has_tower", [True, False])
def test_the_hub_understands_every_card(kind, has_tower):
    text = render_card(CARDS[kind], has_tower=has_tower)
    data = hub_data(text)
    assert yaml.safe_load(text.split("---\n")[1]) == data
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "image-text-to-text")
    assert data.get("license") == (None if kind == "bare" else "other")
    for row in re.findall(r"^\|.*\|$", text, re.MULTILINE):
        assert len(re.findall(r"(?<!\\)\|", row)) in (3, 4)


def test_an_own_model_tells_bases_data_and_recipe():
    text = render_card(CARDS["own"])
    data = hub_data(text)
    assert data["base_model"] == [BASE, TOWER]
    assert data["datasets"] == ["liuhaotian/LLaVA-Instruct-150K"]
    for part in (TERMS_OF_BASES[BASE], TERMS_OF_BASES[TOWER], "| updates | 5000; planned: 10 epochs of 500 updates |"):
        assert part in text
    for row in (
        "| recipe | of the paper",
        "| peak learning rate | 0.0003 |",
        "| LoRA | rank 8, alpha 16, on q_proj, v_proj |",
    ):
        assert row in text


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_dataset_has_an_entry(family):
    """And every download its license, in the words of the registry."""
    text = render_card(CARDS["own"]).replace("\\", "")
    options = DataOptions(**EVERYTHING)
    for part in family.parts(options):
        assert f"| {family.name}: {Path(part).name} |" in text if part else f"| {family.name} |" in text
        for download in family.downloads(part) if family is not custom.FAMILY else ():
            assert f"| {download.title} | {download.source} | {download.license} |" in text
    for download in family.extra_downloads(options).values():
        assert f"| {download.title} |" in text


def test_what_is_not_known_is_said():
    assert "does not record base, data, length" in render_card(CARDS["published"])
    assert "| LLaVA base | not recorded |" in render_card(CARDS["published"])
    assert "Nothing is recorded about how these weights were trained" in render_card(CARDS["bare"])
    assert "| updates | not recorded |" in render_card(CARDS["own of an earlier version"])
    above = render_card(CARDS["on top of a published one"])
    assert hub_data(above)["base_model"][0] == "maverickrzw/PixelLM-7B"
    assert "What an earlier run was trained on is not recorded" in above


def test_a_card_names_no_place_on_this_machine(tmp_path):
    tower = tmp_path / "towers/clip-tiny"
    tower.mkdir(parents=True)
    found = own(vision_tower=str(tower), version=str(tower.parent))
    found.vision_tower = str(tower)
    for has_tower in (True, False):
        text = render_card(found, has_tower=has_tower)
        assert str(tmp_path) not in text
        assert "/home/somebody" not in text
        assert "own data: mine.jsonl" in text


def test_names_from_files_break_neither_yaml_nor_markdown():
    recipe = {
        "release_recipe": True, "base": NASTY, "init_from": NASTY, "vision_tower": NASTY, "optimizer": NASTY,
        "data": [{"name": NASTY, "share": 1.0}], "lora": {"rank": 8, "alpha": 16, "layers": [NASTY]},
        "data_terms": [{"title": NASTY, "source": f"huggingface.co/datasets/{NASTY}", "license": NASTY}],
    }  # fmt: skip
    plain = json.loads(json.dumps(recipe).replace(json.dumps(NASTY)[1:-1], "x"))
    texts = [render_card(config(recipe=r, vision_tower=v), has_tower=False) for r, v in ((recipe, NASTY), (plain, "x"))]
    assert len(texts[0].splitlines()) == len(texts[1].splitlines())
    assert hub_data(texts[0]) == hub_data(texts[1])
    assert not re.search(r"(?<!\\)<script>|(?<!\\)\[a|\x1b|\u202e", texts[0].replace(code(texts[0]), ""))
    compile(code(texts[0]), "card", "exec")


def code(text: str) -> str:
    return text.split("```python\n")[1].split("```")[0]


def test_the_code_of_a_card_runs(parrot, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (60, 40), "red").save(tmp_path / "photo.jpg")
    shutil.copytree(parrot, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    exec(compile(code((tmp_path / "README.md").read_text()), "README.md", "exec"), {})
    assert capsys.readouterr().out == "the thing is [SEG0] [SEG1] torch.Size([1, 40, 60])\n"


def test_the_code_of_a_card_without_a_tower_names_it(parrot, tmp_path):
    network = PixelLMForCausalLM.from_pretrained(parrot)
    network.config.vision_tower = str(tmp_path / "clip-tiny")
    network.save_pretrained(tmp_path / "model", save_vision_tower=False)
    text = (tmp_path / "model/README.md").read_text()
    assert "vision_tower='clip-tiny'" in text
    assert "--vision-tower clip-tiny" in text


def test_a_converted_model_has_the_card_of_a_published_one(tiny_world, tmp_path):
    write_published(tmp_path / "published", tiny_world, scales=2, tokens=3)
    network = PixelLMForCausalLM.from_pretrained(tmp_path / "published", vision_tower=str(tiny_world.clip))
    network.save_pretrained(tmp_path / "own")
    text = (tmp_path / "own/README.md").read_text()
    assert "trained with the code of the release" in text
    assert "clip-tiny" in text
    assert str(tiny_world.clip.parent) not in text


def test_a_readme_of_ones_own_stays(tmp_path):
    for mine in (b"# Mine\n", b"\xff\xfe", b""):
        (tmp_path / "README.md").write_bytes(mine)
        write_card(tmp_path, CARDS["own"])
        assert (tmp_path / "README.md").read_bytes() == mine


def test_a_card_is_written_anew_until_somebody_edits_it(tmp_path):
    file = tmp_path / "README.md"
    write_card(tmp_path, CARDS["bare"])
    write_card(tmp_path, CARDS["own"])
    assert BASE in file.read_text()
    edited = file.read_text().replace("No results are recorded here; add yours.", "gIoU 0.5")
    file.write_text(edited)
    write_card(tmp_path, CARDS["bare"])
    assert file.read_text() == edited


def test_an_edited_card_moves_to_the_folder_that_replaces_its_own(tmp_path):
    for name in ("before", "now"):
        (tmp_path / name).mkdir()
    write_card(tmp_path / "before", CARDS["bare"])
    keep_own_card(tmp_path / "before", tmp_path / "now")
    assert not list((tmp_path / "now").iterdir())
    (tmp_path / "before/README.md").write_text("mine")
    keep_own_card(tmp_path / "before", tmp_path / "now")
    write_card(tmp_path / "now", CARDS["own"])
    assert (tmp_path / "now/README.md").read_text() == "mine"


def test_cards_are_spelled_right(tmp_path, repository, capsys):
    for number, found in enumerate(CARDS.values()):
        (tmp_path / f"{number}.md").write_text(render_card(found, has_tower=bool(number % 2)))
    assert codespell("--toml", str(repository / "pyproject.toml"), str(tmp_path)) == 0, capsys.readouterr().out


def test_the_page_of_weights_names_every_base_whose_terms_are_known(repository: Path):
    page = (repository / "docs/weights.md").read_text()
    assert all(name in page for name in TERMS_OF_BASES)
