"""The data commands of docs/data.md and dataset/README.md run as they stand there, on a small tree."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.support.tiny_world import TinyWorld

REPOSITORY = Path(__file__).resolve().parents[2]
SOME = "--dataset multi_reason_seg --sample_rates 1"  # the small tree has no more of the released mixture


def commands() -> list[str]:
    found = []
    for page in ("docs/data.md", "dataset/README.md"):
        blocks = re.findall(r"^```bash\n(.*?)^```", (REPOSITORY / page).read_text(encoding="utf-8"), re.M | re.DOTALL)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        found += [line for line in lines if re.search(r"utils\.data|preview_data|scripts/benchmark", line)]
    return found


def test_the_pages_have_their_commands():
    assert len(commands()) == 6


@pytest.mark.parametrize("number", range(len(commands())))
def test_the_commands_run(number, tiny_world: TinyWorld, forks, tmp_path):
    line = commands()[number].split("#")[0].replace("./dataset", str(tiny_world.dataset))
    line = line.replace("preview.png", str(tmp_path / "preview.png"))
    complete = "--refer_seg_data refcoco " in line
    if "preview_data" in line or "scripts/benchmark" in line:
        line += f" {SOME} --num 2"
    program, *arguments = shlex.split(line)
    assert program == "python"
    # A proxy that is not there: what is public takes hours to download.
    nowhere = "127.0.0.1:9"
    done = forks.python(*arguments, environment={"http_proxy": nowhere, "https_proxy": nowhere})
    if "utils.data.verify" in line and not complete:
        assert done.code == 2, "most of the tree is not there"
        assert "downloads are missing or incomplete: ADE20K" in done.errors[0]
        assert "ok      MUSE train" in done.stdout
    else:
        assert done.code == 0, done.text
