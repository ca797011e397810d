"""Several processes evaluate as one: they agree on a precision, and one of them speaks."""

from __future__ import annotations

import json

import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="processes without a GPU")
def test_processes_agree_on_a_precision_and_on_what_is_bad(forks, parrot, tiny_world, tmp_path):
    flags = [f"--dataset_dir={tiny_world.dataset}", "--max_new_tokens=20", "--limit=2", "--precision=auto"]
    output = f"--output_dir={tmp_path / 'out'}"
    command = ("scripts/evaluate.py", *flags, output)
    finished = forks.python(*command, f"--version={parrot}", processes=2)
    assert finished.code == 0, finished.text
    assert finished.text.count("--precision auto: fp32, because") == 1
    results = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    assert results["settings"]["precision"] == "fp32"
    refused = forks.python(*command, "--version=/nowhere/model", processes=2)
    assert refused.code == 2
    assert len(refused.errors) == 1
