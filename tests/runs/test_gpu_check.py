"""scripts/gpu_check.sh: everything about a GPU in one file, whatever fails; its way without a GPU runs here."""

from __future__ import annotations

import re
import stat
import sys
from pathlib import Path

import pytest

from tests.support.launch import run

# A Python on a machine with a GPU, for which every part ends as the lines below say.
MACHINE = """#!/usr/bin/env bash
case "$*" in
  *utils.cli.env*) echo "gpu 0: NVIDIA H100 80GB HBM3, 79.2 GiB" ;;
  *pytest*) echo "{tests}"; exit {code} ;;
  *flex_attention*) echo "a line" >&2; echo "error: it did not | compile" >&2; exit 2 ;;
  *3000x2000*) kill -9 $$ ;;
  *benchmark.py*) echo "| a | table |" ;;
  -) echo "deepspeed gradio" ;;
esac
"""


def check(repository: Path, *options: str | Path, python: Path | str = sys.executable):
    return run(["env", f"PYTHON={python}", "bash", "scripts/gpu_check.sh", *options], cwd=repository, timeout=660)


@pytest.fixture
def machine(tmp_path):
    def make(tests: str, code: int) -> Path:
        file = tmp_path / "python"
        file.write_text(MACHINE.replace("{tests}", tests).replace("{code}", str(code)), encoding="utf-8")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        return file

    return make


def rows(file: Path) -> dict[str, str]:
    """Part -> result, of the first table."""
    lines = re.findall(r"^\| (.*?) \| (.*) \| [-\d]+ \|$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(lines)


@pytest.mark.long
def test_the_way_without_a_gpu_writes_the_file(repository, tmp_path):
    file = tmp_path / "out/cpu.md"
    finished = check(repository, "--cpu", "--output", file)
    assert finished.code == 0, finished.text
    found = rows(file)
    assert re.match(r"\d+ passed, \d+ skipped", found["tests"])
    assert found["updates"] == "done"
    text = file.read_text(encoding="utf-8")
    assert re.search(r"^\| shared prefix, kept activations \| \d", text, re.MULTILINE)
    assert re.search(r"^torch: +\d", text, re.MULTILINE)
    assert "needs a GPU" in text, "what was skipped is said"


def test_a_part_that_fails_is_a_line_with_its_reason(repository, tmp_path, machine):
    file = tmp_path / "gpu.md"
    finished = check(repository, "--output", file, python=machine("9 passed in 3.00s", 0))
    assert finished.code == 0, finished.text
    found = rows(file)
    assert found["packages"].startswith("not installed: deepspeed gradio;")
    assert found["tests"] == "9 passed in 3.00s"
    assert found["updates"] == "done"
    assert found["updates with flex_attention"] == r"failed: error: it did not \| compile"
    assert found["updates on a photo of 3000x2000 with 6 conversations and 66 masks"].startswith("killed")
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# Checked and measured: NVIDIA H100 80GB HBM3\n")
    assert found["answers"] == "done"
    assert text.count("| a | table |") == 3, "of plain updates, of compiled blocks and of answers"


def test_a_test_that_fails_is_the_exit_code(repository, tmp_path, machine):
    finished = check(repository, "--output", tmp_path / "gpu.md", python=machine("1 failed, 8 passed in 3.00s", 1))
    assert finished.code == 1, finished.text
    found = rows(tmp_path / "gpu.md")
    assert found["tests"] == "failed: 1 failed, 8 passed in 3.00s"
    assert found["updates"] == "done"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--gpus"], "there is no option --gpus"),
        (["--size"], "--size has no value"),
        (["--size", "70b"], "--size is 70b; expected 7b or 13b"),
        (["--wheels", "/nowhere"], "--wheels /nowhere has no wheels"),
    ],
)
def test_wrong_options(repository, options, says):
    finished = check(repository, *options)
    assert finished.code == 2
    assert [line.split(";")[0] for line in finished.errors] == [f"error: {says.split(';')[0]}"]


@pytest.mark.parametrize("broken", ["exit 1", "echo 'gpus: none'"])
def test_without_a_gpu_it_says_what_works(repository, tmp_path, machine, broken):
    file = machine("", 0)
    file.write_text(re.sub(r"env\*\) .*", f"env*) {broken} ;;", file.read_text(encoding="utf-8")), encoding="utf-8")
    finished = check(repository, "--output", tmp_path / "gpu.md", python=file)
    assert finished.code == 2
    assert not (tmp_path / "gpu.md").exists()
    assert ("deepspeed gradio" if broken == "exit 1" else "--cpu") in finished.errors[0]


def test_all_parts_together_take_less_than_ten_minutes(repository):
    text = (repository / "scripts/gpu_check.sh").read_text(encoding="utf-8")
    on_gpu = text.split("\nelse\n", 1)[1]
    limits = re.findall(r'^ *(?:part|updates) "[^"]+" (\d+)', on_gpu, re.MULTILINE)
    assert len(limits) == 6
    assert sum(map(int, limits)) <= 560, "and the rest is to look at the machine"
