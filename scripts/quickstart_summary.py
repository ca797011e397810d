"""What quickstart.sh shows at its end, and which held-out image it chats about."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from utils.cli.args import Parsed, flag, settings
from utils.cli.command import run_commands


@settings
class ExampleFlags:
    """The held-out image and question that the quickstart chats about, as IMAGE|QUESTION."""

    dataset_dir: str = flag("toy_world/dataset", "dataset tree")


@settings
class TableFlags:
    """Times, loss and scores of a run, and the report of its evaluation."""

    run: str = flag("runs/toy", "run directory")


def show_example(parsed: Parsed[ExampleFlags]) -> None:
    from utils.evaluation.quickstart import example

    print(example(parsed.config.dataset_dir))


def show_table(parsed: Parsed[TableFlags]) -> None:
    from utils.evaluation.quickstart import table

    print(table(Path(parsed.config.run)))


COMMANDS = {"example": (ExampleFlags, show_example), "table": (TableFlags, show_table)}


def main(argv: Sequence[str] | None = None) -> int:
    return run_commands(COMMANDS, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
