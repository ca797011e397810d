"""The released command line on a GPU, with DeepSpeed: it trains, saves, goes on and is merged."""

from __future__ import annotations

import pytest

from tests.support.launch import TRAIN_FLAGS, python

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("gpu")]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_trains_and_goes_on(repository, tiny_world, tmp_path, precision):
    for library in ("deepspeed", "pycocotools", "tensorboard"):
        pytest.importorskip(library, reason=f"needs {library}, as training does")
    flags = [*tiny_world.arguments, *TRAIN_FLAGS, f"--log_base_dir={tmp_path}", f"--precision={precision}"]
    for epochs in (1, 2):
        finished = python("train_ds.py", *flags, f"--epochs={epochs}", cwd=repository)
        assert finished.code == 0, finished.text
    assert list(tmp_path.glob("*/ckpt_model/global_step4"))
