"""Libraries that a command imports after its logging is set up tell errors alone."""

from __future__ import annotations

import json
import logging

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
