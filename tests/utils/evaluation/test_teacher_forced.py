"""Teacher-forced validation: what counts, and that nothing is skipped."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from model.errors import InputError
from model.structures import Batch, PixelLMOutput
from tests.support.whole_tree import write_whole_tree
from utils import dist
from utils.data.collate import Collator
from utils.data.encode import Encoder
from utils.data.registry import build_val_source
from utils.data.sources import Source
from utils.evaluation.metrics import IoUMeter
from utils.evaluation.teacher_forced import TeacherForced, reduce_meter, score_batches, validate_teacher_forced


class Table(Collator):
    """Collates, and keeps the batches for a painter to look at."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.config, pad_token_id=0)
        self.batches: list[Batch] = []

    def __call__(self, samples) -> Batch:
        self.batches.append(super().__call__(samples))
        return self.batches[-1]


class Painter(torch.nn.Module):
    """Predicts the true masks of the batch on the table, and foreground wherever pixels do not count."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.table = table

    def forward(self, **inputs) -> PixelLMOutput:
        batch = self.table.batches[-1]
        assert torch.equal(inputs["rows"].input_ids, batch.rows.input_ids)
        logits = [
            (masks if ignore is None else masks | ignore).float() - 0.5
            for masks, ignore in zip(batch.masks, batch.ignore or [None] * len(batch.masks), strict=True)
        ]
        return PixelLMOutput(photo_logits=logits)


def score(source: Source, encoder: Encoder, *, table: Table | None = None, batch_size: int = 2) -> IoUMeter:
    return validate(source, encoder, table=table, batch_size=batch_size).meter


def validate(source: Source, encoder: Encoder, *, table: Table | None = None, batch_size: int = 2) -> TeacherForced:
    table = table or Table(encoder)
    return validate_teacher_forced(
        Painter(table), source, encoder, table, batch_size=batch_size,
        device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["ReasonSeg|val", "MultiReasonSeg|val", "multirefcoco|unc|val"])
def test_ignored_pixels_have_no_say(tmp_path, encoder, name):
    meter = score(build_val_source(write_whole_tree(tmp_path), name), encoder)
    assert (meter.giou, meter.ciou) == (1.0, 1.0)
    assert meter.num_pairs > 0


class Blank(torch.nn.Module):
    """Predicts nothing at all."""

    def forward(self, **inputs) -> PixelLMOutput:
        return PixelLMOutput(photo_logits=[torch.full_like(masks.float(), -1.0) for masks in self.batch.masks])

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.batch = batch


def test_masks_that_show_nothing_are_counted(tmp_path, encoder):
    table = Table(encoder)
    found = validate(build_val_source(write_whole_tree(tmp_path), "MultiReasonSeg|val"), encoder, table=table)
    assert found.blanks.num_true > 0
    assert found.blanks.share == 0
    batch = table.batches[0]
    found = score_batches(Blank(batch), [batch], device=torch.device("cpu"), dtype=torch.float32)
    assert found.blanks.empty == found.blanks.num_true == found.meter.num_pairs > 0
    assert found.meter.giou == 0


def test_a_bad_sample_stops_it(tmp_path, encoder):
    root = write_whole_tree(tmp_path)
    (root / "reason_seg/ReasonSeg/val/2.json").write_text("{")
    with pytest.raises(InputError, match=r"ReasonSeg\|val, sample 1: ReasonSeg\|val/2.jpg: .*2.json is not valid JSON"):
        score(build_val_source(root, "ReasonSeg|val"), encoder)


class WithoutIgnore(Table):
    """Collates into a batch whose ``ignore`` is empty: none of its images has pixels that do not count."""

    def __call__(self, samples):
        self.batches.append(replace(super().__call__(samples), ignore=[]))
        return self.batches[-1]


def test_a_batch_may_have_no_ignored_pixels_at_all(tmp_path, encoder):
    source = build_val_source(write_whole_tree(tmp_path), "multirefcoco|unc|val")
    assert score(source, encoder, table=WithoutIgnore(encoder)) == score(source, encoder)


@dataclass
class Sized:
    """A source of any number of samples: those of another one, again and again."""

    source: Source
    length: int

    @property
    def name(self) -> str:
        return self.source.name

    def __len__(self) -> int:
        return self.length

    def get(self, index, rng):
        return self.source.get(index % len(self.source), rng)


@pytest.mark.parametrize(("num_samples", "batch_size"), [(0, 1), (1, 1), (1, 2), (3, 1), (3, 2), (4, 1)])
def test_every_process_makes_as_many_passes(tmp_path, encoder, monkeypatch, num_samples, batch_size):
    """Under ZeRO-3 every process takes part in the passes of the others; a sample that fills up is not counted."""
    source = Sized(build_val_source(write_whole_tree(tmp_path), "MultiReasonSeg|val"), num_samples)
    alone = score(source, encoder)
    tables, meters = [Table(encoder), Table(encoder)], []
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    for rank, table in enumerate(tables):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        meters.append(score(source, encoder, table=table, batch_size=batch_size))
    passes = [[len(batch.sample_ids) for batch in table.batches] for table in tables]
    assert passes[0] == passes[1]
    assert meters[0] + meters[1] == alone


def test_meters_of_processes_are_added_as_integers(monkeypatch):
    """Two processes that saw the same, a photo of 2**40 pixels among it."""
    meter = IoUMeter(iou_sum=0.75, num_pairs=2, intersection=3, union=2**40 + 1)
    monkeypatch.setattr(dist, "all_reduce_sum", lambda counters: counters * 2)
    joined = reduce_meter(meter, device="cpu")
    assert joined == meter + meter
    assert isinstance(joined.union, int)
