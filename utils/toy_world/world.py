"""Make a whole toy world in a folder, once."""

from __future__ import annotations

import logging
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.files import read_json, write_json

from .parallel import OrderedMap, start_workers
from .tree import write_dataset

logger = logging.getLogger(__name__)

# Raise it when equal settings give another world than before.
FORMAT = 2
DATASET, LANGUAGE_BASE, TOWER = "dataset", "llava-toy", "clip-toy"
# What --pretrain leaves beside them, in the form that the repository keeps.
PACK = "base_weights.safetensors"
# RefCOCO pictures: a sixth of the MUSE training pictures, but enough for all its splits.
_REFER_SHARE, _MIN_REFER = 6, 10
_MAX_WORKERS = 4


@dataclass(frozen=True)
class WorldSettings:
    """What a toy world is a function of; the flags of scripts/make_toy_world.py say what each means."""

    seed: int
    num_train: int
    num_val: int
    num_test: int
    image_size: int
    skip_base_weights: bool
    pretrain: bool
    format: int = FORMAT

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders of the world."""
        return (DATASET,) if self.skip_base_weights else (DATASET, LANGUAGE_BASE, TOWER)

    @property
    def files(self) -> tuple[str, ...]:
        """The files beside the folders."""
        return (PACK,) if self.pretrain else ()


def make_world(out: Path, settings: WorldSettings) -> None:
    """Write ``out``/dataset, llava-toy and clip-toy, then world.json, which says that all is there.

    Everything is made in ``out``/.partial first, so that a name without a dot always holds something whole.

    Raises:
        InputError: if ``out`` holds another world, or files of somebody else under these names.
    """
    if _is_finished(out, settings):
        logger.info("%s already holds this toy world", out)
        return
    started = time.monotonic()
    partial = out / ".partial"
    if partial.exists():
        shutil.rmtree(partial)
    for name in settings.parts:
        (partial / name).mkdir(parents=True)
    try:
        measured = _write_parts(partial, settings)
        for name in settings.parts + settings.files:
            (partial / name).rename(out / name)
    finally:
        shutil.rmtree(partial)
    write_json(out / "world.json", {"settings": asdict(settings), "measured": measured})
    logger.info("%s is ready after %.0f s", out, time.monotonic() - started)


def _write_parts(folder: Path, settings: WorldSettings) -> dict[str, Any]:
    """Fill the folders; returns what was measured on the base weights."""
    with start_workers(min(os.cpu_count() or 1, _MAX_WORKERS)) as ordered_map:
        measured = {} if settings.skip_base_weights else _write_base_weights(folder, settings, ordered_map)
        write_dataset(
            folder / DATASET,
            seed=settings.seed,
            num_train=settings.num_train,
            num_val=settings.num_val,
            num_test=settings.num_test,
            num_refer=max(settings.num_train // _REFER_SHARE, _MIN_REFER),
            ordered_map=ordered_map,
        )
    return measured


def _write_base_weights(folder: Path, settings: WorldSettings, ordered_map: OrderedMap) -> dict[str, Any]:
    """Unpack the kept base weights, or those that are trained first; returns what was measured on them."""
    # The dataset alone needs no torch.
    from .base import pack as base_weights

    language, tower, file = folder / LANGUAGE_BASE, folder / TOWER, base_weights.KEPT
    if settings.pretrain:
        file = folder / PACK
        base_weights.pretrain(
            file, image_size=settings.image_size, seed=settings.seed, ordered_map=ordered_map, scratch=language
        )
    return base_weights.unpack(file, language, tower, image_size=settings.image_size)


def _is_finished(out: Path, settings: WorldSettings) -> bool:
    marker = out / "world.json"
    if marker.is_file():
        found = read_json(marker)["settings"]
        wanted = asdict(settings)
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        if differing:
            said = ", ".join(f"{name} {found.get(name)} instead of {wanted[name]}" for name in differing)
            raise InputError(f"{out} holds another toy world ({said}); use another --out or delete it")
        return True
    taken = [name for name in settings.parts if (out / name).exists()]
    if taken:
        raise InputError(
            f"{out} has {' and '.join(taken)} but no world.json: not a finished toy world; use another --out"
        )
    return False
