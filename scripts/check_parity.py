"""Compare this code with recordings of the release: one line per stage, exit code 1 if any differs too much.

python scripts/check_parity.py --golden DIR [--case NAME] [--stage STAGE]
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.errors import InputError
from utils.cli.args import flag, parse
from utils.cli.log import report_input_error, setup_logging
from utils.parity.stages import STAGES, run_stages


@dataclass(frozen=True)
class ParityConfig:
    """Flags of this script."""

    golden: str = flag("", "folder of recordings")
    case: str = flag("", "one case of it; default all")
    stage: str = flag("", f"one of {', '.join(STAGES)}; default all")
    dataset_dir: str = flag("", "tree of val_datasets.json; default real_mini beside --golden, else in ../shared")

    def __post_init__(self) -> None:
        if not self.golden:
            raise InputError("--golden is missing; give a folder of recordings of the release")


def default_tree(golden: Path) -> Path:
    """The real_mini that was recorded with a folder, or the one beside this checkout."""
    beside = golden.parent / "real_mini"
    shared = Path(__file__).resolve().parents[2] / "shared/real_mini"
    return shared if shared.is_dir() and not beside.is_dir() else beside


def main(argv: Sequence[str]) -> int:
    setup_logging()
    logging.getLogger("utils").setLevel(logging.WARNING)
    logging.getLogger("model").setLevel(logging.WARNING)
    all_ok = True
    try:
        config = parse(ParityConfig, argv, "Compare this code with recordings of the release.").config
        golden = Path(config.golden).resolve()
        dataset_dir = Path(config.dataset_dir) if config.dataset_dir else default_tree(golden)
        for result in run_stages(golden, dataset_dir=dataset_dir, case=config.case, stage=config.stage):
            print(result.line(), flush=True)
            all_ok &= result.ok
    except InputError as err:
        return report_input_error(err)
    return 0 if all_ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
