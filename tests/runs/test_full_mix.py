"""The released mix: every dataset of the tree at once, with several processes and loader workers."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.fork_server import ForkServer
from tests.support.launch import NUM_PROCESSES, TRAIN_FLAGS
from tests.support.tiny_data import SHARED
from tests.support.tiny_world import TinyWorld
from tests.support.whole_tree import write_whole_tree
from utils.cli.args import parse
from utils.cli.config import RunConfig

REAL_MINI = SHARED / "real_mini"
# On top of the README's command: gRefCOCO and reason_seg, and sizes that a test can afford.
CHANGES = (
    "--dataset=sem_seg||refer_seg||vqa||multi_reason_seg||reason_seg", "--sample_rates=2,9,2,4,1",
    "--refer_seg_data=refclef||refcoco||refcoco+||refcocog||grefcoco", "--workers=4", "--epochs=1",
    "--steps_per_epoch=6", "--grad_accumulation_steps=2", "--model_max_length=1000", "--preprocessor_config=",
    "--no_resize_vision_tower", "--out_dim=32", "--precision=fp32",
    "--val_dataset=ReasonSeg|val||multirefcoco|unc|val||MultiReasonSeg|test_many",
)  # fmt: skip
SOURCES = (
    "ade20k", "cocostuff", "pascal_part", "paco_lvis", "mapillary", "refclef", "refcoco", "refcoco+", "refcocog",
    "grefcoco", "llava_instruct_150k", "multi_reason_seg", "ReasonSeg|train",
)  # fmt: skip


def readme_arguments(repository: Path) -> list[str]:
    """Flags of the README's training command."""
    blocks = re.findall(
        r"```bash\n(deepspeed .*?)```", (repository / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    words = shlex.split(blocks[0].replace("\\\n", " "))
    return words[words.index("train_ds.py") + 1 :]


def test_the_readme_and_the_shipped_configuration_agree(repository):
    readme = parse(RunConfig, readme_arguments(repository), "").config
    assert (readme.dataset, readme.sample_rates) == ("sem_seg||refer_seg||vqa||multi_reason_seg", "2,9,2,4")
    shipped = parse(RunConfig, ["--config", str(repository / "configs/pixellm_7b.json")], "").config
    ours = {"version": readme.version, "val_dataset": readme.val_dataset, "preprocessor_config": "",
            "vision_tower_for_mask": True}  # fmt: skip
    assert replace(shipped, **ours) == replace(readme, preprocessor_config="")


@pytest.mark.parametrize("data", ["drawn", "real_mini"])
def test_the_released_mix_trains(tiny_world: TinyWorld, forks: ForkServer, repository, tmp_path, data):
    if data == "real_mini" and not REAL_MINI.is_dir():
        pytest.skip(f"{REAL_MINI} is not here")
    dataset_dir = REAL_MINI if data == "real_mini" else write_whole_tree(tmp_path / "dataset")
    own = [*tiny_world.arguments, f"--dataset_dir={dataset_dir}", f"--log_base_dir={tmp_path}", "--exp_name=run"]
    flags = [*readme_arguments(repository), *CHANGES, *own]
    finished = forks.python("train_ds.py", *flags, processes=NUM_PROCESSES)
    assert finished.code == 0, finished.text
    for name in SOURCES:
        assert f"{name} (" in finished.text
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["update"] for record in log if "lr" in record] == [1, 2, 3, 4, 5, 6]
    assert sum(record["masks"] for record in log if "lr" in record) > 20
    assert not any(record.get("skipped") for record in log)
    validated = [record["val"] for record in log if "val" in record]
    assert validated == ["ReasonSeg|val", "multirefcoco|unc|val", "MultiReasonSeg|test_many"]


def test_an_epoch_may_be_every_sample_once(tiny_world: TinyWorld, forks: ForkServer, tmp_path):
    """2 photos of refcoco and 3 of MUSE, 2 images per update: 3 updates, whatever --steps_per_epoch says."""
    flags = [*tiny_world.arguments, *TRAIN_FLAGS, f"--log_base_dir={tmp_path}", "--exp_name=run", "--no_eval"]
    finished = forks.python("train_ds.py", *flags, "--epoch_mode=all", "--steps_per_epoch=50")
    assert finished.code == 0, finished.text
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["update"] for record in log] == [1, 2, 3, 4, 5, 6]
    assert json.loads((tmp_path / "run/run_config.json").read_text())["steps_per_epoch"] == 3
    assert (tmp_path / "run/ckpt_model/latest").is_file()
