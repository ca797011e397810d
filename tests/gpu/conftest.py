"""What these tests run on. Without a GPU they are skipped: scripts/gpu_check.sh runs them where there is one."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A CUDA GPU that computes float32 as such."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.device("cuda")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The same; with ``--gpu_tests_on_cpu`` the CPU, to try a test itself."""
    if request.config.getoption("--gpu_tests_on_cpu"):
        return torch.device("cpu")
    return request.getfixturevalue("gpu")
