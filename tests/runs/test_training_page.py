"""docs/training.md: its commands run as they stand there, and the batch is learned."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.support.toy_curves import curve_of, read_curve
from utils.training.overfit import LEARNED, NAME

PAGE = Path(__file__).resolve().parents[2] / "docs/training.md"
SECTION = PAGE.read_text(encoding="utf-8").split("\n## My run does not learn\n")[1]
(COMMANDS,) = re.findall(r"^```bash\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
CODE = ("configs", "model", "scripts", "utils", "train_ds.py")


@pytest.fixture(scope="module")
def place(tmp_path_factory, forks, repository) -> Path:
    """Where the commands ran: a folder with the code of the repository."""
    place = tmp_path_factory.mktemp("page")
    for name in CODE:
        (place / name).symlink_to(repository / name)
    for line in COMMANDS.replace("\\\n", " ").strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "python"
        done = forks.python(*arguments, cwd=place)
        assert done.code == 0, done.text
        (place / "told.txt").write_text(done.text, encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def scores(place) -> list[float]:
    lines = (place / "runs/pixellm-overfit/log.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["giou"] for record in map(json.loads, lines) if record.get("val") == NAME]


def test_one_batch_is_learned(place, scores):
    """Measured: 0.20, 0.65, 0.93 and 0.96 after 20, 40, 60 and 80 updates."""
    assert len(scores) == 4
    assert scores[0] < LEARNED < scores[-1]
    assert re.search(r"mask IoU 0\.9\d+ on \d+ masks after 80 updates: this set-up learns", told(place))


def told(place: Path) -> str:
    return (place / "told.txt").read_text(encoding="utf-8")


def test_a_healthy_check_is_not_warned(place):
    assert "It usually means" not in told(place)


def test_five_updates_follow_the_reference_curve(place, forks, tmp_path):
    """What the page says of benchmarks/toy_curves.json, in the world of its commands."""
    world = [f"--version={place}/toy_world/llava-toy", f"--vision-tower={place}/toy_world/clip-toy"]
    flags = [*world, f"--dataset_dir={place}/toy_world/dataset", "--config=configs/tiny_cpu.json", "--exp_name=five"]
    own = ["--epochs=1", "--steps_per_epoch=5", f"--log_base_dir={tmp_path}", "--report_to=none"]
    finished = forks.python("train_ds.py", *flags, *own)
    assert finished.code == 0, finished.text
    found, expected = curve_of(tmp_path / "five"), read_curve("five_updates")
    for part, values in expected.items():
        assert found[part] == pytest.approx(values, rel=1e-3, abs=1e-4), part


def test_the_samples_of_the_check_can_be_looked_at(place, forks, scores):
    flags = ["--config=runs/pixellm-overfit/run_config.json", "--num=1", "--out=preview.png"]
    done = forks.python("scripts/preview_data.py", *flags, cwd=place)
    assert done.code == 0, done.text
    assert (place / "preview.png").is_file()
