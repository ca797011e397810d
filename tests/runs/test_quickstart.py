"""What scripts/quickstart.sh takes.

What it shows at its end is in tests/utils/evaluation/test_quickstart_summary.py.
"""

from __future__ import annotations

import re
import shlex

import pytest

from tests.support.launch import run
from utils.cli.args import parse
from utils.demo.flags import DemoConfig


@pytest.mark.parametrize("arguments", [["--dmo"], ["--demo", "--port=1"]])
def test_other_arguments_are_refused_before_anything_is_installed(repository, arguments):
    finished = run(["bash", "scripts/quickstart.sh", *arguments], cwd=repository)
    assert finished.code == 2
    assert not finished.stdout
    assert finished.stderr == f"error: unknown: {' '.join(arguments)}; usage: bash scripts/quickstart.sh [--demo]\n"


def test_the_page_is_started_with_flags_that_it_has(repository):
    script = (repository / "scripts/quickstart.sh").read_text(encoding="utf-8")
    (flags,) = re.findall(r"^  exec python scripts/demo\.py (.*)$", script, re.MULTILINE)
    config = parse(DemoConfig, shlex.split(flags.replace("$RUN", "runs/toy")), "").config
    assert (config.version, config.precision, config.open) == ("runs/toy/hf_model", "fp32", True)
