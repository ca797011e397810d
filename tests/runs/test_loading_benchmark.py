"""What reading a model takes is measured in fresh processes, and weights that several have mapped count once."""

from __future__ import annotations

import pytest

from scripts import benchmark
from tests.support.bad_input import refused
from utils.benchmark.loading import load_together

pytestmark = pytest.mark.slow


def test_every_process_reads_the_whole_model(parrot):
    for found in load_together(str(parrot), "fp32", processes=2):
        assert found.weights == pytest.approx((parrot / "model.safetensors").stat().st_size, rel=0.2)
        assert found.seconds > 0
        assert found.share > found.weights / 2


def test_the_table(parrot, capsys):
    assert benchmark.main(["loading", f"--version={parrot}", "--precision=fp32", "--processes=1"]) == 0
    _, head, row = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "processes"
    assert row.split()[0] == "1"


def test_a_model_that_cannot_be_read(tmp_path, capsys):
    refused(benchmark.main, ["loading", f"--version={tmp_path / 'none'}", "--processes=1"], capsys, "no such folder")
    refused(benchmark.main, ["loading"], capsys, "--version is missing")
    refused(benchmark.main, ["loading", "--version=x", "--processes=0"], capsys, "--processes is 0")
