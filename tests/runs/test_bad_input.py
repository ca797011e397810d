"""Bad input to training: exit code 2, one line that names file or sample and says what to do, nothing half-written.

These go through the real main() in this process, as far as it gets before the first update.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import train_ds
from tests.support.bad_input import edit_json, edit_weights, refused
from tests.support.launch import TRAIN_FLAGS
from tests.support.tiny_world import TinyWorld

REFS, INSTANCES = "refer_seg/refcoco/refs(unc).p", "refer_seg/refcoco/instances.json"


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    """Some of these get as far as a process group of one; leave the process as it was."""
    environment, threads = dict(os.environ), torch.get_num_threads()
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)


@pytest.fixture
def refuses(world: TinyWorld, tmp_path: Path, capsys) -> Callable[..., None]:
    """Training with these flags is refused before anything is written."""

    def check(*says: str | Path, flags: tuple[str, ...] = ()) -> None:
        before = sorted(path for path in tmp_path.rglob("*"))
        arguments = [*world.arguments, *TRAIN_FLAGS, f"--log_base_dir={tmp_path / 'runs'}", *flags]
        refused(train_ds.main, arguments, capsys, *says)
        assert sorted(path for path in tmp_path.rglob("*")) == before

    return check


@pytest.mark.parametrize("name", ["muse/muse_train.json", INSTANCES, REFS])
def test_unreadable_annotations(world, refuses, name):
    (world.dataset / name).write_text("{ not json")
    refuses(world.dataset / name, "download")


@pytest.mark.parametrize("name", ["muse/muse_train.json", INSTANCES, REFS])
def test_missing_annotations(world, refuses, name):
    (world.dataset / name).unlink()
    refuses(world.dataset / name, "does not exist", "make_toy_world.py")


def test_an_ann_id_that_does_not_exist(world, refuses):
    refs = pickle.loads((world.dataset / REFS).read_bytes())
    refs[0]["ann_id"] = 12345
    (world.dataset / REFS).write_bytes(pickle.dumps(refs))
    refuses("refcoco: ref_id 0 names ann_id 12345", world.dataset / INSTANCES, "download both again")


def test_a_refs_file_that_would_run_code(world, refuses):
    (world.dataset / REFS).write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    refuses(world.dataset / REFS, "posix.system", "download it")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--dataset_dir=/nowhere/data",), ("--dataset_dir /nowhere/data is not a folder", "make_toy_world.py")),
        (("--dataset=ade||vqa", "--sample_rates=1"), ("--sample_rates 1 has 1 numbers", "--dataset ade||vqa")),
        (("--dataset=ade",), ("--dataset: 'ade' is unknown", "sem_seg, refer_seg, vqa")),
        (("--dataset=vqa",), ("llava_instruct_150k.json does not exist", "--dataset vqa")),
        (("--max_bad_share=2",), ("--max_bad_share is 2.0; expected 1.0 or less",)),
        (("--explanatory=2",), ("--explanatory is 2.0; expected a share from 0 to 1",)),
        (("--val_dataset=nothing",), ("--val_dataset: 'nothing' is unknown", "MultiReasonSeg|val")),
        (("--version=/nowhere/llava",), ("--version /nowhere/llava: no such folder",)),
        (("--vision-tower=/nowhere/clip",), ("--vision-tower /nowhere/clip: no such folder",)),
        (("--resize_vision_tower", "--resize_vision_tower_size=13"), ("size is 13", "at least", "14")),
        (("--out_dim=40",), ("out_dim is 40; expected a multiple of 16",)),
        (("--image_feature_scale_num=4",), ("--image_feature_scale_num is 4; expected 3 or less",)),
        (("--seg_token_num=0",), ("seg_token_num is 0; expected 1 or more",)),
        (("--lora_target_modules=query",), ("--lora_target_modules names query", "q_proj")),
        (("--preprocessor_config=/nowhere.json",), ("/nowhere.json does not exist; give a CLIP",)),
        (("--preprocessor_config=configs/preprocessor_448.json",), ("448 px", "56 px", "--resize_vision_tower")),
        (("--batch_size=0",), ("--batch_size is 0; expected 1 or more",)),
        (("--deepspeed_config=/nowhere.json",), ("/nowhere.json does not exist; give a DeepSpeed configuration",)),
        (("--config=/nowhere.json",), ("--config /nowhere.json does not exist",)),
        (("--load_in_8bit",), ("--load_in_8bit", "is for chat and evaluation", "--precision bf16")),
        (("--attn_implementation=nope",), ("--attn_implementation", "'nope'", "sdpa")),
    ],
)  # fmt: skip
def test_wrong_flags(refuses, flags, says):
    refuses(*says, flags=flags)


@pytest.mark.parametrize("ids", [{"[SEG0]": 360, "[SEG1]": 360}, {"[SEG0]": 17}, {"[SEG0]": 999}])
def test_a_tokenizer_with_impossible_ids(world, refuses, ids):
    (world.llava / "added_tokens.json").write_text(json.dumps(ids))
    refuses(f"tokenizer {world.llava}: added_tokens.json gives [SEG0] the id", "copy the tokenizer files again")


def test_a_base_without_a_tokenizer(world, refuses):
    (world.llava / "tokenizer.model").unlink()
    refuses(f"no tokenizer in {world.llava}")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": 3}, "weights missing: 9, first model.layers.2"),
        ({"num_hidden_layers": 1}, "weights that are not part of the model: 9, first model.layers.1"),
        ({"intermediate_size": 48}, "found (64, 32), expected (48, 32)"),
        ({"hidden_size": None}, "config.json: hidden_size is missing"),
        ({"num_attention_heads": 5}, "config.json: num_key_value_heads is 4; expected a divisor of"),
    ],
)
def test_base_weights_that_do_not_fit(world, refuses, changes, says):
    edit_json(world.llava / "config.json", **changes)
    refuses(says)


def test_a_missing_layer(world, refuses):
    edit_weights(world.llava, lambda state: state.pop("model.layers.0.mlp.up_proj.weight"))
    refuses(f"--version {world.llava} does not fit", "weights missing: 1, first model.layers.0.mlp.up_proj.weight")


def test_delta_weights(world, refuses):
    edit_weights(world.llava, lambda state: state["model.norm.weight"].zero_())
    refuses(f"{world.llava} holds delta weights", "scripts/apply_delta.py --base LLAMA")


@pytest.mark.parametrize("folder", ["llava", "clip"])
@pytest.mark.parametrize("damage", ["cut", "text", "gone"])
def test_damaged_weights(world, refuses, folder, damage):
    file = getattr(world, folder) / "pytorch_model.bin"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "text":
        file.write_text("version https://git-lfs.github.com/spec/v1")
    else:
        file.unlink()
    refuses(file if damage != "gone" else f"no weights in {file.parent}")


def test_a_tower_of_another_shape(world, refuses):
    edit_json(world.clip / "config.json", intermediate_size=48)
    refuses("model.vision_tower", "found", "expected")
