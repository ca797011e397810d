"""The stream of samples is a function of the seed alone."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.errors import InputError
from model.structures import Batch
from tests.support.tiny_data import IMAGES
from utils.data.collate import Collator
from utils.data.mixture import Mixture, RankSampler, SkipTally, ValDataset, build_loader, describe_skips, read_batches
from utils.data.records import NOTHING_TO_ASK, RawSample, Skip
from utils.data.registry import DataOptions, build_train_sources, build_val_source


@pytest.fixture(scope="module")
def mixture(shared_dataset, encoder) -> Mixture:
    return make_mixture(shared_dataset, encoder)


def make_mixture(root, encoder, seed=0) -> Mixture:
    options = DataOptions(root, "refer_seg||multi_reason_seg", "1,2", refer_seg_data="refcoco||refcoco+")
    return Mixture(*build_train_sources(options), encoder, seed=seed)


def read(mixture, *, start=0, count=8, rank=0, world_size=1, batch_size=2, num_workers=0, tally=None) -> list[Batch]:
    loader = build_loader(
        mixture, Collator(mixture.encoder.config, mixture.encoder.tokenizer.pad_token_id), start=start, count=count,
        rank=rank, world_size=world_size, batch_size=batch_size, num_workers=num_workers, pin_memory=False,
    )  # fmt: skip
    return list(read_batches(loader, tally or SkipTally(0.01)))


def same(first: Batch, second: Batch) -> bool:
    tensors = ("pixel_values", "input_ids", "labels", "image_index")
    return (
        first.sample_ids == second.sample_ids
        and all(torch.equal(getattr(first, name), getattr(second, name)) for name in tensors)
        and all(torch.equal(a, b) for a, b in zip(first.masks, second.masks, strict=True))
    )


@pytest.mark.slow
def test_workers_change_nothing(mixture):
    alone, helped = read(mixture), read(mixture, num_workers=2)
    assert len(alone) == len(helped) == 4
    assert all(map(same, alone, helped))


def test_two_processes_share_the_stream_of_one(mixture):
    whole = read(mixture, batch_size=4)
    parts = [read(mixture, rank=rank, world_size=2, batch_size=2) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        assert batch.sample_ids == parts[0][step].sample_ids + parts[1][step].sample_ids
        assert torch.equal(batch.pixel_values, torch.cat([part[step].pixel_values for part in parts]))


def test_resuming_goes_on_where_it_stopped(mixture):
    assert all(map(same, read(mixture)[2:], read(mixture, start=4, count=4)))


def test_seeds_differ(mixture, shared_dataset, encoder):
    other = make_mixture(shared_dataset, encoder, seed=1)
    assert not all(map(same, read(mixture), read(other)))


@pytest.mark.parametrize(("world_size", "batch_size", "start"), [(1, 2, 0), (2, 3, 0), (4, 1, 7)])
def test_sampler_covers_every_index_once(world_size, batch_size, start):
    steps = 5
    count = steps * world_size * batch_size
    samplers = [RankSampler(start, count, rank, world_size, batch_size) for rank in range(world_size)]
    indices = [list(sampler) for sampler in samplers]
    assert all(len(part) == len(sampler) for part, sampler in zip(indices, samplers, strict=True))
    for step in range(steps):
        together = [i for part in indices for i in part[step * batch_size : (step + 1) * batch_size]]
        first = start + step * world_size * batch_size
        assert together == list(range(first, first + world_size * batch_size))
    with pytest.raises(ValueError, match="multiple"):
        RankSampler(0, count + 1, 0, world_size, 2 * batch_size)


def id_only(raw) -> SimpleNamespace:
    """Stands in for the encoder where only the choice of samples matters."""
    return SimpleNamespace(parts=raw.sample_id.split("/"))


def test_rates(mixture):
    """Two thirds MUSE, one sixth each of the two referring sets; every photo has its turn."""
    mixture = Mixture(mixture.sources, mixture.shares, id_only, seed=3)
    drawn = [mixture[index].parts for index in range(1500)]
    shares = {
        name: np.mean([name == parts[0] for parts in drawn]) for name in ("multi_reason_seg", "refcoco", "refcoco+")
    }
    assert shares["multi_reason_seg"] == pytest.approx(2 / 3, abs=0.05)
    assert shares["refcoco"] == pytest.approx(1 / 6, abs=0.04)
    assert len({tuple(parts) for parts in drawn}) == sum(map(len, mixture.sources))


@dataclass
class Numbered:
    """A source of numbers; the ones in ``bad`` cannot be used."""

    name: str
    count: int
    bad: frozenset[int] = frozenset()
    reason: str = "image missing"

    def __len__(self) -> int:
        return self.count

    def get(self, index: int, rng: np.random.Generator) -> RawSample:
        rng.random()  # bad or not, a source may use the generator
        if index in self.bad:
            raise InputError(f"{self.name}/{index} is bad", reason=self.reason)
        return RawSample(f"{self.name}/{index}", None, (), np.zeros((0, 0, 0), dtype=bool))


def numbers(*sources, seed=0, rates=None, **options) -> Mixture:
    return Mixture(sources, rates or [1.0] * len(sources), id_only, seed=seed, **options)


def test_every_sample_once_per_epoch():
    mixture = numbers(Numbered("a", 7), Numbered("b", 1), Numbered("c", 12), rates=[1, 5, 1], once_per_epoch=True)
    expected = {f"{name}/{index}" for name, count in (("a", 7), ("b", 1), ("c", 12)) for index in range(count)}
    assert mixture.num_items == len(expected) == 20
    epochs = [["/".join(mixture[20 * epoch + place].parts) for place in range(20)] for epoch in range(3)]
    for drawn in epochs:
        assert set(drawn) == expected
        assert len(drawn) == 20
    assert epochs[0] != epochs[1] != epochs[2]
    resumed = numbers(Numbered("a", 7), Numbered("b", 1), Numbered("c", 12), rates=[1, 5, 1], once_per_epoch=True)
    assert ["/".join(resumed[place].parts) for place in range(25, 40)] == epochs[1][5:], "in the midst of an epoch"


@pytest.mark.parametrize("once_per_epoch", [False, True])
def test_a_bad_sample_is_replaced_by_another_one(once_per_epoch):
    """The same one for any worker and after a restart, and other places in the stream notice nothing."""
    good = numbers(Numbered("a", 20), Numbered("b", 5), once_per_epoch=once_per_epoch)
    worse = [
        numbers(Numbered("a", 20, frozenset({3, 4})), Numbered("b", 5), once_per_epoch=once_per_epoch) for _ in range(2)
    ]
    replaced = 0
    for index in range(100):
        wanted, found, again = good[index], worse[0][index], worse[1][index]
        assert (found.parts, found.skipped) == (again.parts, again.skipped)
        if wanted.parts in (["a", "3"], ["a", "4"]):
            replaced += 1
            assert found.parts not in (["a", "3"], ["a", "4"])
            first = found.skipped[0]
            assert (first.source, first.reason) == ("a", "image missing")
            assert first.message == f"{'/'.join(wanted.parts)} is bad"
        else:
            assert (found.parts, found.skipped) == (wanted.parts, ())
    assert replaced > 3


def test_nothing_but_bad_samples_stops_at_once():
    mixture = numbers(Numbered("a", 3, frozenset(range(3))))
    with pytest.raises(InputError, match=r"10 samples in a row cannot be used. The last of them: a/\d is bad"):
        mixture[0]


def skips(count, source="a", reason="image missing"):
    return [Skip(source, reason, f"{source} number {number}") for number in range(count)]


def test_the_share_of_bad_samples():
    tally = SkipTally(0.01)
    tally.add(2, skips(10))
    with pytest.raises(
        InputError, match=r"11 of 15 .* more than --max_bad_share 0.01 allows: a: image missing 11. The"
    ):
        tally.add(2, skips(1))
    tally = SkipTally(0.01)
    tally.add(100_000, skips(900))
    tally.add(2, skips(109, "b", "bad record"))
    with pytest.raises(InputError, match=r"a: image missing 900; b: bad record 119. The last of them: b number 9"):
        tally.add(2, skips(10, "b", "bad record"))


def test_photos_with_nothing_to_ask_about_are_no_fault(caplog):
    tally = SkipTally(0.0)
    with caplog.at_level("WARNING"):
        tally.add(1, skips(50, reason=NOTHING_TO_ASK))
        tally.add(1, skips(50, reason=NOTHING_TO_ASK))
    assert len(caplog.records) == 1, "the first of a kind is told, the others are counted"
    assert describe_skips(tally.counts) == "a: nothing to ask about 100"


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_skips_travel_with_the_batch(dataset_dir, encoder, num_workers):
    """Counts do not depend on the number of workers."""
    mixture = make_mixture(dataset_dir, encoder)
    (dataset_dir / IMAGES / "train2017/11.jpg").unlink()
    tally = SkipTally(0.5)
    batches = read(mixture, count=16, num_workers=num_workers, tally=tally)
    assert len(batches) == 8
    assert tally.num_used == 16
    expected = sum(len(mixture[index].skipped) for index in range(16))
    assert tally.counts == {("multi_reason_seg", "image missing"): expected}
    assert expected > 0


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_errors_arrive_as_they_were_raised(dataset_dir, encoder, num_workers):
    """torch would wrap a worker's error into a message with a traceback."""
    mixture = make_mixture(dataset_dir, encoder)
    for path in (dataset_dir / IMAGES).rglob("*.jpg"):
        path.unlink()
    with pytest.raises(InputError) as caught:
        read(mixture, num_workers=num_workers)
    assert str(caught.value).startswith("10 samples in a row cannot be used. The last of them: image ")
    assert "Traceback" not in str(caught.value)


def test_wrong_arguments(mixture):
    with pytest.raises(ValueError, match="2 sources with 1 rates"):
        Mixture(mixture.sources[:2], [1.0], mixture.encoder, seed=0)


def test_validation_is_never_shortened(shared_dataset, make_encoder):
    source = build_val_source(shared_dataset, "MultiReasonSeg|val")
    dataset = ValDataset(source, make_encoder(model_max_length=20))
    samples = [dataset[index] for index in range(len(dataset))]
    assert [len(sample.masks) for sample in samples] == [3, 3, 1]
    assert sum(sample.num_dropped_turns for sample in samples) == 0


def test_validation_never_skips(dataset_dir, encoder):
    source = build_val_source(dataset_dir, "MultiReasonSeg|val")
    (dataset_dir / IMAGES / "train2017/12.jpg").unlink()
    dataset = ValDataset(source, encoder)
    dataset[0]
    with pytest.raises(InputError, match=r"MultiReasonSeg\|val, sample 1: image .*12.jpg does not exist"):
        dataset[1]
