"""A checkpoint is whole or not there, brings everything back, and a damaged one is passed over."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.errors import InputError
from tests.support.full_disk import no_file_above
from tests.support.plain_engine import PlainEngine
from utils.training import zero_to_fp32
from utils.training.checkpoints import Checkpoints, Contents, load_checkpoint, open_step
from utils.training.run_weights import estimate_size, join_weights, read_training_weights
from utils.training.shards import steps_of
from utils.training.steps import best_step, damage_of, find_whole_step, latest_step, remove_unfinished, step_names
from utils.training.stored import Progress


def contents(engine: PlainEngine, **base: str) -> Contents:
    return Contents.of(engine.module, base, base_place="base", precision="fp32")


def save(engine: PlainEngine, checkpoints: Checkpoints) -> Path:
    """Save the engine at the update that it has seen."""
    progress = Progress(
        update=engine.global_steps,
        images_per_update=2,
        samples=2 * engine.global_steps,
        processes=1,
        optimizer_steps=steps_of(engine),
        schedule_steps=engine.lr_scheduler.last_epoch,
        seconds=1.5,
        scores=checkpoints.scores,
    )
    checkpoints.save(engine, progress, describe=lambda folder: (folder / "run_config.json").write_text("{}"))
    return checkpoints.folder / f"global_step{engine.global_steps}"


@pytest.fixture
def engine() -> PlainEngine:
    return PlainEngine.small()


@pytest.fixture
def checkpoints(engine, tmp_path) -> Checkpoints:
    """Steps 1 to 3, of which the last two are kept."""
    checkpoints = Checkpoints(tmp_path / "ckpt_model", contents(engine), keep=2)
    for _ in range(3):
        save(engine.update(), checkpoints)
    return checkpoints


def test_what_is_loaded_goes_on_bit_for_bit(engine, checkpoints):
    step = checkpoints.folder / "global_step3"
    other = PlainEngine.small(seed=1)
    load_checkpoint(other, step, open_step(step), seed=0)
    drawn = torch.get_rng_state()
    engine.update()
    torch.set_rng_state(drawn)
    other.update()
    assert engine.state() == other.state()


def test_random_numbers_go_on_where_the_checkpoint_was_written(engine, checkpoints):
    step = save(engine, checkpoints)
    expected = torch.rand(4)
    torch.manual_seed(99)
    load_checkpoint(PlainEngine.small(), step, open_step(step), seed=0)
    assert torch.equal(torch.rand(4), expected)


def test_the_last_checkpoints_are_kept_and_the_best(engine, checkpoints):
    assert step_names(checkpoints.folder) == ["global_step2", "global_step3"]
    checkpoints.add_score(3, 0.5)
    for update, score in ((4, 0.9), (5, 0.7), (6, 0.8), (7, 0.9)):
        save(engine.update(), checkpoints)
        checkpoints.add_score(update, score)
    assert step_names(checkpoints.folder) == ["global_step4", "global_step6", "global_step7"]
    assert best_step(checkpoints.folder) == checkpoints.folder / "global_step4"
    again = Checkpoints(checkpoints.folder, checkpoints.contents, keep=2)
    again.read_scores({})
    assert again.scores["global_step4"] == 0.9


def test_a_weight_that_is_not_finite_is_never_saved(engine, checkpoints):
    engine.update()
    with torch.no_grad():
        engine.module[1].bias[0] = torch.nan
    says = r"weight 1\.bias is not finite after update 4, so nothing was saved.* lower --lr .*global_step3 is whole"
    with pytest.raises(InputError, match=says):
        save(engine, checkpoints)
    assert step_names(checkpoints.folder) == ["global_step2", "global_step3"]
    assert not damage_of(checkpoints.folder / "global_step3")
    assert sorted(path.name for path in checkpoints.folder.iterdir() if path.name.startswith(".")) == []


def test_a_moment_that_is_not_finite_is_never_saved(engine, checkpoints):
    next(iter(engine.update().optimizer.state.values()))["exp_avg_sq"][0] = torch.inf
    with pytest.raises(InputError, match=r"optimizer state exp_avg_sq of 1\.\w+ is not finite after update 4"):
        save(engine, checkpoints)


def test_on_a_disk_that_becomes_full_the_last_checkpoint_stays(tmp_path):
    engine = PlainEngine.small()
    engine.module.register_buffer("large", torch.rand(256, 256))
    checkpoints = Checkpoints(tmp_path, contents(engine), keep=1)
    save(engine.update(), checkpoints)
    with no_file_above(2**16), pytest.raises(InputError) as refused:
        save(engine.update(), checkpoints)
    assert str(refused.value).startswith(f"{tmp_path / 'global_step2'} cannot be written: the disk is full")
    assert f"{tmp_path / 'global_step1'} is whole" in str(refused.value)
    assert latest_step(tmp_path) == find_whole_step(tmp_path) == tmp_path / "global_step1"


def test_what_a_killed_save_left_is_ignored_and_removed(engine, checkpoints):
    left = checkpoints.folder / ".global_step4.pixellm-elsewhere-1.partial"
    shutil.copytree(checkpoints.folder / "global_step3", left)
    assert find_whole_step(checkpoints.folder) == checkpoints.folder / "global_step3"
    assert save(engine.update(), checkpoints).name == "global_step4"
    gone = checkpoints.folder / f".global_step9.pixellm-{host()}-999999999.partial"
    gone.mkdir()
    remove_unfinished(checkpoints.folder)
    assert not gone.exists()


def host() -> str:
    from model.outputs import _HOST

    return _HOST


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


STATE = "state-00001-of-00001.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file is missing": (lambda step: (step / STATE).unlink(), f"{STATE} is missing"),
    "a file is cut": (lambda step: cut(step / STATE), r"has [\d,]+ bytes, not"),
    "a file is empty": (lambda step: (step / STATE).write_bytes(b""), "has 0 bytes, not"),
    "a bit is flipped": (lambda step: flip(step / STATE), "has other bytes than were written"),
    "no manifest": (lambda step: (step / "manifest.json").unlink(), "it has no manifest.json"),
    "the manifest is cut": (lambda step: cut(step / "manifest.json"), "manifest.json"),
    "the manifest is no list of files": (lambda step: (step / "manifest.json").write_text('{"a": 1}'), "manifest.json"),
    "the manifest names a file elsewhere": (
        lambda step: (step / "manifest.json").write_text('{"../latest": {"bytes": 12, "sha256": ""}}'),
        "names ../latest, which is not in it",
    ),
    "settings were edited": (lambda step: (step / "progress.json").write_text("{}"), "bytes, not"),
    "the step is a file": (lambda step: (shutil.rmtree(step), step.write_text("")), "it is no folder"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_step_is_named_and_the_one_before_it_taken(checkpoints, caplog, damage):
    spoil, says = DAMAGES[damage]
    newest, before = (checkpoints.folder / f"global_step{update}" for update in (3, 2))
    spoil(newest)
    caplog.clear()
    assert find_whole_step(checkpoints.folder) == before
    assert re.search(rf"{newest} is damaged: .*{says}.*; going on with {before}", caplog.text)
    if newest.is_dir():
        with pytest.raises(InputError, match=rf"{newest} is damaged: .*give --weight {before}, which is whole"):
            read_training_weights(checkpoints.folder)


@pytest.mark.parametrize("content", [b"", b"global_step9", b"../..", b"\0\xff", b"global_step3\nx", None])
def test_without_a_file_latest_the_newest_whole_step_is_taken(checkpoints, caplog, content):
    latest = checkpoints.folder / "latest"
    latest.unlink()
    if content is not None:
        latest.write_bytes(content)
    assert find_whole_step(checkpoints.folder) == checkpoints.folder / "global_step3"
    assert f"{latest} names no step" in caplog.text


def test_if_no_step_is_whole_each_is_named(checkpoints):
    for update in (2, 3):
        (checkpoints.folder / f"global_step{update}/manifest.json").unlink()
    with pytest.raises(InputError, match=r"no checkpoint of .* is whole \(.*global_step3 .*global_step2 .*\); copy it"):
        find_whole_step(checkpoints.folder)
    assert find_whole_step(checkpoints.folder / "nothing") is None


def test_an_edited_latest_goes_back(checkpoints):
    (checkpoints.folder / "latest").write_text("global_step2")
    assert find_whole_step(checkpoints.folder) == checkpoints.folder / "global_step2"


def test_files_that_lie_are_refused(engine, checkpoints):
    """Hashes can be made anew by whoever edits a file; what is read is checked nevertheless."""
    step = checkpoints.folder / "global_step3"
    tensors = load_file(step / STATE)
    short = {**tensors, "master/0/1.weight": tensors["master/0/1.weight"][:-1].clone()}
    for wrong, says in (
        (short, r"has 5 of 6 elements of master 1\.weight"),
        ({**tensors, "anything": torch.zeros(1)}, "anything"),
        ({name: tensor for name, tensor in tensors.items() if "exp_avg/" not in name}, r"has no exp_avg of 1\."),
    ):
        save_file(wrong, step / STATE)
        with pytest.raises(InputError, match=says):
            load_checkpoint(PlainEngine.small(), step, open_step(step), seed=0)
    (step / STATE).write_bytes(b"no tensors")
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(PlainEngine.small(), step, open_step(step), seed=0)
    for content, says in (({}, "update is missing"), ({"update": "3"}, r"update is '3'; expected a whole number")):
        (step / "progress.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=rf"progress\.json: {says}"):
            open_step(step)


def test_a_checkpoint_of_another_network_is_refused(engine, checkpoints):
    other = PlainEngine.small()
    other.module[0].requires_grad_(True)
    step = checkpoints.folder / "global_step3"
    with pytest.raises(InputError, match=r"does not fit this run: 0\.bias is not trained there and \[3\] here"):
        load_checkpoint(other, step, open_step(step), seed=0)


def test_what_the_base_has_is_not_written(engine, tmp_path):
    slim = Checkpoints(tmp_path / "slim", contents(engine, **{"0.weight": "fingerprint"}), keep=1)
    whole = Checkpoints(tmp_path / "whole", contents(engine), keep=1)
    engine.update()
    weights = [join_weights(open_step(save(engine, checkpoints))) for checkpoints in (slim, whole)]
    assert set(weights[0]) == {"0.bias", "constant", "1.weight", "1.bias"}
    assert set(weights[1]) == set(engine.module.state_dict())


def test_room_for_a_merge_is_what_all_weights_of_one_step_take(engine, tmp_path):
    """Not the optimizer's part, nor the other steps; the base's part is."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(bytes(1000))
    slim = Contents.of(engine.module, {"0.weight": "fingerprint"}, base_place=str(base), precision="fp32")
    checkpoints = Checkpoints(tmp_path / "run", slim, keep=2)
    for _ in range(2):
        save(engine.update(), checkpoints)
    held = sum(tensor.numel() for name, tensor in engine.module.state_dict().items() if name != "0.weight")
    assert estimate_size(checkpoints.folder) == 2 * held + 1000
    assert estimate_size(checkpoints.folder / "global_step1") == 2 * held + 1000
    assert estimate_size(base / "model.safetensors") == estimate_size(base) == 500
    (checkpoints.folder / "global_step2/weights.json").write_text("{")
    assert estimate_size(checkpoints.folder) == estimate_size(tmp_path / "nothing") == 0


def test_the_script_beside_the_checkpoint_gives_its_weights_as_the_release_does(engine, checkpoints):
    """cd ckpt_model && python zero_to_fp32.py . ../pytorch_model.bin"""
    assert (checkpoints.folder / "zero_to_fp32.py").is_file()
    out = checkpoints.folder.parent / "pytorch_model.bin"
    zero_to_fp32.main([str(checkpoints.folder), str(out)])
    state = torch.load(out, weights_only=True)
    assert {name: tensor.tolist() for name, tensor in state.items()} == {
        name: tensor.tolist() for name, tensor in engine.module.state_dict().items()
    }
