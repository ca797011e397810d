"""Every command that a page shows is one that its script takes: files and flags exist, values are of the right type."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.support.page_commands import check, read_commands
from utils.cli import command as command_lines

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "dataset/README.md"]
PAGES += sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("docs/*.md"))
PAGES += sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("benchmarks/*.md"))
FOUND = {page: read_commands((REPOSITORY / page).read_text(encoding="utf-8")) for page in PAGES}
WRONG = """
python nothing.py
python train_ds.py --nothing
python train_ds.py --epochs many
python train_ds.py --lr
python train_ds.py --config configs/nothing.json
deepspeed --num_gpus two train_ds.py
deepspeed --nothing train_ds.py
torchrun --nothing 2 train_ds.py
python scripts/benchmark.py nothing
python -m utils.data.verify --deep yes
bash scripts/test.sh --nothing
bash scripts/nothing.sh
pixellm-nothing --help
pixellm-chat --nothing
sbatch scripts/train_slurm.sh --lr much
cd runs && python zero_to_fp32.py . --nothing
printf 'x' | python chat.py --vesrion FOLDER
CUDA_VISIBLE_DEVICES="" python chat.py --vesrion FOLDER
python chat.py \\
      --vesrion FOLDER
"""


@pytest.fixture
def console_scripts() -> dict[str, str]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line is read to its end, and bad input is raised."""
    monkeypatch.setattr(command_lines, "_run", lambda function, parsed: 0)
    monkeypatch.setattr(command_lines, "_guard", lambda run: run())
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize("page", [page for page in PAGES if FOUND[page]], ids=lambda page: f"{page}-{len(FOUND[page])}")
def test_the_commands_of_a_page_are_understood(page: str, console_scripts: dict[str, str]):
    for command in FOUND[page]:
        try:
            check(command, REPOSITORY, console_scripts)
        except (Exception, SystemExit) as err:
            raise AssertionError(f"{page} shows: {command}") from err


def test_there_are_as_many_as_a_reader_sees():
    number = sum(map(len, FOUND.values()))
    print(f"{number} commands on {len(PAGES)} pages")
    assert number >= 160


@pytest.mark.parametrize("line", re.split(r"\n(?! )", WRONG.strip()))
@pytest.mark.parametrize("form", ["```bash\n{}\n```\n", "1. Do:\n\n   ```\n   {}\n   ```\n", "Say\n\n    {}\n"])
def test_a_wrong_command_is_noticed(line: str, form: str, console_scripts: dict[str, str]):
    (command,) = read_commands(form.format(line))
    with pytest.raises((Exception, SystemExit)):
        check(command, REPOSITORY, console_scripts)


def test_commands_between_back_ticks_are_read_too():
    page = "or `python train_ds.py --config\n  configs/a.json ...`, not `pip install x`, `--lr` or `python -c 'x'`."
    assert list(map(str, read_commands(page))) == ["train_ds.py --config configs/a.json"]
