"""What reading a model takes is measured in fresh processes, and weights that several have mapped count once."""

from __future__ import annotations

import pytest

from model.errors import InputError
from scripts import benchmark
from tests.support.bad_input import refused
from utils.benchmark.loading import load_together

pytestmark = pytest.mark.slow


def test_every_process_counts(parrot, capsys):
    assert benchmark.main(["loading", f"--version={parrot}", "--precision=fp32", "--processes=2"]) == 0
    _, head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "processes"
    assert [row.split()[0] for row in rows] == ["1", "2"]


def test_numbers_of_a_process(parrot):
    (found,) = load_together(str(parrot), "fp32", processes=1)
    assert found.weights == pytest.approx((parrot / "model.safetensors").stat().st_size, rel=0.2)
    assert found.seconds > 0
    assert found.share > found.weights


def test_a_model_that_cannot_be_read(tmp_path, capsys):
    with pytest.raises(InputError, match="no such folder"):
        load_together(str(tmp_path / "none"), "fp32", processes=2)
    refused(benchmark.main, ["loading"], capsys, "--version is missing")
    refused(benchmark.main, ["loading", "--version=x", "--processes=0"], capsys, "--processes is 0")
