"""What scripts/quickstart.sh takes.

What it shows at its end is in tests/utils/evaluation/test_quickstart_summary.py.
"""

from __future__ import annotations

import pytest

from tests.support.launch import run


@pytest.mark.parametrize("arguments", [["--dmo"], ["--demo", "--port=1"]])
def test_other_arguments_are_refused_before_anything_is_installed(repository, arguments):
    finished = run(["bash", "scripts/quickstart.sh", *arguments], cwd=repository)
    assert finished.code == 2
    assert not finished.stdout
    assert finished.stderr == f"error: unknown: {' '.join(arguments)}; usage: bash scripts/quickstart.sh [--demo]\n"
