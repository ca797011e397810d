"""Logging: rank 0 speaks, everything else stays quiet; errors of users become one line and exit code 2."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable

from model.errors import InputError
from utils import dist

EXIT_BAD_INPUT = 2
# A launcher stops all processes when the first one exits, so the one that speaks must be first.
_PATIENCE_SECONDS = 20


def setup_logging() -> None:
    """Messages of rank 0 on standard error, time-stamped; warnings and above only from libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("utils", "model", "scripts"):
        logging.getLogger(name).setLevel(logging.INFO if dist.is_main() else logging.ERROR)
    for name in ("DeepSpeed", "torch.distributed", "huggingface_hub", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(deepspeed|peft|torch)(\..*)?")


def report_input_error(err: InputError, *, every_rank: bool = False) -> int:
    """Print what the user has to mend, once for all processes, and give the exit code.

    Args:
        every_rank: true for errors that only one process may meet, such as a bad sample.
    """
    peer_speaks = isinstance(err, dist.StoppedByPeer)
    if peer_speaks or not (dist.is_main() or every_rank):
        time.sleep(_PATIENCE_SECONDS)
    if not peer_speaks:
        print(f"error: {err}", file=sys.stderr, flush=True)
    return EXIT_BAD_INPUT


def exit_code(function: Callable[[], None]) -> int:
    """Run ``function``; 0 if it returns, 2 with one printed line if the input was bad."""
    try:
        function()
    except InputError as err:
        return report_input_error(err)
    return 0


def format_seconds(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
