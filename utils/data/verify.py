"""Check the data of a run: what is missing, where it comes from, and what is damaged.

    python -m utils.data.verify --dataset_dir ./dataset                                      # all of the release
    python -m utils.data.verify --dataset_dir ./dataset --dataset refer_seg --refer_seg_data refcoco --deep
    python -m utils.data.verify --dataset_dir ./dataset --dataset vqa --download

It takes the flags of training: those that name data say what is looked for.
``--download`` first fetches missing files that are public, ``--download_photos`` also archives of tens of thousands of
photos. Without ``--deep`` only names are looked up; training does the same before it loads anything. ``--deep``
draws every mask and opens every photo by the sources that training uses. Exit code 2 if anything is missing or bad.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from utils.cli.args import Parsed
from utils.cli.command import run_command

from .flags import VerifyConfig


def verify(parsed: Parsed[VerifyConfig]) -> None:
    """Print the table and, with ``--deep``, the problems."""
    from .verification import verify as verify_data

    verify_data(parsed.config)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(VerifyConfig, verify, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
