"""What a start may do with a run directory that it finds; a refused one leaves every byte as it was."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train_ds
from model.errors import InputError
from tests.support.bad_input import refused
from utils.cli.args import parse
from utils.cli.config import RunConfig
from utils.training.checkpoints import Contents, check_free_space, num_to_come
from utils.training.run_description import RunDescription
from utils.training.run_directory import RunDirectory
from utils.training.run_lock import LOCK_FILE, RunLock
from utils.training.start import resolve_run_flags
from utils.training.steps import step_names

FLAGS = ("--dataset=custom", "--sample_rates=1", "--lora_alpha=32", "--epochs=3", "--seed=5")


@pytest.fixture
def runs(tmp_path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def used(runs) -> RunDirectory:
    """A run that was started with FLAGS and saved update 2."""
    run = parse(RunConfig, [*FLAGS, f"--log_base_dir={runs}", "--exp_name=x"], "").config
    directory = RunDirectory.of(run)
    step = directory.checkpoints / "global_step2"
    for folder in (directory.path, step):
        RunDescription(folder).write_flags(run)
    torch.save({}, step / "mp_rank_00_model_states.pt")  # as versions before manifests left it
    (directory.checkpoints / "latest").write_text("global_step2")
    return directory


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start(runs: Path, *flags: str) -> RunConfig:
    """The flags of a start under the used name."""
    return resolve_run_flags(parse(RunConfig, [*FLAGS, f"--log_base_dir={runs}", "--exp_name=x", *flags], ""))


@pytest.fixture
def refuses(runs, capsys, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def check(*says: str, flags: tuple[str, ...] = (), name: str = "x") -> None:
        before = contents(runs)
        arguments = [*FLAGS, f"--log_base_dir={runs}", f"--exp_name={name}", *flags]
        refused(train_ds.main, arguments, capsys, *says)
        assert contents(runs) == before

    return check


def test_a_new_run_under_a_used_name_is_refused(used, refuses):
    remedies = (f"--resume {used.checkpoints}", "another --exp_name", "--overwrite_run")
    refuses("holds global_step2", "--no_auto_resume would replace", *remedies, flags=("--no_auto_resume",))
    refuses("but --resume goes on with /other/ckpt_model", *remedies, flags=("--resume=/other/ckpt_model",))


def test_a_run_that_starts_from_another_model_is_refused(used, parrot, refuses):
    remedies = (f"--resume {used.checkpoints}", "another --exp_name", "--overwrite_run")
    refuses(f"started from a LLaVA base, not {parrot}", *remedies, flags=(f"--init_from={parrot}",))


def test_the_model_that_a_run_started_from_may_have_moved(used, parrot, runs):
    now = start(runs, f"--init_from={parrot}")
    step = used.checkpoints / "global_step2"
    RunDescription(step).write_flags(replace(now, init_from=f"gone/{parrot.name}"))
    assert used.check_start(now) == step
    RunDescription(step).write_flags(replace(now, init_from=str(runs)))
    with pytest.raises(InputError, match=f"which started from {runs}, not"):
        used.check_start(now)


def test_if_no_checkpoint_is_whole_nothing_is_replaced(used, refuses):
    (used.checkpoints / "global_step10").mkdir()
    (used.checkpoints / "global_step2/mp_rank_00_model_states.pt").unlink()
    refuses("no checkpoint of", "is whole", "global_step10 is damaged: it has no manifest.json", "--exp_name")


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--lora_alpha=640", "--lora_alpha is 640, but {step} was trained with 32"),
        ("--conv_type=llava_llama_2", "--conv_type is 'llava_llama_2', but {step} was trained with 'llava_v1'"),
        ("--seed=6", "--seed is 6, but {step} was trained with 5, and the stream of samples depends on it"),
        ("--no_train_mask_decoder", "resume with --train_mask_decoder, or choose another --exp_name"),
        ("--custom_data=a.jsonl", "resume with no --custom_data"),
        ("--optimizer=muon", "resume with --optimizer=adamw"),
    ],
)
def test_a_resume_may_not_change_what_checkpoint_or_samples_depend_on(used, refuses, flag, says):
    refuses(says.format(step=used.checkpoints / "global_step2"), flags=(flag,))


def test_the_checkpoint_of_another_run_keeps_its_flags_too(used, refuses):
    refuses("--lora_r is 4", f"{used.checkpoints}", flags=("--lora_r=4", f"--resume={used.checkpoints}"), name="y")
    refuses("holds no checkpoint; give the ckpt_model folder", flags=("--resume=/nowhere/ckpt_model",), name="y")


def test_the_checkpoint_counts_and_not_the_last_start(used, runs):
    """The copy in the run directory may be of a start that never saved."""
    used.description.write_flags(start(runs, "--lora_alpha=640"))
    used.check_start(start(runs))
    for file in ("run_config.json", "ckpt_model/global_step2/run_config.json"):
        assert (used.path / file).is_file()
    (used.checkpoints / "global_step2/run_config.json").unlink()
    with pytest.raises(InputError, match=r"--lora_alpha is 32, but .* was trained with 640"):
        used.check_start(start(runs))


def test_harmless_changes_are_allowed(used, runs):
    changed = ("--lr=0.1", "--epochs=9", "--batch_size=7", "--workers=0", "--precision=fp32", "--no_eval")
    used.check_start(start(runs, *changed, "--version=/other", "--dataset_dir=/other", "--vision_tower=/other"))


def test_validation_alone_needs_no_samples(used, runs):
    used.check_start(start(runs, "--eval_only", "--seed=6", "--dataset=vqa"))
    with pytest.raises(InputError, match="--lora_r is 4"):
        used.check_start(start(runs, "--eval_only", "--lora_r=4"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "expected a folder below --log_base_dir"),
        (".", "expected a folder below --log_base_dir"),
        ("..", "expected a folder below --log_base_dir"),
        ("a/../../b", "expected a folder below --log_base_dir"),
        ("/tmp/elsewhere", "expected a folder below --log_base_dir"),
        ("x" * 300, "expected names of at most 255 bytes"),
        ("a/" + "é" * 128, "expected names of at most 255 bytes"),
    ],
)
def test_a_run_stays_inside_the_folder_of_runs(refuses, runs, name, says):
    refuses("--exp_name is ", says, name=name)
    assert not runs.exists()


def test_a_name_may_have_parts():
    assert RunConfig(exp_name="a/b").run_dir == Path("runs/a/b")


def test_a_folder_of_runs_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "runs").write_text("mine")
    refused(
        train_ds.main, [*FLAGS, f"--log_base_dir={tmp_path / 'runs'}"], capsys, "cannot be written", "--log_base_dir"
    )
    assert (tmp_path / "runs").read_text() == "mine"


def test_an_overwritten_run_is_set_aside_whole(used, runs):
    (runs / "x.old-1").mkdir()
    before = contents(used.path)
    used.check_start(start(runs, "--overwrite_run", "--lora_alpha=640"))
    lock = RunLock.take(used.path)
    used.set_aside(lock)
    assert contents(runs / "x.old-2") == before
    assert [path.name for path in used.path.iterdir()] == [LOCK_FILE]
    used.set_aside(lock)  # what is empty stays
    lock.check()
    lock.release()
    assert sorted(path.name for path in runs.iterdir()) == ["x.old-1", "x.old-2"]


@pytest.mark.parametrize("flag", ["--resume=ckpt_model", "--version=base"])
def test_nothing_is_set_aside_that_the_new_run_needs(used, refuses, flag):
    name, _, folder = flag.partition("=")
    refuses(f"{name} {used.path / folder} lies in", flags=("--overwrite_run", f"{name}={used.path / folder}"))


def test_validation_sets_no_run_aside(used, refuses):
    refuses("--eval_only trains nothing", flags=("--overwrite_run", "--eval_only"))


def test_data_that_are_missing_set_no_run_aside(used, refuses):
    refuses("--custom_data", flags=("--overwrite_run",))


def test_steps_are_in_order_of_their_numbers(used):
    for name in ("global_step10", "global_step2.bak"):
        (used.checkpoints / name).mkdir()
    assert step_names(used.checkpoints) == ["global_step2", "global_step10"]
    assert step_names(used.path / "nothing") == []


NOTHING_ELSE = Contents(frozenset(), {}, "base", "fp32")


def test_a_full_disk_is_found_before_the_first_update(tmp_path):
    check_free_space(torch.nn.Linear(8, 8), tmp_path, NOTHING_ELSE, num=2)
    with torch.device("meta"):
        huge = torch.nn.Linear(2**24, 2**24)
    with pytest.raises(InputError, match=r"GiB free, but a checkpoint .* GiB, and 1 of them must fit; make room"):
        check_free_space(huge, tmp_path, NOTHING_ELSE, num=1)


def test_a_checkpoint_must_fit_beside_the_one_that_it_replaces(tmp_path):
    with torch.device("meta"):
        network = torch.nn.Linear(1, shutil.disk_usage(tmp_path).free * 3 // 4 // 24)  # 2 * 12 bytes each
    check_free_space(network, tmp_path, NOTHING_ELSE, num=1)
    with pytest.raises(InputError, match="and 2 of them must fit"):
        check_free_space(network, tmp_path, NOTHING_ELSE, num=2)


@pytest.mark.parametrize(
    ("num_there", "keep", "epochs", "validates", "num"),
    [
        (0, 1, 10, False, 2),  # the last, and the next beside it
        (0, 1, 10, True, 3),  # and the best
        (2, 1, 10, True, 1),  # a run that goes on has room for the others already
        (9, 3, 10, True, 1),
        (0, 3, 2, True, 2),  # a short one writes no more than its epochs
        (1, 1, 1, False, 1),
    ],
)
def test_room_is_asked_for_what_the_run_will_add(num_there, keep, epochs, validates, num):
    assert num_to_come(num_there, keep=keep, epochs=epochs, validates=validates) == num


def test_frozen_weights_that_are_saved_need_room_too(tmp_path):
    with torch.device("meta"):
        network = torch.nn.Linear(1, shutil.disk_usage(tmp_path).free // 6).requires_grad_(False)  # 4 bytes each
    check_free_space(network, tmp_path, NOTHING_ELSE, num=9)
    with pytest.raises(InputError, match="and 2 of them must fit"):
        check_free_space(network, tmp_path, Contents(frozenset({"weight"}), {}, "base", "fp32"), num=2)


@pytest.mark.parametrize("name", ["log.jsonl", "run_config.json", "ckpt_model/latest"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/full", path)])
def test_what_a_run_writes_must_be_files(refuses, runs, name, make):
    path = runs / "z" / name
    path.parent.mkdir(parents=True)
    make(path)
    refuses(f"{path} ", "Nothing was written", name="z")


@pytest.mark.parametrize("name", ["model_config", "model_config/thesis.tex"])
def test_a_folder_that_no_run_wrote_is_not_replaced(refuses, runs, name):
    mine = runs / "z" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    refuses(f"{runs / 'z/model_config'} would be replaced", "move it", name="z")
    assert mine.read_text() == "mine"
