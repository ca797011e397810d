"""A page in the browser: drop a photo, ask about it, and see the answer in the colors of its masks.

    python scripts/demo.py --version FOLDER

Ctrl-C ends it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from utils.cli.args import Parsed
from utils.cli.command import ending_at_an_interrupt, run_command
from utils.demo.flags import DemoConfig


def demo(parsed: Parsed[DemoConfig]) -> None:
    """Serve the page until it is ended."""
    with ending_at_an_interrupt():
        from utils.demo.serve import prepare, serve

        prepared = prepare(parsed)
    serve(prepared)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(DemoConfig, demo, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
