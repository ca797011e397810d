"""Draw the curves of one run or of several into a picture, also while they go on.

    python scripts/plot_run.py runs/a runs/b --output curves.png

It reads log.jsonl of each run and nothing else: losses, learning rate, validation scores and speed over the updates.
Without --output, the picture is curves.png in the first run's folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from model.errors import InputError
from model.values import Text
from utils.cli.args import Parsed, flag, settings
from utils.cli.command import run_command


@settings
class PlotConfig:
    """What is drawn."""

    runs: tuple[Text, ...] = flag((), "folders of runs", positional=True)
    output: Text = flag("", "picture to write, .png or .jpg")

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError("no run is named; give the folders of runs, such as runs/pixellm")


def plot(parsed: Parsed[PlotConfig]) -> None:
    """Read the logs, and write the picture."""
    from utils.training.plot import plot_runs

    config = parsed.config
    output = config.output or str(Path(config.runs[0]) / "curves.png")
    plot_runs(config.runs, output)
    print(f"{output}: {', '.join(config.runs)}")


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(PlotConfig, plot, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
