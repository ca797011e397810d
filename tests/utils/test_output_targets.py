"""Every command refuses a bad output before it works, in one line, and every byte of the user's is still there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import chat
import merge_lora_weights_and_save_hf_model as merge
import train_ds
from scripts import (
    apply_delta,
    benchmark,
    convert_to_custom,
    evaluate,
    make_custom_sample,
    make_toy_world,
    preview_data,
)
from tests.support.bad_input import Main, refused
from tests.support.full_disk import no_file_above
from tests.support.snapshot import snapshot
from tests.support.tiny_data import draw_photo
from utils.cli.args import Parsed
from utils.cli.command import run_command
from utils.cli.config import MergeConfig
from utils.data import verify


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A working directory with files of the user: a run, a base, annotations, photos."""
    home = tmp_path / "home"
    for name in ("notes.txt", "run/run_config.json", "run/ckpt_model/latest", "run/ckpt_model/step/a_model_states.pt",
                 "llava/config.json", "llava/pytorch_model.bin", "mine/thesis.tex", "labelme/1.json",
                 "instances.json"):  # fmt: skip
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"content of {name}")
    (home / "classes.json").write_text('{"1": "cat"}')
    draw_photo(home / "photos/1.jpg", (8, 8))
    (home / "link").symlink_to("mine")
    monkeypatch.chdir(home)
    return home


def keeps(home: Path, main: Main, flags: list[str], capsys: pytest.CaptureFixture[str], *says: str) -> None:
    before = snapshot(home.parent)
    refused(main, flags, capsys, *says, "Nothing was written")
    assert snapshot(home.parent) == before


@pytest.mark.parametrize(
    ("save_path", "says"),
    [
        (".", "the working directory"),
        ("", "the working directory"),
        ("..", "the working directory"),
        ("/", "the working directory"),
        ("run", "run/ckpt_model, which would be lost"),
        ("run/ckpt_model", "run/ckpt_model, which would be lost"),
        ("llava", "llava, which would be lost"),
        ("mine", "holds thesis.tex"),
        ("link", "holds thesis.tex"),
        ("photos", "holds 1.jpg"),
        ("notes.txt", "is a file; expected a folder"),
        ("notes.txt/below", "lies below"),
        ("/proc/x", "lies in /proc"),
        ("/dev/null", "lies in /dev"),
        ("x" * 300, "at most 255 bytes"),
    ],
)
def test_merge(home, capsys, save_path, says):
    flags = ["--version=llava", "--weight=run/ckpt_model", f"--save_path={save_path}"]
    keeps(home, merge.main, flags, capsys, "--save_path", says)


BAD_FILES = [("mine", "is a folder"), ("notes.txt/a.json", "lies below"), ("/dev/full", "lies in /dev"),
             ("/dev/stdout", "lies in /dev"), ("x" * 300 + ".json", "at most 255 bytes")]  # fmt: skip


@pytest.mark.parametrize(("file", "says"), BAD_FILES)
def test_chat_json(home, capsys, file, says):
    """No pictures are left behind: the model is not even looked for."""
    flags = ["--version=/nowhere", "--image=photos/1.jpg", "--prompt=What?", f"--output_json={file}"]
    keeps(home, chat.main, flags, capsys, "--output_json", says)


def test_chat_does_not_replace_its_photo(home, capsys):
    flags = ["--version=/nowhere", "--image=photos/1.jpg", "--prompt=What?", "--output_json=photos/1.jpg"]
    keeps(home, chat.main, flags, capsys, "--output_json photos/1.jpg is read by this command")


@pytest.mark.parametrize("version", ["llava", "."])
def test_chat_does_not_replace_its_model(home, capsys, version):
    (home / "hf_model").symlink_to("llava")
    flags = [f"--version={version}", "--image=photos/1.jpg", "--prompt=What?", "--output_json=llava/config.json"]
    keeps(home, chat.main, flags, capsys, "--output_json llava/config.json is read by this command")


@pytest.mark.parametrize("folder", ["notes.txt", "notes.txt/below", "/dev/full", "/proc/x", "x" * 300])
@pytest.mark.parametrize("question", [[], ["--image=photos/1.jpg", "--prompt=What?"]])
def test_chat_pictures(home, capsys, folder, question):
    flags = ["--version=/nowhere", f"--vis_save_path={folder}", *question]
    keeps(home, chat.main, flags, capsys, "--vis_save_path")


@pytest.mark.parametrize("folder", ["notes.txt", "notes.txt/below", "/proc/x", "x" * 300])
def test_evaluate(home, capsys, folder):
    keeps(home, evaluate.main, ["--version=/nowhere", f"--output_dir={folder}"], capsys, "--output_dir")


def test_evaluate_into_a_folder_that_has_a_folder_of_that_name(home, capsys):
    (home / "out/results.json").mkdir(parents=True)
    keeps(home, evaluate.main, ["--version=/nowhere", "--output_dir=out"], capsys, "out/results.json is a folder")


@pytest.mark.parametrize(
    ("main", "flag", "suffix"),
    [
        (preview_data.main, "--out", ".png"),
        (lambda flags: benchmark.main(["data", *flags]), "--output_json", ".json"),
        (verify.main, "--report", ".txt"),
        (lambda flags: convert_to_custom.main(["coco", "--annotations=none", "--images=x", *flags]), "--out", ".jsonl"),
    ],
)
def test_files(home, capsys, main, flag, suffix):
    (home / f"taken{suffix}").mkdir()
    for name, says in {"taken": "is a folder", "notes.txt/x": "lies below", "/dev/x": "/dev", "x" * 252: "255"}.items():
        keeps(home, main, [f"{flag}={name}{suffix}"], capsys, flag, says)


@pytest.mark.parametrize(
    ("command", "out"),
    [
        (["coco", "--annotations=instances.json", "--images=photos"], "instances.json"),
        (["coco", "--annotations=instances.json", "--images=photos"], "photos/1.jpg"),
        (["labelme", "--annotations=labelme"], "labelme/1.json"),
        (["masks", "--images=photos", "--masks=mine", "--classes=classes.json"], "classes.json"),
        (["masks", "--images=photos", "--masks=mine", "--classes=classes.json"], "photos/../photos/1.jpg"),
    ],
)
def test_convert_keeps_what_it_reads(home, capsys, command, out):
    (home / "linked.jsonl").symlink_to(out)
    for name in (out, "linked.jsonl"):
        keeps(home, convert_to_custom.main, [*command, f"--out={name}"], capsys, f"--out {name} is read by this")


def test_convert_keeps_what_it_reads_from_the_second_file(home, capsys):
    os.rename(home / "instances.json", home / "a_val.json")
    flags = ["coco", "--annotations=a_val.json", "--images=photos", "--out=a.json", "--val_share=0.5"]
    keeps(home, convert_to_custom.main, flags, capsys, "--out a_val.json is read by this")


@pytest.mark.parametrize(
    ("folder", "says"),
    [(".", "working directory"), ("mine", "thesis"), ("notes.txt", "a file"), ("/sys/x", "/sys")],
)
def test_custom_sample(home, capsys, folder, says):
    keeps(home, make_custom_sample.main, [f"--out={folder}"], capsys, folder, says)


def test_custom_sample_keeps_records_that_were_made_of_it(home, capsys):
    assert make_custom_sample.main(["--out=sample", "--num=4"]) == 0
    assert make_custom_sample.main(["--out=sample", "--num=4"]) == 0, "it may be replaced"
    (home / "sample/data.jsonl").write_text("mine")
    keeps(home, make_custom_sample.main, ["--out=sample"], capsys, "holds data.jsonl")


@pytest.mark.parametrize(
    ("folder", "says"), [("mine", "dataset exists and holds 1.txt"), ("notes.txt", "lies below"), ("/proc/x", "/proc")]
)
def test_toy_world(home, capsys, folder, says):
    (home / "mine/dataset").mkdir()
    (home / "mine/dataset/1.txt").write_text("mine")
    keeps(home, make_toy_world.main, [f"--out={folder}", "--skip_base_weights"], capsys, "--out", says)


@pytest.mark.parametrize(
    ("main", "flag", "out"),
    [
        (verify.main, "--report", "records.jsonl"),
        (verify.main, "--report", "data/1.json"),
        (preview_data.main, "--out", "data/1.jpg"),
        (lambda flags: benchmark.main(["data", *flags]), "--output_json", "data/1.json"),
    ],
)
def test_data_that_is_read_is_kept(home, capsys, main, flag, out):
    (home / "records.jsonl").write_text("{}")
    (home / "data").mkdir()
    for name in ("1.json", "1.jpg"):
        (home / "data" / name).write_text("mine")
    flags = ["--dataset=custom", "--custom_data=records.jsonl", "--dataset_dir=data"]
    keeps(home, main, [*flags, f"{flag}={out}"], capsys, flag, "is read by this command and would be lost")


@pytest.mark.parametrize(
    "name", ["x" * 300, "/".join(["y" * 99] * 50), "owner/model-", "~nobody-of-this-name/x", "notes.txt", "\udcff"]
)
@pytest.mark.parametrize(
    ("main", "flag", "others"),
    [
        (chat.main, "--version", ["--image=photos/1.jpg", "--prompt=What?"]),
        (chat.main, "--image", ["--version=/nowhere", "--prompt=What?"]),
        (evaluate.main, "--dataset_dir", ["--version=/nowhere"]),
        (merge.main, "--weight", ["--version=llava"]),
        (train_ds.main, "--dataset_dir", ["--log_base_dir=runs"]),
        (train_ds.main, "--custom_data", ["--dataset=custom", "--log_base_dir=runs"]),
        (train_ds.main, "--init_from", ["--log_base_dir=runs"]),
        (train_ds.main, "--resume", ["--log_base_dir=runs"]),
        (verify.main, "--dataset_dir", []),
        (apply_delta.main, "--base", ["--delta=llava", "--out=base"]),
    ],
)
def test_inputs_that_no_file_can_be(home, capsys, main, flag, others, name):
    before = snapshot(home)
    refused(main, [*others, f"{flag}={name}"], capsys)
    assert snapshot(home) == before


def test_a_disk_that_becomes_full_is_one_line(capsys, tmp_path):
    """Wherever it is met: here in a log that is written line by line."""

    def write(parsed: Parsed[MergeConfig]) -> None:
        with (tmp_path / "log").open("wb", buffering=0) as log:
            for _ in range(2):
                log.write(b"0" * 2**16)

    with no_file_above(2**16):
        refused(lambda argv: run_command(MergeConfig, write, "", argv), [], capsys, "no room to write", "make room")
