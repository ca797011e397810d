"""A model for many questions, which one process answers or several of a launcher divide."""

from __future__ import annotations

import os
from datetime import timedelta

import torch

from model.errors import InputError
from model.hub import files_read
from model.precision import settle_precision
from model.predictor import PixelLMPredictor
from utils import dist
from utils.cli.answering import InferenceFlags, ModelFlags


def join_processes(config: InferenceFlags) -> tuple[str, str]:
    """Join the processes of a launcher, if there are several.

    Bad input before it should be met by every process; after it, some may meet it alone.

    Returns:
        the device of this process, and the precision that all can compute in.
    Raises:
        InputError: if each of several processes would have all GPUs.
    """
    if config.device_map and dist.world_size() > 1:
        raise InputError("--device_map is for one process, which has all GPUs; start without torchrun, or leave it out")
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    if dist.world_size() > 1:
        dist.join("gloo", timeout=timedelta(days=1))
    return device, settle_precision(config.precision, device, bits=config.bits, agree=dist.gather_objects)


def model_files(version: str) -> list[list[str | int]]:
    """Name, bytes and time of change of a local model's files, to notice that another one took its place."""
    stats = [(file.name, file.stat()) for file in files_read(version)]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def load_predictor(config: ModelFlags, *, precision: str, device: str | None = None) -> PixelLMPredictor:
    """Read the model as the flags say.

    Args:
        precision: that all processes can compute in.
        device: of this process; without it, and without ``--device_map``, the first GPU, else the CPU.
    Raises:
        InputError: as ``PixelLMPredictor.from_pretrained``.
    """
    return PixelLMPredictor.from_pretrained(
        config.version,
        precision=precision,
        bits=config.bits,
        attn_implementation=config.attn_implementation,
        device=None if config.device_map else device,
        **config.placement,
        vision_tower=config.vision_tower or None,
        conv_type=config.conv_type,
    )
