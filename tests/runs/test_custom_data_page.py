"""docs/custom_data.md: every command of the page runs as it stands there, on the sample that it draws itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import evaluate
from tests.support.launch import run
from utils.data.sources.custom import CustomSource, parse_record

PAGE = Path(__file__).resolve().parents[2] / "docs/custom_data.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """One per line of the page; "\\" ends a line that goes on."""
    return [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the page calls custom_sample; the commands build upon each other."""
    return tmp_path_factory.mktemp("page") / "custom_sample"


def test_the_page_has_its_commands():
    scripts = [re.search(r"(\w+)(\.py| --)", line).group(1) for line in commands()]
    assert scripts == [
        "make_custom_sample", "convert_to_custom", "verify", "preview_data", "train_ds", *["convert_to_custom"] * 4,
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(len(commands())))
def test_the_commands_run(number, folder, tiny_world, repository):
    """In the order of the page. Only places are replaced, and training is cut short."""
    line = re.sub(r"(?<!\w)custom_sample\b", str(folder), commands()[number])  # but not make_custom_sample.py
    line = line.replace("toy_world/llava-toy", str(tiny_world.llava)).replace(
        "toy_world/clip-toy", str(tiny_world.clip)
    )
    if "train_ds.py" in line:
        line += f" --log_base_dir {folder.parent / 'runs'} --steps_per_epoch 2 --workers 0"
    done = run(["bash", "-c", line], cwd=repository)
    assert done.code == 0, done.text
    for written in re.findall(r"--out (\S+)", line):
        assert Path(written).exists()
    if "train_ds.py" in line:
        log = (folder.parent / "runs/my-data/log.jsonl").read_text(encoding="utf-8").splitlines()
        assert any(json.loads(entry).get("val") == f"custom|{folder}/train_val.jsonl" for entry in log)


def test_what_the_converters_wrote_can_be_read(folder):
    files = sorted(folder.glob("from_*.jsonl"))
    assert len(files) == 4
    for file in files:
        source = CustomSource(file, asked_by="test")
        assert all(source.get(index, np.random.default_rng(0)).masks.any() for index in range(len(source)))


def test_evaluation_takes_the_file_that_the_converter_split_off(folder, parrot, tmp_path):
    """A photo that lies on its side is scored as viewers show it."""
    file = folder / "train_val.jsonl"
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    corner = {"polygon": [0, 30, 20, 30, 20, 40, 0, 40]}
    turn = {"question": "Where?", "answer": "{seg}", "targets": [corner]}
    turned = tmp_path / "turned.jsonl"
    turned.write_text(json.dumps({"image": "turned.jpg", "turns": [turn]}), encoding="utf-8")
    flags = [f"--version={parrot}", f"--val_dataset=custom|{file}||custom|{turned}", f"--output_dir={tmp_path / 'out'}"]
    assert evaluate.main([*flags, "--precision=fp32", "--max_new_tokens=8"]) == 0
    results = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))["results"]
    assert [result["name"] for result in results] == [f"custom|{file}", f"custom|{turned}"]
    assert [question["num_true"] for question in results[0]["questions"]] == [
        len(record["turns"][0]["targets"]) for record in records
    ]
    assert results[1]["questions"][0]["num_true"] == 1


def test_the_example_is_a_record():
    (example,) = blocks("json")
    record = parse_record(example.encode(), Path())
    assert [turn.targets for turn in record.turns] == [(0, 1), ()]
