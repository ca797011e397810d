"""What is given as the name of a file or folder may be no name at all: it is told like one that does not exist."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from model.errors import InputError
from model.hub import resolve_folder
from model.text.tokenizer import load_tokenizer
from model.weights.tensors import read_weights
from utils.cli.config import MergeConfig, RunConfig
from utils.data.paths import DatasetPaths
from utils.training.deepspeed_config import deepspeed_settings
from utils.training.merge import merge
from utils.training.run_directory import RunDirectory
from utils.training.start import read_normalization

TOO_LONG = "n" * 300


def start(tmp_path, **flags):
    run = RunConfig(log_base_dir=str(tmp_path), exp_name="run", **flags)
    RunDirectory.of(run).check_start(run)


READERS = {
    "weights by name": lambda name, tmp_path: resolve_folder(name, flag="--version"),
    "weights": lambda name, tmp_path: read_weights(tmp_path / name),
    "tokenizer": lambda name, tmp_path: load_tokenizer(tmp_path / name),
    "merge": lambda name, tmp_path: merge(MergeConfig(weight=name, save_path=str(tmp_path / "merged"))),
    "resume": lambda name, tmp_path: start(tmp_path, resume=name),
    "dataset": lambda name, tmp_path: DatasetPaths(tmp_path / name).muse("train", asked_by="--dataset_dir"),
    "preprocessor": lambda name, tmp_path: read_normalization(name, image_size=448),
    "deepspeed": lambda name, tmp_path: deepspeed_settings(RunConfig(deepspeed_config=name)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", [TOO_LONG, f"owner/{TOO_LONG}", "~nobody-of-that-name/model"])
def test_names_that_no_file_has(reader, name, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as caught:
        READERS[reader](name, tmp_path)
    assert name in str(caught.value)
    assert not list(tmp_path.iterdir())
