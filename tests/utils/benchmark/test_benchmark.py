"""benchmark.py counts what it says: every source and the mixture, and stages that make up the whole time."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scripts import benchmark
from tests.support.bad_input import refused
from utils.benchmark.data import STAGES, time_samples
from utils.data.records import RawSample, Turn
from utils.data.sources import Source
from utils.training.preview import build_encoder

DATA = ("--dataset=multi_reason_seg||refer_seg", "--sample_rates=1,1", "--refer_seg_data=refcoco")


def test_data_prints_and_writes_a_row_per_source_and_one_for_the_mixture(tiny_world, tmp_path, capsys):
    file = tmp_path / "out/timings.json"
    flags = [*tiny_world.arguments, *DATA, "--num=3", "--rounds=2", f"--output_json={file}"]
    assert benchmark.main(["data", *flags]) == 0
    title, head, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("one process, one thread, 448 px, --dataset multi_reason_seg||refer_seg")
    assert head.split() == ["samples/s", "cpu", "ms", *STAGES]
    assert [row.split()[0] for row in rows] == ["multi_reason_seg", "refcoco", "mixture"]
    timings = json.loads(file.read_text(encoding="utf-8"))["timings"]
    assert [timing["name"] for timing in timings] == ["multi_reason_seg", "refcoco", "mixture"]
    for timing in timings:
        assert timing["rate"] > 0
        assert timing["cpu_ms"] > 0
        assert set(timing["shares"]) == set(STAGES)
        assert sum(timing["shares"].values()) == pytest.approx(1)
        assert all(share > 0 for share in timing["shares"].values())


def test_a_dialogue_without_photo_decodes_and_resizes_nothing():
    class Words(Source):
        name = "words"

        def __len__(self) -> int:
            return 1

        def get(self, index: int, rng: np.random.Generator) -> RawSample:
            return RawSample("words/0", None, ((Turn("Hello?", "Hello.", ()),),), np.zeros((0, 0, 0), dtype=bool))

    encoder = build_encoder(benchmark.DataConfig())
    timing = time_samples("words", [Words()], [1.0], encoder, num=2, rounds=1, seed=0)
    assert timing.shares["decode"] == timing.shares["resize"] == 0
    assert timing.shares["masks"] + timing.shares["text"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the following arguments are required: data"),
        (["model"], "argument data: invalid choice: 'model' (choose from"),
        (["data", "--num=0"], "--num is 0"),
        (["data", "--rounds=0"], "--rounds is 0"),
        (["data", "--dataset_dir=/nowhere"], "--dataset_dir /nowhere is not a folder"),
    ],
)
def test_wrong_command_lines(capsys, arguments, says):
    refused(benchmark.main, arguments, capsys, says)


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as exited:
        benchmark.main(["--help"])
    assert exited.value.code == 0
    assert "benchmark.py data" in capsys.readouterr().out
