"""benchmark.py counts what it says: sources, mixture and stages of the data; memory and masks of quantized models."""

from __future__ import annotations

import json

import numpy as np
import pytest

from model.rle import encode_rle
from scripts import benchmark
from tests.support.bad_input import refused
from utils.benchmark.data import STAGES, time_samples
from utils.benchmark.quantization import agreement
from utils.data.records import RawSample, Turn
from utils.data.sources import Source
from utils.evaluation.records import QuestionRecord
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
        # What is left over is the text's, and may vanish beside other load on the machine.
        assert all(share > 0 for stage, share in timing["shares"].items() if stage != "text")


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
        ([], "the following arguments are required: data|loading|quantization"),
        (["model"], "invalid choice: 'model' (choose from"),
        (["quantization"], "--version is missing"),
        (["quantization", "--version=x", "--precision=fp32"], "--precision"),
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
    out = capsys.readouterr().out
    assert "benchmark.py data" in out
    assert "benchmark.py quantization" in out
    assert "benchmark.py checkpoints" in out


def test_quantization_measures_three_models_and_computes_the_published_sizes(parrot, tiny_world, tmp_path, capsys):
    file = tmp_path / "out/table.md"
    flags = [f"--version={parrot}", f"--dataset_dir={tiny_world.dataset}", "--limit=1", f"--output_md={file}"]
    assert benchmark.main(["quantization", *flags, "--max_new_tokens=20"]) == 0
    text = file.read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() in text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert [row[0] for row in rows] == [
        "Bits",
        "---",
        "16",
        "8",
        "4",
        "Model",
        "---",
        *3 * ["PixelLM-7B"],
        *3 * ["PixelLM-13B"],
    ]
    sixteen, eight, four = (dict(zip(rows[0], row, strict=True)) for row in rows[2:5])
    assert (sixteen["IoU with 16 bits"], sixteen["Same answer"]) == ("100.0%", "100.0%")
    for row in (eight, four):
        assert float(row["IoU with 16 bits"].rstrip("%")) > 90
        assert row["Same answer"] == "100.0%", "the parrot says what it says"
        assert [row[name] for name in ("tables, MiB", "tower, MiB", "masks, MiB")] == [
            sixteen[name] for name in ("tables, MiB", "tower, MiB", "masks, MiB")
        ]
    # 6.74 and 13.02 billion weights of LLaMA, at two bytes each.
    computed = {(row[0], row[1]): dict(zip(rows[5], row, strict=True)) for row in rows[7:]}
    for name, billions in (("PixelLM-7B", 6.74), ("PixelLM-13B", 13.02)):
        row = computed[name, "16"]
        assert float(row["blocks, GiB"]) + float(row["tables, GiB"]) == pytest.approx(
            2 * billions * 1e9 / 2**30, rel=0.002
        )


def test_a_mask_without_partner_counts_as_nothing():
    def record(*masks: np.ndarray, answer: str = "yes") -> QuestionRecord:
        codes = tuple(map(encode_rle, masks))
        return QuestionRecord(
            "Tiny|val", "generate", 0, 0, "photo", "photo.jpg", False, (4, 6), "What?", "", True, (), (), None,
            answer, answer, None, ("",) * len(codes), (1.0,) * len(codes), codes,
        )  # fmt: skip

    left, right = np.zeros((2, 4, 6), dtype=bool)
    left[:, :3], right[:, 3:] = True, True
    assert agreement([record(left, right)], [record(right, left)]) == (1.0, 1.0)
    assert agreement([record(left, right), record()], [record(right), record(answer="no")]) == (0.5, 0.5)
    assert agreement([record(left)], [record(right)]) == (0.0, 1.0)
