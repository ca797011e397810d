"""From a base to answers by the real command lines: train in two processes, merge, chat, evaluate.

One short run serves all tests here.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import chat
import merge_lora_weights_and_save_hf_model as merge
from model.files import read_object
from model.image import read_image
from model.PixelLM import PixelLMForCausalLM
from model.weights.tensors import read_weights
from scripts import evaluate
from tests.support.bad_input import refused
from tests.support.launch import NUM_PROCESSES, TRAIN_FLAGS, Finished, deepspeed, python
from tests.support.snapshot import snapshot
from tests.support.tiny_world import TinyWorld
from utils.masks.rle import decode_rles
from utils.training.run_description import RunDescription


@dataclass(frozen=True)
class Run:
    folder: Path
    finished: Finished

    def log(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def trained(tiny_world: TinyWorld, repository: Path, tmp_path_factory) -> Run:
    """Two epochs of two updates."""
    runs = tmp_path_factory.mktemp("runs")
    flags = [*tiny_world.arguments, *TRAIN_FLAGS, f"--log_base_dir={runs}", "--exp_name=tiny", "--val_generate=1"]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TORCH_EXTENSIONS_DIR", str(runs / "extensions"))
        finished = deepspeed("train_ds.py", *flags, cwd=repository)
    assert finished.code == 0, finished.text
    return Run(runs / "tiny", finished)


def test_every_update_is_logged(trained):
    updates = [record for record in trained.log() if "total" in record]
    assert [record["update"] for record in updates] == [1, 2, 3, 4]
    for record in updates:
        parts = [record[name] for name in ("ce", "bce", "dice", "refine")]
        assert all(math.isfinite(value) and value >= 0 for value in parts)
        assert record["total"] == pytest.approx(sum(parts), abs=1e-4)
        assert record["masks"] >= 2 * NUM_PROCESSES, "one photo or more per process and pass, each with a target"
    assert [record["lr"] for record in updates] == pytest.approx([3e-4, 3e-4, 2e-4, 1e-4])
    assert updates[-1]["total"] < updates[0]["total"]


def test_nothing_is_compiled(trained):
    assert not (trained.folder.parent / "extensions").exists()


def test_validation_names_its_protocol(trained):
    scores = [record for record in trained.log() if "val" in record]
    assert [record["update"] for record in scores] == [2, 2, 4, 4]
    assert {record["val"] for record in scores} == {"MultiReasonSeg|val"}
    assert [record["protocol"] for record in scores] == ["teacher-forced", "generated"] * 2
    forced, generated = scores[:2]
    assert all(0 <= forced[name] <= 1 for name in ("giou", "ciou"))
    assert generated["images"] == 1
    assert generated["questions"] > 0


def test_validation_draws_the_same_samples_each_time(trained):
    names = sorted(path.name for path in (trained.folder / "pictures").iterdir())
    sheets = [f"MultiReasonSeg-val-{kind}update-{update}.jpg" for kind in ("generated-", "") for update in (2, 4)]
    assert names == sheets
    before, after = (read_image(trained.folder / "pictures" / name).shape for name in sheets[2:])
    assert before == after


def test_every_update_says_what_it_has_read(trained):
    updates = [record for record in trained.log() if "total" in record]
    for record in updates:
        assert sum(record["drawn"].values()) == 2 * NUM_PROCESSES, "batch size 1, two passes"
        assert record["samples_per_second"] == pytest.approx(2 * NUM_PROCESSES / record["seconds"], rel=0.01)
        assert 0.5 < record["real_token_share"] <= 1
        assert record["gradient_norm"] > 0
        assert record["peak_memory"] > 2**20
    assert {name for record in updates for name in record["drawn"]} <= {"multi_reason_seg", "refcoco"}


def test_the_log_speaks_once_and_says_what_is_trained(trained):
    text = trained.finished.text
    assert text.count("trained parameters: ") == 1
    assert f"{NUM_PROCESSES} process(es) on " in text
    assert "multi_reason_seg (3), refcoco (2)" in text
    assert "update 4/4 loss" in text
    assert "Traceback" not in text
    assert text.count("--vision_tower_for_mask has no effect here") == 1


def test_the_run_directory_describes_itself(trained, tiny_world):
    names = {path.name for path in trained.folder.iterdir()}
    assert {"run_config.json", "model_config", "log.jsonl", "ckpt_model"} <= names
    board = list(trained.folder.glob("events.out.tfevents.*"))
    assert len(board) == 1, "rank 0 writes TensorBoard"
    assert board[0].stat().st_size > 500
    run = RunDescription(trained.folder).read_flags()
    assert (run.version, run.epochs, run.seg_token_num) == (str(tiny_world.llava), 2, 2)
    config = json.loads((trained.folder / "model_config/config.json").read_text(encoding="utf-8"))
    assert config["seg_token_ids"] == [360, 361, 362, 363]
    assert (trained.folder / "model_config/tokenizer.model").is_file()


def test_the_last_checkpoints_are_kept(trained):
    folder = trained.folder / "ckpt_model"
    assert (folder / "latest").read_text().strip() == "global_step4"
    assert sorted(path.name for path in folder.glob("global_step*")) == ["global_step2", "global_step4"]
    assert (folder / "zero_to_fp32.py").is_file()


@pytest.fixture(scope="session")
def consolidated(trained) -> Path:
    """The released command: ``cd ckpt_model && python zero_to_fp32.py . ../pytorch_model.bin``."""
    finished = python("zero_to_fp32.py", ".", "../pytorch_model.bin", cwd=trained.folder / "ckpt_model")
    assert finished.code == 0, finished.text
    return trained.folder / "pytorch_model.bin"


@pytest.fixture(scope="session")
def merged(trained, consolidated, tiny_world) -> Path:
    """The released command: no token and size flags, although their defaults are not the run's."""
    folder = trained.folder / "hf_model"
    flags = [f"--version={tiny_world.llava}", f"--weight={consolidated}", f"--save_path={folder}"]
    assert merge.main([*flags, "--precision=fp32"]) == 0
    return folder


def test_zero_to_fp32_writes_what_the_base_does_not_have(consolidated, tiny_world):
    """In float32 by the release's names; frozen weights that are the base's stay there."""
    weights = read_weights(consolidated)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert any("mask_decoder" in name for name in weights)
    assert not any("base_layer" in name or name.endswith("layers.0.mlp.gate_proj.weight") for name in weights)


@pytest.mark.parametrize("source", ["checkpoint", "folder of shards"])
def test_merging_from_any_form_of_the_weights_is_the_same(trained, merged, consolidated, tiny_world, tmp_path, source):
    weight = trained.folder / "ckpt_model"
    if source == "folder of shards":  # what DeepSpeed's own zero_to_fp32.py writes
        weight = trained.folder / "shards"
        write_shards(read_weights(consolidated), weight)
    flags = [f"--version={tiny_world.llava}", f"--weight={weight}", f"--save_path={tmp_path / 'hf'}"]
    assert merge.main([*flags, "--precision=fp32"]) == 0
    expected, found = read_weights(merged), read_weights(tmp_path / "hf")
    assert set(expected) == set(found)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not [name for name in found if "lora" in name]


def write_shards(weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Two files and their index."""
    folder.mkdir()
    names = {name: f"pytorch_model-0000{number % 2 + 1}-of-00002.bin" for number, name in enumerate(weights)}
    for file in set(names.values()):
        torch.save({name: weights[name] for name in weights if names[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))


def test_merging_adds_lora_to_the_base(tiny_world, merged, consolidated):
    state, found = read_weights(consolidated), read_weights(merged)
    base = read_weights(tiny_world.llava)
    layer = "base_model.model.model.layers.1.self_attn.v_proj"
    up, down = (state[f"{layer}.lora_{part}.default.weight"] for part in "BA")
    expected = base["model.layers.1.self_attn.v_proj.weight"] + 16 / 8 * up @ down
    assert up.abs().max() > 0
    assert torch.allclose(found["model.layers.1.self_attn.v_proj.weight"], expected, atol=1e-6)


def test_merged_weights_are_rounded_on_request(merged, trained, tiny_world, tmp_path):
    flags = [f"--weight={trained.folder / 'ckpt_model'}", f"--save_path={tmp_path / 'hf'}", "--save_vision_tower"]
    assert merge.main(flags) == 0
    network = PixelLMForCausalLM.from_pretrained(tmp_path / "hf", vision_tower="/nowhere")
    assert network.load_report.initialized == []
    half = read_weights(tmp_path / "hf")
    assert {tensor.dtype for tensor in half.values()} == {torch.bfloat16}
    for name, tensor in read_weights(merged).items():
        assert torch.equal(tensor.bfloat16(), half[name]), name
    assert network.config.image_feature_scale_num == 2


def test_a_merged_folder_may_be_replaced(merged, trained, tmp_path):
    folder = Path(shutil.copytree(merged, tmp_path / "hf"))
    (folder / "model.safetensors").write_bytes(b"old")
    (folder / "README.md").write_text("mine")
    listed = set(read_object(folder / ".pixellm.json")["files"])
    assert listed == {path.name for path in folder.iterdir()} - {".pixellm.json"}
    assert listed >= {"README.md", "processor_config.json", "chat_template.jinja", "config.json"}
    assert merge.main([f"--weight={trained.folder / 'ckpt_model'}", f"--save_path={folder}", "--precision=fp32"]) == 0
    assert set(read_weights(folder)) == set(read_weights(merged))
    assert (folder / "README.md").read_text() == "mine", "a card that somebody edited comes along"
    assert [path.name for path in tmp_path.iterdir()] == ["hf"], "no scratch folder is left"


@pytest.mark.parametrize("target", ["run directory", "checkpoint", "working directory", "above", "empty name", "base"])
def test_a_merge_replaces_no_folder_of_the_user(trained, tiny_world, tmp_path, capsys, monkeypatch, target):
    """Found by hostile tests: each of these was deleted or replaced, with exit code 0."""
    run = Path(shutil.copytree(trained.folder, tmp_path / "runs/x"))
    base = Path(shutil.copytree(tiny_world.llava, tmp_path / "llava"))
    monkeypatch.chdir(tmp_path / "runs")
    save_path = {"run directory": run, "checkpoint": run / "ckpt_model", "working directory": ".", "above": "..",
                 "empty name": "", "base": base}[target]  # fmt: skip
    before = snapshot(tmp_path)
    flags = [f"--version={base}", f"--weight={run / 'ckpt_model'}", f"--save_path={save_path}"]
    refused(merge.main, flags, capsys, "--save_path", "Nothing was written")
    assert snapshot(tmp_path) == before


def test_a_merge_replaces_no_folder_with_files_of_somebody_else(merged, trained, tmp_path, capsys):
    weight = f"--weight={trained.folder / 'ckpt_model'}"
    for name, holds in (("notes", "holds notes.txt"), ("published", "holds config.json, but no .pixellm.json")):
        folder = tmp_path / name
        if name == "notes":
            shutil.copytree(merged, folder)
            (folder / "notes.txt").write_text("mine")
        else:
            folder.mkdir()
            (folder / "config.json").write_text('{"model_type": "llava"}')
        before = snapshot(folder)
        refused(merge.main, [weight, f"--save_path={folder}"], capsys, holds)
        assert snapshot(folder) == before


def test_a_merge_into_a_place_that_cannot_be_written_says_so_first(trained, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    weight = f"--weight={trained.folder / 'ckpt_model'}"
    refused(merge.main, [weight, f"--save_path={tmp_path / 'file'}"], capsys, "is a file")
    refused(merge.main, [weight, f"--save_path={tmp_path / 'file/below'}"], capsys, "lies below")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_run_directory_may_move(merged, trained, tmp_path):
    moved = Path(shutil.copytree(trained.folder, tmp_path / "moved"))
    assert merge.main([f"--weight={moved / 'ckpt_model'}", f"--save_path={tmp_path / 'hf'}", "--precision=fp32"]) == 0
    expected, found = read_weights(merged), read_weights(tmp_path / "hf")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def photo(world: TinyWorld) -> Path:
    return world.dataset / "refer_seg/images/mscoco/images/train2014/1.jpg"


def test_one_shot_chat(merged, tiny_world, repository, tmp_path):
    """The README's chat flags, which the folder makes needless, and ours."""
    flags = ["--seg_token_num=3", "--pad_train_clip_images", "--resize_vision_tower", "--resize_vision_tower_size=448"]
    own = [f"--image={photo(tiny_world)}", "--prompt=What is the thing?", f"--output_json={tmp_path / 'a.json'}"]
    limits = ["--max_new_tokens=30", f"--vis_save_path={tmp_path / 'vis'}", "--precision=bf16"]
    finished = python("chat.py", f"--version={merged}", *flags, *own, *limits, cwd=repository)
    assert finished.code == 0, finished.text
    assert "text_output: " in finished.stdout
    for flag in ("--seg_token_num", "--pad_train_clip_images", "--resize_vision_tower "):
        assert finished.stderr.count(f"{flag.strip()} has no effect here") == 1
    reply = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert (reply["image"], reply["prompt"]) == (str(photo(tiny_world)), "What is the thing?")
    hw = read_image(photo(tiny_world)).shape[:2]
    masks = decode_rles([target["segmentation"] for target in reply["targets"]], hw=hw)
    assert len(masks) == len(reply["targets"])
    assert reply["targets"] or reply["reason"]
    assert len(list((tmp_path / "vis").glob("1_mask_*.jpg"))) == len(masks)


def test_chat_runs_in_process(merged, tiny_world, tmp_path, capsys):
    flags = [f"--version={merged}", f"--image={photo(tiny_world)}", "--prompt=What?", "--max_new_tokens=3"]
    assert chat.main([*flags, f"--vis_save_path={tmp_path}"]) == 0
    assert capsys.readouterr().out.startswith("text_output: ")


def test_evaluation(merged, tiny_world, tmp_path, capsys):
    flags = [f"--version={merged}", f"--dataset_dir={tiny_world.dataset}", f"--output_dir={tmp_path}"]
    sets = ["--val_dataset=MultiReasonSeg|val||refcoco|unc|val", "--max_new_tokens=8", "--precision=fp32"]
    assert evaluate.main([*flags, *sets]) == 0
    printed = capsys.readouterr().out
    assert "MultiReasonSeg|val   protocol: generate   judge: none" in printed
    assert "refcoco|unc|val   protocol: teacher_forced   judge: none" in printed
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["results"]
    assert [result["name"] for result in results] == ["MultiReasonSeg|val", "refcoco|unc|val"]
    assert [result["num_questions"] for result in results] == [4, 2]
    assert all(0 <= result["scores"]["all"]["giou"] <= 1 for result in results)
    assert len((tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 6
