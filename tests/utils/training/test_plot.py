"""scripts/plot_run.py: what it reads of a log, what it refuses, and that it draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import plot_run
from tests.support.bad_input import refused
from utils.training.plot import RunLog, smooth

# Where matplotlib has never run, it asks the system for its fonts.
draws = pytest.mark.slow


def write_log(folder: Path, *, num_updates: int = 60, old: bool = False) -> Path:
    """The log of a run that validates twice; ``old`` versions wrote no speed."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(1, num_updates + 1):
        loss = {"total": 9.0 / number, "ce": 5.0 / number, "bce": 2.0 / number, "dice": 1.0, "refine": 0.0}
        speed = {} if old else {"samples_per_second": 3.0 + number % 2}
        lines.append({"time": 1.0, "update": number, "lr": 1e-3 / number, **loss, **speed})
        if number % 30 == 0:
            lines += [
                {"update": number, "val": "custom|/x/mine.jsonl", "protocol": protocol, "giou": 0.5, "ciou": None}
                for protocol in ("teacher-forced", "generated")
            ]
            lines.append({"update": number, "skipped": [], "dropped_turns": 1})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


@draws
def test_two_runs_are_drawn_into_one_picture(tmp_path, capsys):
    runs = [write_log(tmp_path / "a"), write_log(tmp_path / "b", old=True, num_updates=3)]
    output = tmp_path / "new/curves.png"
    assert plot_run.main([*map(str, runs), f"--output={output}"]) == 0
    assert str(output) in capsys.readouterr().out
    picture = np.asarray(Image.open(output).convert("RGB"))
    assert picture.shape[1] > 1500
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


@draws
def test_the_picture_lies_in_the_run_by_default(tmp_path):
    assert plot_run.main([str(write_log(tmp_path / "a", num_updates=1))]) == 0
    assert (tmp_path / "a/curves.png").is_file()


def test_a_run_that_goes_on_may_have_an_unfinished_line(tmp_path):
    log = write_log(tmp_path / "a", num_updates=5) / "log.jsonl"
    log.write_text(log.read_text(encoding="utf-8") + '{"update": 6, "tot', encoding="utf-8")
    assert list(RunLog.read(str(tmp_path / "a")).updates) == [1, 2, 3, 4, 5]


def test_an_update_that_was_made_again_counts_once(tmp_path):
    log = write_log(tmp_path / "a", num_updates=3) / "log.jsonl"
    log.write_text(log.read_text(encoding="utf-8") + '{"update": 2, "total": 7.5}\n', encoding="utf-8")
    updates, values = RunLog.read(str(tmp_path / "a")).curve("total")
    assert (updates.tolist(), values.tolist()) == ([1, 2, 3], [9.0, 7.5, 3.0])


def test_a_loss_that_was_not_finite_leaves_a_gap(tmp_path):
    log = write_log(tmp_path / "a", num_updates=2) / "log.jsonl"
    log.write_text(log.read_text(encoding="utf-8") + '{"update": 3, "total": null}\n', encoding="utf-8")
    assert RunLog.read(str(tmp_path / "a")).curve("total")[0].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"update": 1, "total": 1}\n{"upd\n{"update": 3, "total": 1}\n', "log.jsonl, line 2"),
        ('{"update": 1, "total": "low"}\n', "line 1: total is 'low'; expected a number"),
        ("", "tells of no update and of no validation yet"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, capsys, content, says):
    (tmp_path / "log.jsonl").write_text(content)
    refused(plot_run.main, [str(tmp_path)], capsys, says)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_runs_have_to_be_named_and_there(tmp_path, capsys):
    refused(plot_run.main, [], capsys, "no run is named", "such as runs/pixellm")
    refused(plot_run.main, [str(tmp_path / "x")], capsys, "is no folder")
    write_log(tmp_path / "a")
    refused(plot_run.main, [str(tmp_path / "a"), "--output=curves.xyz"], capsys, "--output curves.xyz", ".png")


def test_smoothing_keeps_length_level_and_ends():
    assert smooth(np.full(200, 3.0)) == pytest.approx(np.full(200, 3.0))
    noisy = np.tile([0.0, 2.0], 100)
    assert smooth(noisy).std() < 0.2
    assert smooth(np.array([1.0, 5.0])).tolist() == [1.0, 5.0], "a short run is drawn as it is"
    assert smooth(np.array([])).tolist() == []
