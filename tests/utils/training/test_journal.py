"""What a run writes down: the line of an update, means on the console, boards and their tags."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.errors import InputError
from model.image import patch_valid_mask
from model.rows import rows_of_conversations
from model.structures import Batch
from tests.support.tiny_network import make_batch, make_network
from utils.cli.config import RunConfig
from utils.evaluation.blanks import Blanks
from utils.evaluation.metrics import IoUMeter
from utils.training.boards import Tags, check_board
from utils.training.journal import Journal
from utils.training.report import DataCounts, DataReport, UpdateRecords, UpdateReport
from utils.training.run_directory import RunDirectory

DATA = DataReport(tokens=1000, real_tokens=900, drawn={"vqa": 3, "refcoco": 1}, replaced={"refcoco": 2})
REPORT = UpdateReport(
    1, rate=1e-4, seconds=2.0, num_masks=5, terms={"total": 4.0, "ce": 3.0, "bce": 1.0}, num_samples=4, num_tokens=90,
    blanks=Blanks(5, 2, 1), data=DATA, gradient_norm=0.5, peak_memory=2**30,
)  # fmt: skip
PICTURE = np.full((20, 30, 3), 200, dtype=np.uint8)


@pytest.fixture(scope="module")
def records(tiny_world) -> UpdateRecords:
    """Of devices that can do so little that the toy network keeps them busy."""
    return UpdateRecords(make_network(tiny_world.llava)[0].config, peak_flops=1e9)


@pytest.fixture
def batch(tiny_world) -> Batch:
    network, tokenizer = make_network(tiny_world.llava)
    batch = make_batch(network, tokenizer, [(0, "what?", "the thing {seg}"), (1, "what is the thing?", "no thing")])
    config = network.config
    seen = patch_valid_mask(batch.valid_hw, size=config.covered_size, grid=config.llm_grid).flatten(1)
    words = (batch.input_ids, batch.attention_mask, batch.image_index)
    return replace(batch, rows=rows_of_conversations(*words, codebook=config.codebook, patch_mask=seen))


def write(folder: Path, records: UpdateRecords, reports, caplog, **flags) -> list[str]:
    """Let a journal see reports of a run of ten updates; returns what the console shows."""
    run = RunConfig(log_base_dir=str(folder), exp_name="run", **flags)
    journal = Journal(RunDirectory.of(run), run, records, first_update=0, total_updates=10)
    with caplog.at_level(logging.INFO):
        for report in reports:
            journal.log_update(report)
        journal.log_validation(2, "custom|/photos/of mine.jsonl", IoUMeter(1.0, 2, 3, 6))
        journal.log_validation(2, "MultiReasonSeg|val", IoUMeter(), protocol="generated", images=2)
        journal.log_picture(2, "custom|/photos/of mine.jsonl", PICTURE)
        journal.close()
    return [message for message in caplog.messages if message.startswith("update ")]


def reports(count: int) -> list[UpdateReport]:
    return [
        replace(REPORT, update=number, terms={**REPORT.terms, "total": float(number)}) for number in range(1, 1 + count)
    ]


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "run/log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_keys_of_an_update_are_those_of_the_page(repository, records):
    page = (repository / "docs/training.md").read_text(encoding="utf-8")
    table = page.split("| Key | Of an update |")[1].split("\n\n")[0]
    named = [key for line in table.splitlines()[2:] for key in re.findall(r"`(\w+)`", line.split("|")[1])]
    terms = dict.fromkeys(("total", "ce", "bce", "dice", "refine"), 1.0)
    assert sorted(named) == sorted(["time", *records.record(replace(REPORT, terms=terms))])


def test_rates_and_shares_are_of_the_whole_update(records):
    record = records.record(REPORT)
    assert (record["samples_per_second"], record["tokens_per_second"], record["real_token_share"]) == (2.0, 500.0, 0.9)
    assert record["mfu"] == pytest.approx(record["flops"] / 2.0 / 1e9)
    assert (record["drawn"], record["replaced"]) == ({"vqa": 3, "refcoco": 1}, {"refcoco": 2})


def test_what_json_cannot_hold_or_nobody_knows_is_null(records, tiny_world):
    skipped = replace(REPORT, terms={"total": nan, "ce": nan}, gradient_norm=inf)
    record = UpdateRecords(make_network(tiny_world.llava)[0].config, peak_flops=None).record(skipped)
    assert [record[name] for name in ("total", "ce", "gradient_norm", "mfu")] == [None] * 4
    assert "nan" not in json.dumps(record).lower()


def test_samples_and_tokens_are_counted(batch):
    counts = DataCounts(["vqa", "refcoco"])
    batch.sources, batch.replaced = ["refcoco", "refcoco"], ["vqa", "refcoco"]
    assert batch.rows is not None
    one = counts.of([batch])
    assert len(one) == counts.size
    found = counts.read([2 * count for count in one])
    assert found == DataReport(
        2 * batch.rows.input_ids.numel(), 2 * int(batch.rows.visible.sum()), {"refcoco": 4}, {"refcoco": 2, "vqa": 2}
    )
    assert 0 < found.real_tokens < found.tokens


def test_the_console_tells_means_since_its_last_line(tmp_path, records, caplog):
    first, second, third = write(tmp_path, records, reports(8), caplog, print_freq=4)
    assert re.match(r"update 1/10 loss 1\.0000 \(ce 3\.0000 bce 1\.0000\) masks 5 lr 1\.00e-04 2\.00 s/update ", first)
    assert re.match(r"update 4/10 loss 3\.0000 \(.*; means of 3 updates\) .* 2 samples/s 500 tokens/s MFU ", second)
    assert re.match(r"update 8/10 loss 6\.5000 \(.*; means of 4 updates\) .* ETA ", third[: third.index("ETA") + 4])


def test_a_run_that_ends_has_told_of_its_last_update(tmp_path, records, caplog):
    assert write(tmp_path / "whole", records, reports(10), caplog, print_freq=4)[-1].startswith("update 10/10 ")
    caplog.clear()
    assert write(tmp_path / "error", records, reports(7), caplog, print_freq=4)[-1].startswith("update 7/10 ")
    run = RunConfig(log_base_dir=str(tmp_path), exp_name="signal", print_freq=4)
    journal = Journal(RunDirectory.of(run), run, records, first_update=0, total_updates=10)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        for report in reports(2):
            journal.log_update(report, is_last=report.update == 2)
        told = list(caplog.messages)
        journal.close()
    assert [message[:11] for message in told] == ["update 1/10", "update 2/10"]
    assert caplog.messages == told, "nothing is told twice"


def test_an_update_that_was_passed_over_does_not_spoil_the_mean(tmp_path, records, caplog):
    found = [REPORT, replace(REPORT, update=2, terms=dict.fromkeys(REPORT.terms, nan)), replace(REPORT, update=3)]
    assert "loss 4.0000" in write(tmp_path, records, found, caplog, print_freq=3)[-1]


def test_validations_say_their_protocol(tmp_path, records, caplog):
    write(tmp_path, records, [], caplog)
    first, second = log(tmp_path)
    assert (first["val"], first["protocol"], first["giou"]) == ("custom|/photos/of mine.jsonl", "teacher-forced", 0.5)
    assert (second["protocol"], second["images"], second["giou"]) == ("generated", 2, None)


def test_tensorboard_has_curves_and_pictures_under_short_tags(tmp_path, records, caplog):
    write(tmp_path, records, reports(2), caplog)
    board = EventAccumulator(str(tmp_path / "run")).Reload()
    tags = board.Tags()
    assert {"train/total", "train/lr", "train/gradient_norm", "metrics/mfu", "metrics/samples_per_second"} <= {
        *tags["scalars"]
    }
    assert [tag for tag in tags["scalars"] if tag.startswith("val/")] == ["val/of-mine/giou", "val/of-mine/ciou"]
    assert [event.value for event in board.Scalars("train/total")] == [1.0, 2.0]
    assert tags["images"] == ["pictures/of-mine"]
    assert (board.Images("pictures/of-mine")[0].width, board.Images("pictures/of-mine")[0].height) == (30, 20)
    assert [path.name for path in (tmp_path / "run/pictures").iterdir()] == ["of-mine-update-2.jpg"]


def test_a_run_without_a_board_writes_the_rest(tmp_path, records, caplog):
    write(tmp_path, records, reports(1), caplog, report_to="none")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"log.jsonl", "pictures"}


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("ReasonSeg|val", "ReasonSeg-val"),
        ("refcoco+|unc|testA", "refcoco+-unc-testA"),
        ("custom|/abs/path.jsonl", "path"),
        ("custom|mine.jsonl", "mine"),
        ("the one batch", "the-one-batch"),
    ],
)
def test_tags_are_short(name, tag):
    assert Tags().of(name) == tag


def test_tags_are_unique_and_stay():
    tags = Tags()
    found = [tags.of(f"custom|/{folder}/val.jsonl") for folder in "abca"]
    assert found == ["val", "val-2", "val-3", "val"]


def test_a_board_that_is_not_installed_is_told_before_the_work(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_board("tensorboard")
    with pytest.raises(InputError, match=r"--report_to wandb needs the package wandb.*pip install wandb"):
        check_board("wandb")


@pytest.mark.long
@pytest.mark.slow
def test_wandb_keeps_a_run_offline(tmp_path, records, caplog, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    write(tmp_path, records, reports(3), caplog, report_to="wandb")
    (run,) = (tmp_path / "run/wandb").glob("offline-run-*")
    assert next(run.glob("*.wandb")).stat().st_size > 1000
    assert not list((tmp_path / "run").glob("events.*"))
