"""Compare this code with recordings of the release: one line per stage, exit code 1 if any differs too much.

python scripts/check_parity.py --golden DIR [--case NAME] [--stage STAGE]
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from model.errors import InputError
from utils.cli.args import Parsed, flag, settings
from utils.cli.command import run_command
from utils.parity.stage_names import STAGE_NAMES

# Kernels for other processors, and other numbers of threads, add up in other orders. That moves the smallest gradients
# of the recorded step, which are a millionth of the largest, by up to twice their limit (docs/log.md). With these, read
# when torch is loaded, a result is the same wherever it is computed.
_SAME_KERNELS = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
}


@settings
class ParityConfig:
    """Flags of this script."""

    golden: str = flag("", "folder of recordings")
    case: str = flag("", "one case of it; default all")
    stage: str = flag("", f"one of {', '.join(STAGE_NAMES)}; default all")
    dataset_dir: str = flag("", "tree of val_datasets.json; default real_mini beside --golden, else in ../shared")

    def __post_init__(self) -> None:
        if not self.golden:
            raise InputError("--golden is missing; give a folder of recordings of the release")
        if self.stage and self.stage not in STAGE_NAMES:
            raise InputError(f"--stage {self.stage} is unknown; expected one of {', '.join(STAGE_NAMES)}")


def default_tree(golden: Path) -> Path:
    """The real_mini that was recorded with a folder, or the one beside this checkout."""
    beside = golden.parent / "real_mini"
    shared = Path(__file__).resolve().parents[2] / "shared/real_mini"
    return shared if shared.is_dir() and not beside.is_dir() else beside


def check(parsed: Parsed[ParityConfig]) -> int:
    """Print a line per stage; 1 if any differs too much."""
    os.environ.update(_SAME_KERNELS)
    from utils.parity.stages import run_stages

    for name in ("utils", "model"):
        logging.getLogger(name).setLevel(logging.WARNING)
    config, all_ok = parsed.config, True
    golden = Path(config.golden).absolute()
    dataset_dir = Path(config.dataset_dir) if config.dataset_dir else default_tree(golden)
    for result in run_stages(golden, dataset_dir=dataset_dir, case=config.case, stage=config.stage):
        print(result.line(), flush=True)
        all_ok &= result.ok
    return 0 if all_ok else 1


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(ParityConfig, check, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
