"""Features that are kept are those that the tower would make, bit for bit; what is damaged counts for nothing."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from model.errors import InputError
from model.PixelLM import PixelLMForCausalLM
from model.structures import Batch
from tests.support.tiny_data import IMAGES, draw_photo
from tests.support.tiny_network import make_network
from utils.cli.config import RunConfig
from utils.data.collate import Collator
from utils.data.encode import Encoder, Sample
from utils.data.paths import DatasetPaths
from utils.data.sources import Source
from utils.data.sources.muse import MuseTrain
from utils.training.feature_cache import FeatureCache, check_cache, open_cache
from utils.training.start import TrainingModel

CPU = torch.device("cpu")


@dataclass
class World:
    network: PixelLMForCausalLM
    training: TrainingModel
    encoder: Encoder
    source: Source
    run: RunConfig

    def cache(self, **changes: Any) -> FeatureCache:
        run = replace(self.run, **changes)
        return FeatureCache(run.cache_vision_features, self.training, run, CPU)

    def samples(self, cache: FeatureCache | None, indices: Sequence[int] = (0, 1, 2)) -> list[Sample]:
        encoder = Encoder(self.encoder.tokenizer, self.encoder.codebook, self.encoder.config, cache)
        return [encoder(self.source.get(index, np.random.default_rng(0))) for index in indices]

    def batch(self, cache: FeatureCache | None, indices: Sequence[int] = (0, 1, 2)) -> Batch:
        return Collator(self.encoder.config, 0)(self.samples(cache, indices))

    def files(self) -> list[Path]:
        return sorted(Path(self.run.cache_vision_features).glob("*/??/*.safetensors"))


@pytest.fixture
def world(tiny_tokenizer_dir: Path, dataset_dir: Path, tmp_path: Path) -> World:
    network, tokenizer = make_network(tiny_tokenizer_dir, pad_train_clip_images=True)
    encoder = Encoder(tokenizer, network.codebook, network.config)
    training = TrainingModel(network, network, tokenizer, network.config, tmp_path)
    for number, photo in enumerate(sorted((dataset_dir / IMAGES).glob("*/1?.jpg"))):
        draw_photo(photo, shade=60 + 10 * number)
    source = MuseTrain(DatasetPaths(dataset_dir), expand=False)
    return World(
        network, training, encoder, source, RunConfig(precision="fp32", cache_vision_features=str(tmp_path / "kept"))
    )


def of_tower(world: World, batch: Batch) -> torch.Tensor:
    return world.network.model.vision_tower(batch.pixel_values, batch.valid_hw)


def test_kept_features_and_losses_are_equal_bit_for_bit(world: World):
    plain = world.batch(None)
    cache = world.cache()
    made = cache.complete(world.batch(cache))
    again = world.batch(cache)
    assert torch.equal(made, of_tower(world, plain))
    assert all(features is not None for features in again.features)
    assert torch.equal(cache.complete(again), made)
    expected = world.network(**plain.inputs())
    inputs = again.inputs() | {"pixel_values": None, "tower_features": cache.complete(again)}
    found = world.network(**inputs)
    assert torch.equal(found.loss, expected.loss)
    assert all(torch.equal(*pair) for pair in zip(found.photo_logits, expected.photo_logits, strict=True))


def test_a_batch_may_hold_known_and_unknown_photos(world: World):
    cache = world.cache()
    cache.complete(world.batch(cache, [1]))
    batch = world.batch(cache)
    assert [features is None for features in batch.features] == [True, False, True]
    assert torch.equal(cache.complete(batch), of_tower(world, world.batch(None)))


def test_a_known_photo_is_not_decoded_and_its_sample_is_the_same(world: World):
    cache = world.cache()
    cache.complete(world.batch(cache))
    for known, plain in zip(world.samples(cache), world.samples(None), strict=True):
        assert not known.pixel_values.numel()
        assert (known.valid_hw, known.orig_hw, known.sample_id) == (plain.valid_hw, plain.orig_hw, plain.sample_id)
        assert torch.equal(known.masks, plain.masks)
        assert all(map(torch.equal, known.input_ids, plain.input_ids))


def cut(content: bytes) -> bytes:
    return content[:-3]


def flip_a_bit(content: bytes) -> bytes:
    return content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]


def nothing_of_ours(content: bytes) -> bytes:
    return b"import os"


def empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [cut, flip_a_bit, nothing_of_ours, empty])
def test_a_damaged_file_is_told_and_written_anew(
    world: World, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
):
    cache = world.cache()
    made = cache.complete(world.batch(cache))
    for file in world.files():
        file.write_bytes(damage(file.read_bytes()))
    later = world.cache()
    with caplog.at_level(logging.WARNING):
        batch = world.batch(later)
    assert caplog.text.count("is damaged (") == 1
    assert not any(features is not None for features in batch.features)
    assert torch.equal(later.complete(batch), made)
    assert torch.equal(torch.stack(cast(list[torch.Tensor], world.batch(later).features), 1), made)


def test_features_of_another_photo_are_not_taken(world: World):
    cache = world.cache()
    cache.complete(world.batch(cache))
    first, second, *_ = world.files()
    shutil.copy(first, second)
    assert sum(features is None for features in world.batch(cache).features) == 1


def test_a_photo_that_was_replaced_is_another_one_whatever_its_name_size_and_time_are(world: World, tmp_path: Path):
    photo, cache = tmp_path / "photo.jpg", world.cache()
    photo.write_bytes(b"one")
    before = cache.find(photo, upright=False)
    stat = photo.stat()
    photo.write_bytes(b"two")
    os.utime(photo, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    keys = {before.key, cache.find(photo, upright=False).key, cache.find(photo, upright=True).key}
    assert len(keys) == 3


def test_other_weights_settings_or_precision_have_a_folder_of_their_own(world: World):
    config, tower = world.training.config, world.network.model.vision_tower
    folders = [world.cache()._folder, world.cache(precision="bf16")._folder]
    for name, value in (("pad_train_clip_images", False), ("image_mean", (0.1, 0.2, 0.3))):
        before = getattr(config, name)
        setattr(config, name, value)
        folders.append(world.cache()._folder)
        setattr(config, name, before)
    assert world.cache()._folder == folders[0]
    with torch.no_grad():
        next(tower.parameters()).flatten()[0] += 1
    folders.append(world.cache()._folder)
    assert len(set(folders)) == len(folders) == 5


def test_too_little_room_is_told_before_the_first_update(world: World, monkeypatch: pytest.MonkeyPatch):
    cache = world.cache()
    assert cache.bytes_per_photo == of_tower(world, world.batch(None, [0])).nbytes
    cache.complete(world.batch(cache))
    free = 2 * cache.bytes_per_photo
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    cache.check_room(5)
    with pytest.raises(InputError, match=r"the features of up to 6 photos take .* give a folder with more room"):
        cache.check_room(6)


def test_a_disk_that_fills_ends_the_keeping_and_not_the_run(world: World, caplog: pytest.LogCaptureFixture):
    cache = world.cache()
    shutil.rmtree(cache._folder)
    with caplog.at_level(logging.WARNING):
        found = cache.complete(world.batch(cache))
    assert torch.equal(found, of_tower(world, world.batch(None)))
    assert caplog.text.count("no more features are kept") == 1
    assert not world.files()


def test_what_cannot_work_is_refused(world: World, tmp_path: Path):
    check_cache(world.run, world.training.config, {"zero_optimization": {"stage": 2}})
    with pytest.raises(InputError, match="ZeRO-3 divides it; leave the flag out"):
        check_cache(world.run, world.training.config, {"zero_optimization": {"stage": 3}})
    with pytest.raises(InputError, match="leave --cache_vision_features out"):
        RunConfig(overfit_one_batch=True, cache_vision_features="kept")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="give another folder"):
        open_cache(replace(world.run, cache_vision_features=str(tmp_path / "file")), world.training, CPU)
    world.training.config.vision_config.attention_dropout = 0.1
    with pytest.raises(InputError, match="has dropout"):
        check_cache(world.run, world.training.config, {})
