"""``--compile``: the blocks of the language model, compiled by torch."""

from __future__ import annotations

import logging
import os
import shutil

from model.errors import InputError
from model.PixelLM import PixelLMForCausalLM
from utils.cli.config import RunConfig

from .deepspeed_config import deepspeed_settings, shards_parameters

logger = logging.getLogger(__name__)


def check_compile(run: RunConfig) -> None:
    """Refuse ``--compile`` where it cannot work.

    Raises:
        InputError: with ZeRO-3, whose hooks fetch weights while a block runs, or without a C++ compiler.
    """
    if not run.compile:
        return
    if shards_parameters(deepspeed_settings(run)):
        raise InputError(
            f"--compile does not go with ZeRO-3, which --deepspeed_config {run.deepspeed_config} asks for: weights are "
            "fetched while a block runs; leave --compile out, or take stage 2"
        )
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise InputError(
            f"--compile needs a C++ compiler, and {compiler} is not found; install g++, name another one in the "
            "environment variable CXX, or leave --compile out"
        )


def compile_blocks(network: PixelLMForCausalLM, *, backend: str = "inductor") -> None:
    """Have each block of the language model compiled when it first runs, for rows of any length, in place.

    Names of weights stay, and blocks share what is compiled, because they are alike.

    Args:
        backend: of torch.compile.
    """
    for block in network.model.layers:
        block.compile(dynamic=True, backend=backend)
    logger.info("--compile: the first update takes longer, by up to some minutes")
