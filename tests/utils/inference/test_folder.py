"""scripts/predict.py: what it writes, how it goes on after it was stopped, and what it refuses.

The model says one sentence with one target, whatever it is asked; masks differ from photo to photo.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from model.predictor import PixelLMPredictor
from scripts import predict
from tests.support.bad_input import refused
from tests.support.snapshot import snapshot
from tests.support.stopped import Killed, stop_after
from tests.support.tiny_data import draw_photo
from utils.inference import folder
from utils.masks.rasterize import decode_segmentation
from utils.masks.rle import decode_rles

NAMES = ("1.jpg", "2.jpg", "deep/1.jpg", "deep/3.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Four photos of different sizes, and one that is none."""
    place = tmp_path_factory.mktemp("photos")
    (place / "deep").mkdir()
    for number, name in enumerate(NAMES):
        draw_photo(place / name, (30 + 3 * number, 44))
    (place / "broken.jpg").write_text("no picture")
    return place


@pytest.fixture(scope="module")
def predictor(parrot) -> PixelLMPredictor:
    return PixelLMPredictor.from_pretrained(parrot)


@pytest.fixture
def ask(parrot, photos, predictor, tmp_path, monkeypatch):
    """Runs the command with two questions and batches of three; returns the output folder."""
    monkeypatch.setattr(folder, "load_predictor", lambda *_, **__: predictor)  # read once for all tests

    def run(*flags: str, name: str = "out") -> Path:
        defaults = [f"--version={parrot}", f"--input={photos}", "--precision=fp32", "--batch_size=3"]
        asks = any(flag in ("--prompt", "--targets") for flag in flags)
        questions = [] if asks else ["--prompt", "What is it?", "Where?"]
        out = tmp_path / name
        assert predict.main([*defaults, *questions, f"--output={out}", *flags]) == 0
        return out

    return run


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_question_has_a_line_and_a_bad_photo_is_one_of_them(ask, capsys):
    out = ask()
    found = lines(out)
    assert [(one["image"], one["prompt"]) for one in found] == [
        (name, prompt)
        for name in ("1.jpg", "2.jpg", "broken.jpg", "deep/1.jpg", "deep/3.png")
        for prompt in ("What is it?", "Where?")
    ]
    for one in found:
        if one["image"] == "broken.jpg":
            assert "cannot be decoded" in one["error"]
            assert "targets" not in one
            continue
        assert one["text"] == "the thing is [SEG0] [SEG1]"
        (target,) = one["targets"]
        assert target["phrase"] == "thing"
        (mask,) = decode_rles([target["segmentation"]], hw=tuple(one["size"]))
        assert target["area"] == mask.sum()
        assert cv2.imread(str(out / one["overlay"])).ndim == 3
        assert max(cv2.imread(str(out / one["thumbnail"])).shape) <= 480
    assert len({one["overlay"] for one in found if "overlay" in one}) == 8
    assert "5 images, 10 questions, 8 targets, 2 failed; 10 questions in " in capsys.readouterr().out


def test_pycocotools_reads_the_annotations(ask):
    out = ask()
    coco = COCO(out / "annotations.json")
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == list(NAMES)
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["thing"]
    annotations = coco.loadAnns(coco.getAnnIds())
    assert len(annotations) == 8
    for annotation in annotations:
        assert coco.annToMask(annotation).sum() == annotation["area"]


def test_png_masks_are_black_and_white(ask):
    out = ask("--format=png")
    found = [one for one in lines(out) if one.get("targets")]
    assert found
    for one in found:
        (name,) = one["masks"]
        (mask,) = decode_rles([one["targets"][0]["segmentation"]], hw=tuple(one["size"]))
        assert (cv2.imread(str(out / name), cv2.IMREAD_GRAYSCALE) == 255 * mask).all()


def test_labelme_finds_the_photo_and_draws_the_same_masks(ask, photos):
    out = ask("--format=labelme")
    found = lines(out)
    for name in NAMES:
        file = out / "labelme" / Path(name).with_suffix(".json")
        drawn = json.loads(file.read_text(encoding="utf-8"))
        assert (file.parent / drawn["imagePath"]).resolve() == (photos / name).resolve()
        assert drawn["imageData"] is None
        targets = [target for one in found if one["image"] == name for target in one["targets"]]
        hw = (drawn["imageHeight"], drawn["imageWidth"])
        for number, target in enumerate(targets):
            shapes = [shape for shape in drawn["shapes"] if shape["group_id"] == number]
            assert all(shape["label"] == "thing" and shape["shape_type"] == "polygon" for shape in shapes)
            outlines = [np.ravel(shape["points"]).tolist() for shape in shapes]
            (mask,) = decode_rles([target["segmentation"]], hw=hw)
            assert (decode_segmentation(outlines, hw, where="labelme") == mask).all()


def test_names_of_things_are_answered_without_generation(ask):
    for one in lines(ask("--targets", "the red cup", "a cat")):
        if "error" not in one:
            assert one["prompt"] == ["the red cup", "a cat"]
            assert [target["phrase"] for target in one["targets"]] == ["the red cup", "a cat"]


def test_json_lines_have_their_own_prompts_and_ids(ask, photos, tmp_path):
    file = tmp_path / "questions.jsonl"
    shutil.copytree(photos, tmp_path / "here")
    asked = [
        {"image": "here/2.jpg", "prompt": "Who?", "id": 7},
        {"image": "here/1.jpg"},
        {"image": "here/2.jpg", "prompt": ["a hat"], "id": "x"},
        {"image": "here/none.jpg"},
    ]
    file.write_text("\n\n".join(map(json.dumps, asked)), encoding="utf-8")
    found = lines(ask(f"--input={file}"))
    assert [(one["image"][5:], one["prompt"], one.get("id")) for one in found] == [
        ("2.jpg", "Who?", 7), ("2.jpg", ["a hat"], "x"), ("1.jpg", "What is it?", None), ("1.jpg", "Where?", None),
        ("none.jpg", "What is it?", None), ("none.jpg", "Where?", None),
    ]  # fmt: skip
    assert ["error" in one for one in found] == [False] * 4 + [True] * 2


def test_a_question_that_is_too_long_fails_alone(ask):
    found = lines(ask("--prompt", "What is it?", "why " * 5000))
    assert [("error" in one, one["prompt"][:4]) for one in found[:4]] == [(False, "What"), (True, "why ")] * 2


@pytest.mark.parametrize(("batches", "left", "format"), [(0, 8, "coco"), (1, 5, "png"), (3, 1, "coco")])
def test_a_stopped_run_ends_as_one_that_was_never_stopped(ask, monkeypatch, batches, left, format):
    whole = snapshot_of(ask(f"--format={format}", name="whole"))
    with monkeypatch.context() as patch:
        stop_after(batches, patch, folder)
        with pytest.raises(Killed):
            ask(f"--format={format}")
    asked = []
    answer = PixelLMPredictor.ask_batch
    monkeypatch.setattr(
        PixelLMPredictor, "ask_batch",
        lambda self, requests, **named: asked.extend(requests) or answer(self, requests, **named),
    )  # fmt: skip
    out = ask(f"--format={format}")
    assert len(asked) == left, "no question twice"
    assert snapshot_of(out) == whole
    asked.clear()
    assert snapshot_of(ask(f"--format={format}")) == whole
    assert not asked


def test_ctrl_c_is_quiet_and_the_run_goes_on(ask, parrot, photos, monkeypatch, capsys, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    flags = [f"--version={parrot}", f"--input={photos}", "--precision=fp32", f"--output={tmp_path / 'out'}", "--prompt"]
    with monkeypatch.context() as patch:
        patch.setattr(folder, "append", interrupt)
        assert predict.main([*flags, "What is it?", "Where?"]) == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err
    assert len(lines(ask())) == 10


def test_too_little_memory_is_told_with_its_remedy(ask, parrot, photos, monkeypatch, capsys, tmp_path):
    def fill(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PixelLMPredictor, "ask_batch", fill)
    flags = [f"--version={parrot}", f"--input={photos}", "--precision=fp32", f"--output={tmp_path / 'out'}"]
    refused(predict.main, [*flags, "--prompt=What is it?"], capsys, "does not suffice for --batch_size 8")


def snapshot_of(out: Path) -> dict[str, bytes]:
    """Every file but the settings, which name the folder of the photos."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "settings.json"]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def test_lines_that_are_torn_are_written_again(ask):
    """Wherever the file ends, in a line or in a batch."""
    out = ask()
    whole, file = snapshot_of(out), out / "predictions.jsonl"
    size = file.stat().st_size
    for share in (0, 0.1, 0.5, 0.999):
        os.truncate(file, int(share * size))
        assert snapshot_of(ask()) == whole


def test_a_photo_that_was_mended_is_asked_again(ask, photos, tmp_path):
    here = Path(shutil.copytree(photos, tmp_path / "here"))
    out = ask(f"--input={here}")
    before = lines(out)
    draw_photo(here / "broken.jpg", (20, 20))
    after = lines(ask(f"--input={here}"))
    assert [one for one in after if one["image"] != "broken.jpg"] == [one for one in before if "error" not in one]
    assert not [one for one in after if "error" in one]


def test_an_output_is_not_continued_with_other_settings(ask, parrot, photos, capsys):
    out = ask()
    before = snapshot(out)
    defaults = [f"--version={parrot}", f"--input={photos}", "--precision=fp32", f"--output={out}", "--prompt"]
    for flags, says in (
        (["What else?"], "other images or questions"),
        (["What is it?", "Where?", "--format=png"], "--format 'coco', now it is 'png'"),
        (["What is it?", "Where?", "--mask_threshold=0.7"], "--mask_threshold 0.5, now it is 0.7"),
        (["What is it?", "Where?", "--temperature=0.5"], "--temperature 0.0, now it is 0.5"),
        (["What is it?", "Where?", "--precision=bf16"], "--precision 'fp32', now it is 'bf16'"),
    ):
        refused(predict.main, [*defaults, *flags], capsys, says, "--overwrite")
    assert snapshot(out) == before


def test_an_output_is_not_continued_with_a_model_that_was_trained_on(ask, parrot, photos, tmp_path, capsys):
    model = Path(shutil.copytree(parrot, tmp_path / "model"))
    out = ask(f"--version={model}")
    os.utime(model / "model.safetensors", (1, 1))
    flags = [f"--version={model}", f"--input={photos}", "--precision=fp32", f"--output={out}", "--prompt"]
    refused(predict.main, [*flags, "What is it?", "Where?"], capsys, "other files of the model")


def test_overwrite_sets_the_earlier_output_aside(ask):
    first = snapshot_of(ask())
    out = ask("--format=png", "--overwrite")
    assert snapshot_of(out.with_name("out.old-1")) == first
    assert "annotations.json" not in snapshot_of(out)
    ask("--overwrite")
    assert "masks/1_mask_0.png" in snapshot_of(out.with_name("out.old-2"))


@pytest.fixture
def home(tmp_path, photos, monkeypatch) -> Path:
    """A working directory with photos and files of a user."""
    home = Path(shutil.copytree(photos, tmp_path / "home/photos")).parent
    (home / "empty").mkdir()
    (home / "mine").mkdir()
    (home / "mine/thesis.tex").write_text("mine")
    for name, content in (("bad.jsonl", '{"image": "a.jpg"}\n{"image'), ("none.jsonl", "\n"), ("kind.jsonl", "[1]"),
                          ("lost.jsonl", '{"image": "a.jpg"}')):  # fmt: skip
        (home / name).write_text(content)
    monkeypatch.chdir(home)
    return home


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--input=nowhere"], "--input nowhere does not exist"),
        (["--input=empty"], "--input empty has no image"),
        (["--input=*.gif"], "--input *.gif matches no file"),
        (["--input=bad.jsonl"], "bad.jsonl:2 is not valid JSON"),
        (["--input=none.jsonl"], "none.jsonl is empty"),
        (["--input=kind.jsonl"], "kind.jsonl:1: it is [1]; expected a JSON object"),
        (["--input=lost.jsonl"], "none of them exists, such as a.jpg"),
        (["--output=photos"], "which this command reads"),
        (["--output=photos/out"], "whose images it would join"),
        (["--output=."], "which this command reads"),
        (["--output=mine"], "holds thesis.tex, which scripts/predict.py did not write"),
        (["--output=mine", "--overwrite"], "holds thesis.tex, which scripts/predict.py did not write"),
        (["--output=mine/thesis.tex/out"], "which is not a folder"),
        (["--output=/proc/out"], "holds devices"),
        (["--targets", "a cat"], "--prompt and --targets exclude each other"),
        (["--prompt", " "], "has an empty text"),
        (["--input="], "--input is missing"),
    ],
)
def test_bad_flags_are_refused_before_the_model_is_read(home, capsys, flags, says):
    before = snapshot(home)
    prompt = [] if "--prompt" in flags else ["--prompt", "What is it?"]
    refused(predict.main, ["--version=/no/model", "--input=photos", "--precision=fp32", *prompt, *flags], capsys, says)
    assert snapshot(home) == before


def test_no_question_is_refused(home, capsys):
    refused(predict.main, ["--version=/no/model", "--input=photos"], capsys, "--prompt is missing")
    refused(predict.main, ["--version=/no/model", "--input=lost.jsonl"], capsys, "lost.jsonl:1 has no prompt")


def test_one_process_at_a_time_writes(ask, parrot, photos, capsys):
    out = ask()
    handle = os.open(out, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    flags = [f"--version={parrot}", f"--input={photos}", "--prompt=What is it?", f"--output={out}"]
    refused(predict.main, flags, capsys, "is being written by another process")
    os.close(handle)


def test_a_damaged_line_is_named(ask, parrot, photos, capsys):
    out = ask()
    file = out / "predictions.jsonl"
    file.write_text('{"number": 0}\n' + file.read_text(encoding="utf-8"), encoding="utf-8")
    flags = [f"--version={parrot}", f"--input={photos}", "--precision=fp32", f"--output={out}"]
    refused(
        predict.main, [*flags, "--prompt", "What is it?", "Where?"], capsys, "predictions.jsonl:1: image is missing"
    )
