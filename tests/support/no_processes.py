"""Makes the launch of a process a failure, for the tests that `bash scripts/test.sh --fast` runs."""

from __future__ import annotations

import os
import subprocess
from multiprocessing.process import BaseProcess
from typing import NoReturn

import pytest

# What everything else ends in: subprocess.run, pools, spawned and forked children, the workers of a DataLoader.
_LAUNCHERS = ((subprocess.Popen, "__init__"), (BaseProcess, "start"), (os, "fork"))


def forbid_processes(patch: pytest.MonkeyPatch) -> None:
    """Until ``patch`` is undone, whatever launches a process fails the test with the remedy."""

    def refuse(*_: object, **__: object) -> NoReturn:
        pytest.fail("this test launches a process: mark it with @pytest.mark.slow")

    for owner, name in _LAUNCHERS:
        patch.setattr(owner, name, refuse)
