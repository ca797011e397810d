"""What is not marked slow launches no process, so that `bash scripts/test.sh --fast` stays fast."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset


def run_python() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


def fork_child() -> None:
    multiprocessing.get_context("fork").Process(target=print).start()


def spawn_child() -> None:
    multiprocessing.get_context("spawn").Process(target=print).start()


def fork_bare() -> None:
    if os.fork() == 0:
        os._exit(0)


def read_with_a_worker() -> None:
    next(iter(DataLoader(TensorDataset(torch.arange(2)), num_workers=1)))


LAUNCHES = [
    pytest.param(run_python, id="subprocess"),
    pytest.param(fork_child, id="fork"),
    pytest.param(spawn_child, id="spawn"),
    pytest.param(lambda: multiprocessing.Pool(1), id="pool"),
    pytest.param(fork_bare, id="bare-fork"),
    pytest.param(read_with_a_worker, id="loader-worker"),
]


@pytest.mark.parametrize("launch", LAUNCHES)
def test_a_launch_fails_with_its_remedy(launch: Callable[[], object]):
    with pytest.raises(pytest.fail.Exception, match=r"launches a process: mark it with @pytest\.mark\.slow"):
        launch()


@pytest.mark.slow
def test_slow_tests_may_launch():
    run_python()


def test_everything_under_runs_is_slow(request: pytest.FixtureRequest):
    """Sees what was collected along with this test: all of it in a full run, nothing of tests/runs/ in a fast one."""
    runs = [item for item in request.session.items if "runs" in item.path.relative_to(request.config.rootpath).parts]
    assert all(item.get_closest_marker("slow") for item in runs)
