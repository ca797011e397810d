"""The table at the end of the quickstart, from the files of a run; damaged ones are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import quickstart_summary
from tests.support.bad_input import refused

SCORES = {"giou": 0.5, "ciou": None, "num_questions": 2}


@pytest.fixture
def run(tmp_path) -> Path:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "stages.tsv").write_text("train\t60\nchat\t5\ntrain\t60\n")
    (tmp_path / "log.jsonl").write_text('{"total": 2.0}\n{"skipped": 1}\n{"total": 1.0}\n')
    results = {
        "results": [
            {
                "name": "MUSE",
                "scores": {"all": SCORES, "no-target": SCORES, "multi-target": {**SCORES, "num_questions": 0}},
            }
        ]
    }
    (tmp_path / "evaluation/results.json").write_text(json.dumps(results))
    return tmp_path


def test_the_table(run, capsys):
    assert quickstart_summary.main(["table", f"--run={run}"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == [
        "time of train, all runs together 02:00", "time of chat, all runs together 00:05",
        "loss, first and last 20 updates 1.500 -> 1.500", "MUSE, all: gIoU / cIoU 0.500 / -",
    ]  # fmt: skip
    assert lines[4:] == [
        f"answers, the worst first, to open in a browser: {run}/evaluation/report.html",
        "ask about photos on a web page: bash scripts/quickstart.sh --demo",
    ]


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("stages.tsv", None, "does not exist"),
        ("stages.tsv", "train 60", "line 1: 'train 60'; expected a stage, a tab and seconds"),
        ("log.jsonl", '{"total": 1}\n{"total', "line 2 is not valid JSON"),
        ("log.jsonl", '{"total": "low"}', "line 1: total is 'low'; expected a number"),
        ("log.jsonl", "", "tells of no update"),
        ("evaluation/results.json", "[]", "it is []; expected a JSON object"),
        ("evaluation/results.json", '{"results": [{"name": "x", "scores": [1]}]}', "results[0].scores is [1]"),
    ],
)
def test_damaged_files_are_named(run, capsys, file, content, says):
    (run / file).unlink()
    if content is not None:
        (run / file).write_text(content)
    refused(quickstart_summary.main, ["table", f"--run={run}"], capsys, run / file, says, "quickstart.sh again")
