"""Libraries that a command imports after its logging is set up tell errors alone."""

from __future__ import annotations

import json
import logging

import pytest

from tests.support.launch import python

_LEVELS = """
import json, logging
from utils.cli.log import setup_logging
setup_logging()
import torch.distributed, transformers, huggingface_hub
names = ("torch.distributed.distributed_c10d", "transformers.modeling_utils", "huggingface_hub.file_download")
print(json.dumps([logging.getLogger(name).getEffectiveLevel() for name in names]))
"""


def test_late_imports_keep_quiet(repository, monkeypatch):
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY", "TORCH_LOGS"):
        monkeypatch.delenv(name, raising=False)
    finished = python("-c", _LEVELS, cwd=repository)
    assert json.loads(finished.stdout) == [logging.ERROR] * 3, finished.text
    assert not finished.stderr


_QUANTIZE = """
import sys
import torch
from utils.cli.log import setup_logging
setup_logging()
from model.predictor import PixelLMPredictor
from utils.training.lora import wrap_lora
how = sys.argv[2]
if how == "quantize":
    PixelLMPredictor.from_pretrained(sys.argv[1], precision="bf16", bits=4)
else:
    network = PixelLMPredictor.from_pretrained(sys.argv[1]).model
    wrap_lora(network, rank=2, alpha=2, dropout=0, names=["q_proj"])
assert "bitsandbytes" in sys.modules
import kernels  # it is still there for others
print(kernels.fetched)
"""


@pytest.mark.parametrize("how", ["quantize", pytest.param("wrap", marks=pytest.mark.long)])
def test_bitsandbytes_fetches_no_kernel_and_keeps_quiet(repository, parrot, tmp_path, monkeypatch, how):
    """It does both on CPUs with AVX512-BF16, also when peft imports it."""
    fake = "fetched = []\n\ndef get_kernel(*args, **options):\n    fetched.append(args)\n    raise OSError\n"
    (tmp_path / "kernels.py").write_text(fake, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{repository}:{tmp_path}")
    finished = python("-c", _QUANTIZE, str(parrot), how, cwd=repository)
    assert finished.stdout == "[]\n", finished.text
    assert "gemm_4bit" not in finished.stderr
