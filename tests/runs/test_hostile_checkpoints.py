"""What users do to checkpoints: resume and merge take the older step or say in one line why not; nothing is lost."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model.weights.tensors import read_weights
from tests.support.fork_server import ForkServer
from tests.support.launch import TRAIN_FLAGS, Finished
from tests.support.tiny_world import TinyWorld

STATE = "state-00001-of-00001.safetensors"
NEWEST, BEFORE = "global_step4", "global_step2"


class Lab:
    """Copies of one run, and the commands that users give."""

    def __init__(self, forks: ForkServer, world: TinyWorld, runs: Path) -> None:
        self._forks, self.world, self.runs = forks, world, runs

    def train(self, name: str, *flags: str, world: TinyWorld | None = None, **options: Any) -> Finished:
        where = [*(world or self.world).arguments, f"--log_base_dir={self.runs}", f"--exp_name={name}"]
        return self._forks.python("train_ds.py", *where, *TRAIN_FLAGS, "--no_eval", "--workers=0", *flags, **options)

    def merge(self, name: str, to: Path, *flags: str) -> Finished:
        return self.merge_file(self.runs / name / "ckpt_model", to, "--precision=fp32", *flags)

    def merge_file(self, weight: Path, to: Path, *flags: str) -> Finished:
        program = "merge_lora_weights_and_save_hf_model.py"
        return self._forks.python(program, f"--weight={weight}", f"--save_path={to}", *flags)

    def zero_to_fp32(self, name: str) -> Finished:
        run = self.runs / name
        program = Path("utils/training/zero_to_fp32.py")
        return self._forks.python(program, run / "ckpt_model", run / "pytorch_model.bin")

    def copy(self, name: str, to: str) -> Path:
        """The ckpt_model of a copy."""
        return Path(shutil.copytree(self.runs / name, self.runs / to)) / "ckpt_model"


@pytest.fixture(scope="module")
def lab(forks: ForkServer, tiny_world: TinyWorld, tmp_path_factory) -> Lab:
    """``x`` has made four updates and kept the last two checkpoints."""
    lab = Lab(forks, tiny_world, tmp_path_factory.mktemp("runs"))
    finished = lab.train("x")
    assert finished.code == 0, finished.text
    return lab


def error_of(finished: Finished) -> str:
    assert finished.code == 2, finished.text
    assert "Traceback" not in finished.text
    (error,) = finished.errors
    return error


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights_equal(one: Path, other: Path) -> bool:
    left, right = read_weights(one), read_weights(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def edit(step: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit a file, and its hash with it."""
    content = json.loads((step / name).read_text())
    change(content)
    (step / name).write_text(json.dumps(content))
    manifest, written = json.loads((step / "manifest.json").read_text()), (step / name).read_bytes()
    manifest[name] = {"bytes": len(written), "sha256": hashlib.sha256(written).hexdigest()}
    (step / "manifest.json").write_text(json.dumps(manifest))


def omit(step: Path, name: str) -> None:
    """Take a file away, and out of the manifest."""
    (step / name).unlink()
    manifest = json.loads((step / "manifest.json").read_text())
    del manifest[name]
    (step / "manifest.json").write_text(json.dumps(manifest))


PASSED_OVER = {
    "a file is missing": lambda step: (step / STATE).unlink(),
    "a file is cut": lambda step: (step / STATE).write_bytes((step / STATE).read_bytes()[:-9]),
    "a file is empty": lambda step: (step / STATE).write_bytes(b""),
    "a bit is flipped": lambda step: flip(step / STATE),
    "the state of another run": lambda step: save_file({"a": torch.zeros(9)}, step / STATE),
    "one more process's state": lambda step: shutil.copy(step / STATE, step / "state-00001-of-00002.safetensors"),
    "no manifest": lambda step: (step / "manifest.json").unlink(),
    "an empty manifest": lambda step: (step / "manifest.json").write_text("{}"),
    "a manifest that omits a file": lambda step: omit(step, STATE),
    "a manifest in binary": lambda step: (step / "manifest.json").write_bytes(b"\xff\0"),
}


@pytest.mark.parametrize("damage", PASSED_OVER)
def test_a_damaged_step_is_named_and_the_one_before_goes_on(lab, tmp_path, damage):
    folder = lab.copy("x", damage)
    PASSED_OVER[damage](folder / NEWEST)
    before = contents(folder)
    assert f"{NEWEST} is damaged: " in (error := error_of(lab.merge(damage, tmp_path / "hf")))
    assert f"give --weight {folder / BEFORE}, which is whole" in error
    if "manifest" not in damage and damage != "one more process's state":
        error_of(lab.zero_to_fp32(damage))
    assert contents(folder) == before
    finished = lab.train(damage, "--eval_only", f"--resume={folder}")
    assert finished.code == 0, finished.text
    assert f"resumed {folder / BEFORE} after update 2" in finished.text
    assert contents(folder) == before


def set_(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: content.update({key: value})


def drop(record: dict[str, Any], part: str) -> None:
    del record[next(name for name in record if part in name)]


REFUSED = {
    "another precision": ("weights.json", set_("precision", "int8"), "precision is 'int8'"),
    "shapes that are not": ("weights.json", lambda c: c["trained"].update({"lm_head": [1]}), "lm_head"),
    "a frozen weight less": ("weights.json", lambda c: drop(c["frozen"], "prompt_encoder"), "missing"),
    "a base weight less": ("weights.json", lambda c: drop(c["base"], "mlp.gate_proj"), "missing"),
    "another base": ("weights.json", lambda c: c["base"].update({next(iter(c["base"])): "0" * 64}), "1 of "),
    "another update": ("progress.json", set_("update", 100), "says that it is of update 100"),
    "too large a number": ("progress.json", set_("samples", 10**40), "samples is 1000"),
}


@pytest.mark.parametrize("lie", REFUSED)
def test_a_record_that_lies_with_its_hash_is_refused(lab, tmp_path, lie):
    folder = lab.copy("x", lie)
    name, change, says = REFUSED[lie]
    edit(folder / NEWEST, name, change)
    before = contents(folder)
    assert says in error_of(lab.train(lie, "--epochs=3"))
    error_of(lab.merge(lie, tmp_path / "hf"))
    assert contents(folder) == before


@pytest.mark.parametrize("content", [b"", b"global_step9", b"\xff\0\xfe", None])
def test_a_damaged_latest(lab, tmp_path, content):
    name = f"latest{content!r}"
    folder = lab.copy("x", name)
    (folder / "latest").unlink()
    (folder / "latest").mkdir() if content is None else (folder / "latest").write_bytes(content)
    assert f"holds {BEFORE}, {NEWEST}; give one of them" in error_of(lab.merge(name, tmp_path / "hf"))
    assert "--tag" in error_of(lab.zero_to_fp32(name))
    finished = lab.train(name)
    if content is None:
        assert f"{folder / 'latest'} is a folder" in error_of(finished)
    else:
        assert f"resumed {folder / NEWEST}" in finished.text


@pytest.mark.parametrize("step", [BEFORE, NEWEST])
def test_a_file_with_the_name_of_a_step_is_never_touched(lab, step):
    folder = lab.copy("x", f"file-{step}")
    shutil.rmtree(folder / step)
    (folder / step).write_text("mine")
    assert f"{folder / step} is no folder" in error_of(lab.train(f"file-{step}", "--epochs=3"))
    assert (folder / step).read_text() == "mine"


def test_a_step_on_another_disk_behind_a_link_is_used_and_only_the_link_goes(lab, tmp_path):
    folder = lab.copy("x", "link")
    shutil.move(folder / NEWEST, tmp_path / "elsewhere")
    (folder / NEWEST).symlink_to(tmp_path / "elsewhere")
    finished = lab.train("link", "--epochs=3", "--keep_checkpoints=1")
    assert finished.code == 0, finished.text
    assert f"resumed {folder / NEWEST}" in finished.text
    assert sorted(path.name for path in folder.glob("global*")) == ["global_step6"]
    assert (tmp_path / "elsewhere" / STATE).is_file()


@pytest.mark.parametrize(
    ("updates", "rate"),
    [
        (1, "1e5"), (4, "1e30"),
        pytest.param(1, "1e30", marks=pytest.mark.long), pytest.param(4, "1e5", marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_after_a_run_has_diverged_the_advice_works(lab, rate, updates):
    """At 1e5 weights are finite, but no loss that they give is; such weights must not be saved either."""
    name = f"diverged-{rate}-{updates}"
    folder = lab.copy("x", name)
    before = contents(folder / NEWEST)
    error = error_of(lab.train(name, "--epochs=8", f"--steps_per_epoch={updates}", f"--lr={rate}"))
    assert "lower --lr" in error.lower()
    assert ("nothing was saved" if updates == 1 else "nothing was updated") in error
    assert (folder / "latest").read_text() == NEWEST
    assert contents(folder / NEWEST) == before
    finished = lab.train(name, "--epochs=3", "--lr=1e-4")
    assert finished.code == 0, finished.text
    assert (folder / "latest").read_text() == "global_step6"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_in_one_process_of_two_stops_both_and_loses_nothing(lab, rank):
    name = f"full-{rank}"
    folder = lab.copy("x", name)
    before = contents(folder)
    error = error_of(lab.train(name, "--epochs=3", processes=2, largest_file={rank: 2**18}))
    assert f"{folder / 'global_step6'} cannot be written: the disk is full" in error
    assert f"{folder / NEWEST} is whole" in error
    assert contents(folder) == before
    finished = lab.train(name, "--epochs=3")
    assert finished.code == 0, finished.text


class Payload:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


def test_a_planted_payload_runs_nowhere(lab, tmp_path, monkeypatch):
    folder = lab.copy("x", "planted")
    ran = Path.cwd() / "ran"
    torch.save({"a": Payload()}, folder.parent / "pytorch_model.bin")
    found = lab.merge_file(folder.parent / "pytorch_model.bin", tmp_path / "hf")
    assert "pytorch_model.bin cannot be read" in error_of(found)
    code = "import os\nos.mkdir('ran')\n"
    for place in (folder / NEWEST / "model_config", folder.parent / "model_config"):
        (place / "evil.py").write_text(code)
        for name in ("config.json", "tokenizer_config.json"):
            content = json.loads((place / name).read_text())
            auto = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.Evil")
            content["auto_map"] = auto if name == "config.json" else {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
            (place / name).write_text(json.dumps(content))
    for path in (folder / NEWEST / "model_config").iterdir():
        if path.suffix == ".json":
            edit(folder / NEWEST, f"model_config/{path.name}", lambda content: None)
    (folder / NEWEST / "mp_rank_00_model_states.pt").write_bytes((folder.parent / "pytorch_model.bin").read_bytes())
    lab.merge("planted", tmp_path / "hf")
    lab.train("planted", "--epochs=3")
    assert not ran.exists()
    (folder / NEWEST / "manifest.json").unlink()
    (folder / "latest").write_text(NEWEST)
    error = error_of(lab.merge("planted", tmp_path / "hf2"))
    assert "mp_rank_00_model_states.pt was refused: it would run" in error
    assert not ran.exists()


@pytest.fixture(scope="module")
def merged(lab, tmp_path_factory) -> Path:
    to = tmp_path_factory.mktemp("merged") / "hf"
    assert lab.merge("x", to).code == 0
    return to


def test_a_base_that_moved_was_replaced_or_was_saved_anew(lab, merged, tmp_path):
    """Weights are compared, not names: only other numbers are refused."""
    first = TinyWorld(*(tmp_path / "w" / place.name for place in (lab.world.llava, lab.world.clip, lab.world.dataset)))
    shutil.copytree(lab.world.llava.parent, first.llava.parent)
    finished = lab.train("moving", "--epochs=1", world=first)
    assert finished.code == 0, finished.text
    assert lab.merge("moving", tmp_path / "expected").code == 0
    moved = Path(shutil.move(tmp_path / "w", tmp_path / "moved"))
    there = TinyWorld(*(moved / place.name for place in (first.llava, first.clip, first.dataset)))
    assert "say where it is now with --version" in error_of(lab.merge("moving", tmp_path / "none"))
    assert lab.merge("moving", tmp_path / "a", *there.arguments[:2]).code == 0
    assert lab.train("moving", "--epochs=1", world=there).code == 0
    # Other weights of the same shapes where the base was.
    shutil.copytree(moved, tmp_path / "w")
    state, name = read_weights(first.llava), "model.layers.1.mlp.up_proj.weight"
    torch.save({**state, name: state[name] + 1}, tmp_path / "other.bin")
    os.replace(tmp_path / "other.bin", first.llava / "pytorch_model.bin")
    for finished in (lab.merge("moving", tmp_path / "none"), lab.train("moving", "--epochs=2", world=first)):
        assert f"1 of 105 weights differ, first {name}" in error_of(finished)
    assert lab.merge("moving", tmp_path / "b", *there.arguments[:2]).code == 0
    # The same numbers in other files.
    os.remove(first.llava / "pytorch_model.bin")
    save_file(
        {key: tensor.clone() for key, tensor in read_weights(there.llava).items()}, first.llava / "model.safetensors"
    )
    assert lab.merge("moving", tmp_path / "c").code == 0
    assert all(weights_equal(tmp_path / "expected", tmp_path / to) for to in "abc")


def test_weights_that_a_checkpoint_holds_are_not_left_to_a_base_that_has_others(lab, tmp_path):
    """--save_frozen, then without it, while other weights lie where the base was."""
    world = TinyWorld(*(tmp_path / "w" / place.name for place in (lab.world.llava, lab.world.clip, lab.world.dataset)))
    shutil.copytree(lab.world.llava.parent, world.llava.parent)
    assert lab.train("kept", "--epochs=1", "--save_frozen", world=world).code == 0
    state, name = read_weights(world.llava), "model.layers.1.mlp.up_proj.weight"
    torch.save({**state, name: state[name] + 1}, tmp_path / "other.bin")
    os.replace(tmp_path / "other.bin", world.llava / "pytorch_model.bin")
    finished = lab.train("kept", "--epochs=2", world=world)
    assert finished.code == 0, finished.text
    assert lab.merge("kept", tmp_path / "hf").code == 0
    assert torch.equal(read_weights(tmp_path / "hf")[name], state[name])


def test_a_run_goes_on_from_an_init_from_that_moved(lab, merged, tmp_path):
    model = Path(shutil.copytree(merged, tmp_path / "model"))
    flags = ["--num_classes_per_sample=3", "--epochs=1"]
    assert lab.train("init", *flags, f"--init_from={model}").code == 0
    moved = Path(shutil.move(model, tmp_path / "moved"))
    finished = lab.train("init", "--epochs=2", f"--init_from={moved}")
    assert finished.code == 0, finished.text
    assert "after update 2" in finished.text
    state = read_weights(moved)
    other = Path(shutil.copytree(moved, tmp_path / "other"))
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**state, name: state[name] + 1}, other / "new.safetensors", metadata={"format": "pt"})
    os.replace(other / "new.safetensors", other / "model.safetensors")
    assert f"started from {moved}, not {other}" in error_of(lab.train("init", "--epochs=3", f"--init_from={other}"))
    shutil.rmtree(moved)
    error = error_of(lab.train("init", "--epochs=3", f"--init_from={other}"))
    assert f"--init_from {other} is not what" in error
    assert f"first {name}" in error


def test_precision_stage_processes_and_batch_may_change_and_no_sample_is_lost(lab, tmp_path):
    (tmp_path / "zero3.json").write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    folder = lab.copy("x", "changing")
    for number, (flags, images, options) in enumerate(
        (
            (["--precision=bf16"], 2, {}),
            (["--precision=fp32", f"--deepspeed_config={tmp_path / 'zero3.json'}"], 4, {"processes": 2}),
            (["--precision=fp32", "--save_frozen", "--batch_size=3", "--grad_accumulation_steps=1"], 3, {}),
        )
    ):
        before = json.loads((folder / (folder / "latest").read_text() / "progress.json").read_text())
        finished = lab.train("changing", "--steps_per_epoch=1", f"--epochs={5 + number}", *flags, **options)
        assert finished.code == 0, finished.text
        after = json.loads((folder / (folder / "latest").read_text() / "progress.json").read_text())
        assert after["update"] == 5 + number
        assert after["samples"] == before["samples"] + images
    assert lab.merge("changing", tmp_path / "hf").code == 0
    error = error_of(lab.train("changing", "--epochs=9", "--optimizer=muon"))
    assert "resume with --optimizer=adamw" in error


def test_epochs_over_all_samples_keep_the_size_of_an_update(lab):
    assert lab.train("all", "--epoch_mode=all", "--epochs=1").code == 0
    error = error_of(lab.train("all", "--epoch_mode=all", "--epochs=2", "--batch_size=2"))
    assert "was trained with 2 images per update" in error
