"""What the frozen tower makes of a photo, kept on disk, so that a photo goes through the tower once.

The features of a photo depend on its file, on how it is prepared, and on the tower; nothing is drawn at random. So a
file of features is named by the content of the photo, and lies in a folder that is named by everything else. Each
photo goes through the tower alone: which others are in its batch changes no bit.

Shapes: B images, S scales, P patches, V tower width.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import socket
import time
import zlib
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from model.configuration import PRECISIONS, PixelLMConfig
from model.errors import InputError
from model.files import write_json
from model.structures import Batch
from model.vision_tower import VisionTower
from utils import dist
from utils.cli.config import RunConfig
from utils.data.encode import KnownPhoto

from .deepspeed_config import shards_parameters
from .start import TrainingModel

logger = logging.getLogger(__name__)

_FORMAT = 1  # of the files; another one is another folder
_LIBRARIES = ("torch", "transformers", "pillow", "opencv-python-headless", "numpy")
_OF_THE_TOWER = ("patch_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps")
_DAY = 24 * 60 * 60
_UNFINISHED = "unfinished"


def check_cache(run: RunConfig, config: PixelLMConfig, settings: dict[str, Any]) -> None:
    """Refuse ``--cache_vision_features`` where features are not a function of the photo, or a process lacks the tower.

    Args:
        settings: DeepSpeed's.
    Raises:
        InputError: with what to give instead.
    """
    if not run.cache_vision_features:
        return
    if shards_parameters(settings):
        raise InputError(
            "--cache_vision_features needs the whole tower on every process, and ZeRO-3 divides it; leave the flag "
            f"out, or give a --deepspeed_config of stage 2 or less in place of {run.deepspeed_config}"
        )
    if config.vision_config.attention_dropout:
        raise InputError(
            f"--cache_vision_features: --vision-tower {run.vision_tower} has dropout "
            f"({config.vision_config.attention_dropout}), so its features differ each time; leave the flag out"
        )


def open_cache(run: RunConfig, training: TrainingModel, device: torch.device) -> FeatureCache | None:
    """The cache that the run asks for, if it does; called by every process.

    Raises:
        InputError: on every process, if the folder cannot be made.
    """
    if not run.cache_vision_features:
        return None
    with dist.stop_together():
        return FeatureCache(run.cache_vision_features, training, run, device)


class FeatureCache:
    """The folder of one tower and one way to prepare photos; several runs and processes may use it at a time.

    Files are written whole or not at all. One that is damaged counts for nothing, and is written anew.

    Args:
        folder: of ``--cache_vision_features``.
        device: on which the tower computes.
    Raises:
        InputError: if the folder cannot be made.
    """

    def __init__(self, folder: str | Path, training: TrainingModel, run: RunConfig, device: torch.device) -> None:
        config = training.config
        self._tower: VisionTower = training.network.model.vision_tower
        self._dtype = PRECISIONS[run.precision]
        self._shape = (
            config.image_feature_scale_num, config.patch_grid**2, config.vision_config.hidden_size
        )  # fmt: skip
        described = _describe(config, self._tower, self._dtype, device)
        self._fingerprint = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
        self._folder = Path(folder).absolute() / self._fingerprint
        self._warned = self._is_closed = False
        self._written: set[str] = set()
        try:
            (self._folder / _UNFINISHED).mkdir(parents=True, exist_ok=True)
            write_json(self._folder / "settings.json", described)
            _remove_old(self._folder / _UNFINISHED)
        except OSError as err:
            raise InputError(
                f"--cache_vision_features {folder} cannot be written ({err.strerror}); give another folder"
            ) from err

    @property
    def bytes_per_photo(self) -> int:
        scales, patches, width = self._shape
        return scales * patches * width * self._dtype.itemsize

    def check_room(self, num_samples: int) -> None:
        """Before the first update: the disk takes the features of all photos that the run may read.

        Args:
            num_samples: each may be about another photo.
        Raises:
            InputError: on every process, if it does not.
        """
        with dist.stop_together():
            if dist.local_rank():  # the first process of its machine looks
                return
            there = sum(1 for _ in self._folder.glob("??/*.safetensors"))
            needed = max(0, num_samples - there) * self.bytes_per_photo
            free = shutil.disk_usage(self._folder).free
            logger.info("features of %d photos in %s, %.2f MiB each", there, self._folder, self.bytes_per_photo / 2**20)
            if free < needed:
                raise InputError(
                    f"--cache_vision_features: {self._folder} has {free / 2**30:.1f} GiB free, but the features of up "
                    f"to {num_samples} photos take {needed / 2**30:.1f} GiB more; give a folder with more room, or "
                    "leave the flag out"
                )

    def find(self, photo: Path | None, *, upright: bool) -> KnownPhoto:
        """Called by loader workers.

        Args:
            photo: its file; None stands for the blank one of a dialogue without photo.
            upright: it is turned as its EXIF data say.
        Returns:
            its key, and (S, P, V) features if they are there.
        """
        try:
            content = b"" if photo is None else photo.read_bytes()
        except OSError:  # who reads the photo will say so
            return KnownPhoto("", None)
        key = hashlib.sha256(content + bytes([upright])).hexdigest()
        try:
            return KnownPhoto(key, self._read(key))
        except FileNotFoundError:
            return KnownPhoto(key, None)
        except Exception as err:  # safetensors has classes of its own for damaged files
            if not self._warned:
                logger.warning("%s is damaged (%s) and written anew; more of the kind are not told", self._file(key),
                               err)  # fmt: skip
                self._warned = True
            return KnownPhoto(key, None)

    def _file(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> Tensor:
        file = self._file(key)
        os.stat(file)  # of a file that does not exist, safetensors tells in its own way
        with safe_open(file, "pt") as content:
            features, note = content.get_tensor("features"), content.metadata() or {}
        if (tuple(features.shape), features.dtype) != (self._shape, self._dtype):
            raise ValueError(f"it holds {features.dtype} of shape {tuple(features.shape)}")
        if note != self._note(key, features):
            raise ValueError("its content is not what was written")
        return features

    def _note(self, key: str, features: Tensor) -> dict[str, str]:
        checksum = zlib.crc32(features.contiguous().view(-1).view(torch.uint8).numpy().data)
        return {"photo": key, "settings": self._fingerprint, "crc32": f"{checksum:08x}"}

    def complete(self, batch: Batch) -> Tensor:
        """The features of a batch of training: those that are known, and those that the tower makes and that are kept.

        Args:
            batch: on the device; its pixels are those of the images without features.
        Returns:
            (S, B, P, V).
        """
        found, num_made = [], 0
        for image, features in enumerate(batch.features):
            if features is None:
                pixels = batch.pixel_values[num_made : num_made + 1]
                features = self._tower(pixels, batch.valid_hw[image : image + 1])[:, 0]
                self._keep(batch.photo_keys[image], features)
                num_made += 1
            found.append(features)
        return torch.stack(found, 1)

    def _keep(self, key: str, features: Tensor) -> None:
        if self._is_closed or not key or key in self._written:
            return
        kept = features.cpu().contiguous()
        file = self._file(key)
        partial = self._folder / _UNFINISHED / f"{key}.{socket.gethostname()}.{os.getpid()}"
        try:
            file.parent.mkdir(exist_ok=True)
            partial.write_bytes(save({"features": kept}, self._note(key, kept)))
            partial.replace(file)
        except OSError as err:
            partial.unlink(missing_ok=True)
            logger.warning("%s cannot be written (%s); no more features are kept", file, err.strerror)
            self._is_closed = True
        self._written.add(key)


def _describe(config: PixelLMConfig, tower: VisionTower, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Everything but the photo that a bit of its features may depend on."""
    weights = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        weights.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    cpu = [platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
    return {
        "format": _FORMAT,
        "tower": weights.hexdigest(),
        "layers": list(config.vision_feature_layers),
        "vision_config": {name: getattr(config.vision_config, name) for name in _OF_THE_TOWER},
        "attention": tower.attention,
        "image_size": config.image_size,
        "covered_size": config.covered_size,
        "pad": config.pad_train_clip_images,
        "mean": list(config.image_mean),
        "std": list(config.image_std),
        "precision": str(dtype),
        "matmul": torch.get_float32_matmul_precision(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "libraries": {name: _version(name) for name in _LIBRARIES} | {"cuda": torch.version.cuda},
    }  # fmt: skip


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def _remove_old(folder: Path) -> None:
    """What killed processes have left, long ago, so that no other process is still at it."""
    for file in folder.iterdir():
        try:
            if time.time() - file.stat().st_mtime > _DAY:
                file.unlink()
        except FileNotFoundError:  # another process was quicker
            continue
