"""Make a whole toy world in a folder, once."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.files import is_file, read_object, write_json
from model.outputs import check_output_file, check_output_folder, output_file, output_folder
from model.values import Schema

from .parallel import OrderedMap, start_workers
from .tree import write_dataset

logger = logging.getLogger(__name__)

# Raise it when equal settings give another world than before.
FORMAT = 2
DATASET, LANGUAGE_BASE, TOWER = "dataset", "llava-toy", "clip-toy"
# What --pretrain leaves beside them, in the form that the repository keeps.
PACK = "base_weights.safetensors"
_KIND = "toy world"
_SETTINGS = Schema(dict[str, Any])  # of world.json
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

    Each folder gets its name only when all are whole; those that an unfinished world left are replaced.

    Raises:
        InputError: if ``out`` holds another world, or files of somebody else under these names, or cannot be written.
    """
    if _is_finished(out, settings):
        logger.info("%s already holds this toy world", out)
        return
    started = time.monotonic()
    for name in settings.parts:
        check_output_folder(out / name, kind=_KIND, flag="--out")
    for name in (*settings.files, "world.json"):
        check_output_file(out / name, flag="--out")
    with ExitStack() as whole:
        places = {name: whole.enter_context(output_folder(out / name, kind=_KIND)) for name in settings.parts}
        places |= {name: whole.enter_context(output_file(out / name)) for name in settings.files}
        measured = _write_parts(places, settings)
    write_json(out / "world.json", {"settings": asdict(settings), "measured": measured})
    logger.info("%s is ready after %.0f s", out, time.monotonic() - started)


def _write_parts(places: Mapping[str, Path], settings: WorldSettings) -> dict[str, Any]:
    """Fill the folders and files of the world, each at its place; returns what was measured on the base weights."""
    with start_workers(min(os.cpu_count() or 1, _MAX_WORKERS)) as ordered_map:
        measured = {} if settings.skip_base_weights else _write_base_weights(places, settings, ordered_map)
        write_dataset(
            places[DATASET],
            seed=settings.seed,
            num_train=settings.num_train,
            num_val=settings.num_val,
            num_test=settings.num_test,
            num_refer=max(settings.num_train // _REFER_SHARE, _MIN_REFER),
            ordered_map=ordered_map,
        )
    return measured


def _write_base_weights(places: Mapping[str, Path], settings: WorldSettings, ordered_map: OrderedMap) -> dict[str, Any]:
    """Unpack the kept base weights, or those that are trained first; returns what was measured on them."""
    # The dataset alone needs no torch.
    from .base import pack as base_weights

    language, tower, file = places[LANGUAGE_BASE], places[TOWER], base_weights.KEPT
    if settings.pretrain:
        file = places[PACK]
        base_weights.pretrain(
            file, image_size=settings.image_size, seed=settings.seed, ordered_map=ordered_map, scratch=language
        )
    return base_weights.unpack(file, language, tower, image_size=settings.image_size)


def _is_finished(out: Path, settings: WorldSettings) -> bool:
    marker = out / "world.json"
    if is_file(marker):
        content = read_object(marker, remedy="use another --out or delete it")
        found = _SETTINGS.check(content.get("settings"), where=f"{marker}: settings", remedy="Use another --out")
        wanted = asdict(settings)
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        if differing:
            said = ", ".join(f"{name} {found.get(name)} instead of {wanted[name]}" for name in differing)
            raise InputError(f"{out} holds another toy world ({said}); use another --out or delete it")
        return True
    return False
