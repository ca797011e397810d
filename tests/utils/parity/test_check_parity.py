"""``scripts/check_parity.py``: a line per stage, FAIL where numbers differ, whatever folder of recordings it reads."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from scripts.check_parity import main
from tests.support.bad_input import edit_json, refused
from tests.support.record_case import write_case
from tests.support.seeded_case import write_recording
from utils.parity.stage_names import STAGE_NAMES
from utils.parity.stages import STAGES

pytestmark = pytest.mark.slow  # nearly every test runs the stages of a recording
LINE = re.compile(
    r"(?P<stage>\w+) +(?P<case>\S+) +difference (?P<difference>\S+)  limit (?P<limit>\S+)  \(.*\)  (?P<verdict>ok|FAIL)"
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """The seeded case of this repository."""
    return write_recording(tmp_path_factory.mktemp("recording") / "golden")


@pytest.fixture
def copied(recorded, tmp_path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "golden"))


def check(golden: Path, capsys, *flags: str) -> tuple[int, dict[tuple[str, str], re.Match]]:
    """Exit code, and the lines by case and stage."""
    code = main([f"--golden={golden}", *flags])
    lines = [LINE.fullmatch(line) for line in capsys.readouterr().out.splitlines()]
    assert all(lines)
    return code, {(line["case"], line["stage"]): line for line in lines}


def test_the_flags_name_every_stage():
    assert tuple(STAGES) == STAGE_NAMES


def test_one_line_per_stage(recorded, capsys):
    code, lines = check(recorded, capsys, "--case=seeded", "--stage=images")
    assert code == 0
    (line,) = lines.values()
    assert float(line["difference"]) <= float(line["limit"]) == 1e-5
    assert line["verdict"] == "ok"


@pytest.mark.parametrize(
    ("scales", "tokens", "size", "conv_type"),
    [(1, 1, 56, "llava_v1"), (3, 2, 84, "llava_llama_2"), (2, 5, 112, "llava_v1")],
)
def test_nothing_about_a_case_is_built_in(tmp_path, tiny_world, capsys, scales, tokens, size, conv_type):
    """Other photos, prompts, template, counts, size and weights; every stage that was recorded is compared."""
    root = write_case(tmp_path / "golden", tiny_world, scales=scales, tokens=tokens, size=size, conv_type=conv_type)
    code, lines = check(root, capsys)
    stages = ("tokenizer", "images", "vision", "train_step")
    assert {stage: line["verdict"] for (_, stage), line in lines.items()} == dict.fromkeys(stages, "ok")
    assert code == 0


def change_npz(path: Path, name: str, change) -> None:
    arrays = dict(np.load(path))
    arrays[name] = change(arrays[name])
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("stage", "name", "change"),
    [
        ("tokenizer", "input_ids", lambda ids: ids + (ids == 1205)),
        ("tokenizer", "labels", lambda labels: np.roll(labels, 1, axis=1)),
        ("tokenizer", "attention_masks", lambda mask: mask | True),
        ("images", "images_clip_sub", lambda pixels: pixels + np.float32(2e-5)),
        ("images", "images_clip_sub", lambda pixels: pixels[:, :, 1:]),
        ("images", "resize", lambda hw: hw + 1),
    ],
)
def test_other_numbers_fail(copied, capsys, stage, name, change):
    change_npz(copied / "seeded/expected.npz", name, change)
    code, lines = check(copied, capsys, f"--stage={stage}")
    assert (code, [line["verdict"] for line in lines.values()]) == (1, ["FAIL"])


def test_numbers_that_are_no_numbers_fail(copied, capsys):
    change_npz(copied / "seeded/expected.npz", "images_clip_sub", lambda pixels: pixels * np.float32("nan"))
    assert check(copied, capsys, "--stage=images")[0] == 1


def test_a_stage_that_cannot_run_fails(copied, capsys):
    """Here: the base's tokenizer does not belong to the weights."""
    shapes = json.loads((copied / "seeded/state_dict_shapes.json").read_text(encoding="utf-8"))
    edit_json(
        copied / "seeded/state_dict_shapes.json",
        **{name: [1209, 64] for name, shape in shapes.items() if shape == [1208, 64]},
    )
    assert main([f"--golden={copied}", "--stage=images"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("FAIL")
    assert "1209 vocabulary rows and 2 scales" in line


@pytest.mark.parametrize("lost", ["seeded/masks.npz", "clip/config.json", "images/coffee.png", "llava/tokenizer.model"])
def test_a_file_that_is_lost_fails(copied, capsys, lost):
    (copied / lost).unlink()
    assert main([f"--golden={copied}", "--stage=images"]) == 1
    assert capsys.readouterr().out.rstrip().endswith("FAIL")


def test_validation_sets_that_are_not_there_fail(copied, capsys):
    (copied / "val_datasets.json").write_text(json.dumps({"refcoco|unc|val": []}))
    code, lines = check(copied, capsys, "--stage=val_datasets")
    assert (code, [line["verdict"] for line in lines.values()]) == (1, ["FAIL"])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--golden is missing"),
        (["--golden=/nowhere"], "--golden /nowhere: no such folder"),
        (["--golden={}", "--case=other"], "--case other is not in"),
        (["--golden={}", "--stage=all"], "--stage all is unknown; expected one of tokenizer, images"),
        (["--golden={}", "--stage=chat"], "holds no recording for --stage chat"),
        (["--golden={}/seeded"], "no sub-folder holds a batch.json"),
    ],
)
def test_what_cannot_be_checked_is_said(recorded, capsys, flags, says):
    refused(main, [flag.format(recorded) for flag in flags], capsys, says)


def test_names_of_a_recording_may_be_any(shared, tmp_path, capsys):
    """The case with weights, under other names of case, tower, base and photos."""
    source = shared / "golden"
    root = tmp_path / "golden"
    for old, new in (("llava-tiny", "b"), ("clip-vit-tiny-patch14-336", "t"), ("pixellm-tiny", "a case")):
        shutil.copytree(source / old, root / new, copy_function=shutil.copyfile)
    (root / "images").mkdir()
    dialogues = json.loads((root / "a case/batch.json").read_text(encoding="utf-8"))
    for name in dialogues["images"]:
        shutil.copyfile(source / "images" / name, root / "images" / f"x {name}")
    edit_json(root / "a case/batch.json", images=[f"x {name}" for name in dialogues["images"]])
    edit_json(root / "a case/hf_model/config.json", mm_vision_tower="some/t")
    assert main([f"--golden={root}", "--stage=images"]) == 0
    assert main([f"--golden={root}", "--stage=merge"]) == 0
    sets = json.loads((source / "val_datasets.json").read_text(encoding="utf-8"))
    (root / "val_datasets.json").write_text(json.dumps({"refcocog|umd|val": sets["refcocog|umd|val"]}))
    assert main([f"--golden={root}", "--stage=val_datasets"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:3] for line in out.splitlines()] == [
        [stage, "a", "case"] for stage in ("images", "merge", "val_datasets")
    ]
