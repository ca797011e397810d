"""Logging: rank 0 speaks, everything else stays quiet; errors of users become one line and exit code 2."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
import warnings

from model.errors import InputError
from utils import dist

EXIT_BAD_INPUT = 2
SAID_WHY = "said why"  # the word that a process leaves for others which cannot see its exit code
# A launcher stops all processes when the first one exits, so the one that speaks must be first.
_PATIENCE_SECONDS = 20
# Errors alone. These libraries are imported later, and set the levels of their loggers by these variables then.
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_VERBOSITY": "error", "TORCH_LOGS": "-distributed"}


def setup_logging() -> None:
    """Messages of rank 0 on standard error, time-stamped; warnings and above only from libraries."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a letter, or a file name that is not UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("utils", "model", "scripts"):
        logging.getLogger(name).setLevel(logging.INFO if dist.is_main() else logging.ERROR)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module=r"(deepspeed|peft|torch)(\..*)?")


def report_input_error(err: InputError) -> int:
    """Print what the user has to mend, once for all processes, and give the exit code."""
    speaks = isinstance(err, dist.StoppedHere) or (dist.is_main() and not isinstance(err, dist.StoppedByPeer))
    if speaks:
        dist.note(SAID_WHY)
        print(f"error: {err}", file=sys.stderr, flush=True)
    else:
        time.sleep(_PATIENCE_SECONDS)
    return EXIT_BAD_INPUT
