"""scripts/evaluate.py: what it writes, how it goes on after it was stopped, and what it refuses.

The model says one sentence with one target, whatever it is asked; masks differ from photo to photo.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model.predictor import PixelLMPredictor
from scripts import evaluate
from tests.support.bad_input import edit_json, refused
from tests.support.chat_server import Sent, chat_server
from tests.support.snapshot import snapshot
from tests.support.stopped import Killed, stop_after
from utils.evaluation import run
from utils.evaluation.folder import COMPARISON, SCORED, read_rows, read_settings

SETS = ("MultiReasonSeg|val", "refcoco|unc|val")
ANSWERS = "predictions.jsonl"


@pytest.fixture(scope="module")
def predictor(parrot) -> PixelLMPredictor:
    return PixelLMPredictor.from_pretrained(parrot)


@pytest.fixture
def flags(parrot, tiny_world, predictor, tmp_path, monkeypatch) -> list[str]:
    """Two sets in batches of two questions; the model is read once for all tests."""
    monkeypatch.setattr(run, "load_predictor", lambda *_, **__: predictor)
    return [
        f"--version={parrot}", f"--dataset_dir={tiny_world.dataset}", "--precision=fp32", "--max_new_tokens=12",
        "--batch_size=2", f"--output_dir={tmp_path / 'out'}", "--benchmark", *SETS,
    ]  # fmt: skip


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, str]]:
    """Question of every request to the model, and whether it wrote or read the answer."""
    seen: list[tuple[str, str]] = []
    for name in ("ask_batch", "masks_batch"):
        method = getattr(PixelLMPredictor, name)

        def record(self, requests, *, method=method, name=name, **options):
            seen.extend((str(request[1]), name) for request in requests)
            return method(self, requests, **options)

        monkeypatch.setattr(PixelLMPredictor, name, record)
    return seen


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / ANSWERS).read_text(encoding="utf-8").splitlines()]


def results(out: Path) -> list[dict]:
    return json.loads((out / "results.json").read_text(encoding="utf-8"))["results"]


def test_every_benchmark_is_asked_in_its_own_protocol(flags, out, capsys):
    assert evaluate.main(flags) == 0
    printed = capsys.readouterr().out
    found = results(out)
    assert [(row["name"], row["protocol"], row["num_questions"], row["judge"]) for row in found] == [
        ("MultiReasonSeg|val", "generate", 4, "none"), ("refcoco|unc|val", "teacher_forced", 2, "none"),
    ]  # fmt: skip
    for row in found:
        assert f"{row['name']}   protocol: {row['protocol']}   judge: none" in printed
    assert [line["answer"] for line in lines(out)[:4]] == ["the thing is [SEG0] [SEG1]"] * 4
    assert {path.name for path in out.iterdir()} == {"settings.json", ANSWERS, "results.json", SCORED, "report.html"}
    questions = [json.loads(line) for line in (out / SCORED).read_text(encoding="utf-8").splitlines()]
    for row in found:
        own = [one for one in questions if one["name"] == row["name"]]
        shares = [pair["iou"] for one in own for pair in one["pairs"]]
        assert len(own) == row["num_questions"]
        assert sum(shares) / len(shares) == pytest.approx(row["scores"]["all"]["giou"])


def test_rows_that_share_a_set_ask_its_questions_once(flags, out, asked):
    assert evaluate.main([*flags, "--protocol", "all", "--benchmark", "MultiReasonSeg|val", "refcoco|val"]) == 0
    assert [row["protocol"] for row in results(out)] == [
        "generate", "teacher_forced", "named", "teacher_forced", "generate", "named",
    ]  # fmt: skip
    assert sum(kind == "ask_batch" for _, kind in asked) == 6
    assert len({tuple(line[name] for name in ("benchmark", "protocol", "index", "conversation")) for line in lines(out)}
    ) == len(lines(out)) == 18  # fmt: skip


def test_named_gives_a_mask_for_each_name_and_nothing_where_there_is_none(flags, out):
    assert evaluate.main([*flags, "--protocol=named"]) == 0
    for line in lines(out):
        assert line["phrases"] == line["names"]
        assert len(line["predictions"]) == len(line["true_masks"])


@pytest.mark.parametrize(("batches", "left"), [(0, 6), (1, 4), (2, 2)])
def test_a_stopped_run_ends_as_one_that_was_never_stopped(flags, out, asked, monkeypatch, batches, left):
    assert evaluate.main(flags) == 0
    whole = snapshot(out)
    shutil.rmtree(out)
    with monkeypatch.context() as patch:
        stop_after(batches, patch, run)
        with pytest.raises(Killed):
            evaluate.main(flags)
    asked.clear()
    assert evaluate.main(flags) == 0
    assert len(asked) == left, "no question twice"
    assert snapshot(out) == whole
    asked.clear()
    assert evaluate.main(flags) == 0
    assert not asked
    assert snapshot(out) == whole


def test_lines_that_are_torn_are_asked_again_as_a_batch(flags, out, asked, monkeypatch):
    assert evaluate.main(flags) == 0
    whole = snapshot(out)
    for kept in (0.0, 0.1, 0.5, 0.999):
        shutil.rmtree(out)
        with monkeypatch.context() as patch:
            stop_after(1, patch, run)
            with pytest.raises(Killed):
                evaluate.main(flags)
        os.truncate(out / ANSWERS, int(kept * (out / ANSWERS).stat().st_size))
        asked.clear()
        assert evaluate.main(flags) == 0
        assert len(asked) == 6
        assert snapshot(out) == whole


def test_a_run_goes_on_with_other_batches_and_benchmarks(flags, out, asked, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(1, patch, run)
        with pytest.raises(Killed):
            evaluate.main(flags)
    asked.clear()
    assert evaluate.main([*flags, "--batch_size=16"]) == 0
    assert len(asked) == 4
    assert evaluate.main([*flags, "--protocol", "named", "teacher_forced"]) == 0
    assert len(asked) == 4 + 6 + 4
    assert [row["protocol"] for row in results(out)] == ["named", "teacher_forced"] * 2


def test_rescoring_gives_the_same_bytes_and_needs_no_data(flags, out, tmp_path, capsys):
    assert evaluate.main(flags) == 0
    before, table = snapshot(out), capsys.readouterr().out
    moved = Path(shutil.copytree(out, tmp_path / "moved"))
    (moved / "results.json").unlink()
    assert evaluate.main([f"--rescore={moved}", "--dataset_dir=/nowhere"]) == 0
    assert capsys.readouterr().out.strip() in table
    assert snapshot(moved) == before
    assert evaluate.main([f"--rescore={moved}", "--matching=released", "--seed=3"]) == 0
    assert {name: read_settings(moved)["scoring"][name] for name in ("matching", "seed")} == {
        "matching": "released", "seed": 3,
    }  # fmt: skip
    assert evaluate.main([f"--rescore={moved}", "--matching=exact", "--seed=0"]) == 0
    assert snapshot(moved) == before


def test_a_judge_reads_a_dump_and_is_named_in_the_result(flags, out, capsys):
    def nothing_is_right(body: dict[str, Any]) -> Sent:
        count = body["response_format"]["json_schema"]["schema"]["properties"]["scores"]["minItems"]
        return Sent(json.dumps({"scores": [0.0] * count}))

    assert evaluate.main([*flags, "--protocol", "generate", "teacher_forced"]) == 0
    before = (out / "results.json").read_bytes()
    with chat_server(answer=nothing_is_right) as server:
        judge = ["--judge=llm", f"--judge_url={server.url}", "--judge_model=m"]
        assert evaluate.main([f"--rescore={out}", *judge]) == 0
        assert len(server.requests) == 4, "MUSE, as it was generated"
        assert evaluate.main([f"--rescore={out}"]) == 0
        assert len(server.requests) == 4
    found = results(out)
    assert [row["judge"] for row in found] == ["m", "none", "none", "none"]
    assert found[0]["scores"]["all"]["giou"] == 0
    assert all(row["scores"]["all"]["giou"] > 0 for row in found[1:])
    assert "MultiReasonSeg|val   protocol: generate   judge: m" in capsys.readouterr().out
    assert evaluate.main([f"--rescore={out}", "--judge=none"]) == 0
    assert (out / "results.json").read_bytes() == before


def test_two_results_are_compared(flags, out, tmp_path, capsys):
    assert evaluate.main(flags) == 0
    other = shutil.copytree(out, tmp_path / "other")
    capsys.readouterr()
    assert evaluate.main(["--compare", str(out), str(other)]) == 0
    told = capsys.readouterr().out
    assert "worse in 0, equal in" in told
    assert f"{other / COMPARISON} shows both side by side" in told
    assert str(other) in (other / COMPARISON).read_text(encoding="utf-8")


@pytest.mark.parametrize("change", ["lost", "doubled"])
def test_a_dump_that_is_not_whole_is_not_scored(flags, out, capsys, change):
    """Found by thinking: a tail that is dropped would raise or lower every number."""
    assert evaluate.main(flags) == 0
    content = (out / ANSWERS).read_text(encoding="utf-8").splitlines(keepends=True)
    if change == "lost":
        (out / ANSWERS).write_text("".join(content[:-1]), encoding="utf-8")
        refused(evaluate.main, [f"--rescore={out}"], capsys, "answers to 1 of the 2 questions of refcoco|unc|val")
    else:
        (out / ANSWERS).write_text("".join([*content, content[0]]), encoding="utf-8")
        rows = read_rows(out)
        assert [len(row.records) for row in rows] == [4, 2], "a question counts once"


def test_a_missing_dataset_is_a_row_of_the_result(flags, out, capsys):
    assert evaluate.main([*flags, "ReasonSeg|val", "--limit=1"]) == 0
    assert "missing: " in capsys.readouterr().out
    row = results(out)[2]
    assert (row["name"], row["num_questions"], row["scores"]) == ("ReasonSeg|val", 0, {})
    assert "does not exist" in row["missing"]


def test_nothing_is_written_where_every_dataset_is_missing(flags, out, capsys):
    others = flags[: flags.index("--benchmark")]
    refused(evaluate.main, [*others, "--benchmark=ReasonSeg|val"], capsys, "does not exist, but", "ReasonSeg|val")
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--max_new_tokens=13"], "--max_new_tokens 12, now it is 13"),
        (["--limit=1"], "--limit 0, now it is 1"),
        (["--precision=bf16"], "--precision 'fp32', now it is 'bf16'"),
    ],
)
def test_an_output_is_not_continued_with_other_settings(flags, out, capsys, more, says):
    assert evaluate.main(flags) == 0
    before = snapshot(out)
    refused(evaluate.main, [*flags, *more], capsys, says, "--overwrite")
    assert snapshot(out) == before
    assert evaluate.main([*flags, *more, "--overwrite"]) == 0
    assert snapshot(out.with_name("out.old-1")) == before


def test_an_output_is_not_continued_with_other_questions_or_another_model(
    flags, out, parrot, tiny_world, tmp_path, capsys
):
    data = Path(shutil.copytree(tiny_world.dataset, tmp_path / "data"))
    model = Path(shutil.copytree(parrot, tmp_path / "model"))
    mine = [*flags, f"--dataset_dir={data}", f"--version={model}"]
    assert evaluate.main(mine) == 0
    file = data / "muse/muse_val.json"
    text = file.read_text(encoding="utf-8")
    record = json.loads(text)
    record[0]["questions"][0] += " Really?"
    file.write_text(json.dumps(record), encoding="utf-8")
    refused(evaluate.main, mine, capsys, "other questions or masks of MultiReasonSeg|val", "--overwrite")
    file.write_text(text, encoding="utf-8")
    os.utime(model / "model.safetensors", (1, 1))
    refused(evaluate.main, mine, capsys, "other files of the model", "--overwrite")


def test_a_folder_of_someone_else_is_left_alone(flags, out, capsys):
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    refused(evaluate.main, flags, capsys, "holds thesis.tex, which scripts/evaluate.py did not write")
    refused(evaluate.main, [*flags, "--overwrite"], capsys, "holds thesis.tex")
    refused(evaluate.main, [f"--rescore={out}"], capsys, "settings.json does not exist")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        (ANSWERS, "[1]\n", "predictions.jsonl:1: it is [1]"),
        (ANSWERS, "{\n", "predictions.jsonl:1 is not valid JSON"),
        ("settings.json", "{}", "config is missing"),
    ],
)
def test_damaged_files_are_told(flags, out, capsys, file, content, says):
    assert evaluate.main(flags) == 0
    (out / file).write_text(content, encoding="utf-8")
    refused(evaluate.main, [f"--rescore={out}"], capsys, says, "--overwrite")
    refused(evaluate.main, flags, capsys, says, "--overwrite")


def test_rows_of_unknown_benchmarks_are_told(flags, out, capsys):
    assert evaluate.main(flags) == 0
    rows = read_settings(out)["rows"]
    for name in ("nothing|val", "paper", "MUSE"):
        edit_json(out / "settings.json", rows=[{**rows[0], "name": name}])
        refused(evaluate.main, [f"--rescore={out}"], capsys, name)


def test_ctrl_c_is_quiet_and_the_run_goes_on(flags, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "append", interrupt)
        assert evaluate.main(flags) == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err
    assert evaluate.main(flags) == 0


def test_too_little_memory_is_told_with_its_remedy(flags, monkeypatch, capsys):
    def fill(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PixelLMPredictor, "ask_batch", fill)
    refused(evaluate.main, flags, capsys, "does not suffice for --batch_size 2", "goes on where this one stopped")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--benchmark=||"], "--benchmark names no set"),
        (["--benchmark=nothing|val"], "'nothing|val' is unknown"),
        (["--protocol", "all", "named"], "--protocol all stands for every protocol"),
        (
            ["--protocol=teacher_forced", "--benchmark=grefcoco|unc|val"],
            "--protocol teacher_forced is none of grefcoco",
        ),
        (["--compare", "a"], "--compare has 1 folder(s); expected two"),
        (["--compare", "a", "b", "--rescore=c"], "--rescore and --compare exclude each other"),
        (["--version="], "--version is missing"),
        (["--output_dir="], "--output_dir is empty"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_read(tmp_path, capsys, more, says):
    flags = ["--version=/no/model", "--dataset_dir=/nowhere", f"--output_dir={tmp_path / 'out'}"]
    refused(evaluate.main, [*flags, *more], capsys, says)
    assert not list(tmp_path.iterdir())
