"""What a run does in a validation: generated answers with the weights in training, pictures, and no random numbers."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from model.errors import InputError
from model.predictor import PixelLMPredictor
from tests.support.launch import TRAIN_FLAGS
from utils.cli.args import parse
from utils.cli.config import RunConfig
from utils.data.collate import Collator
from utils.data.encode import Encoder, read_photo
from utils.data.registry import build_val_source
from utils.data.sources import Source
from utils.evaluation.questions import get_sample
from utils.training import validation as validation_module
from utils.training.deepspeed_config import deepspeed_settings
from utils.training.journal import Journal
from utils.training.report import UpdateRecords
from utils.training.run_directory import RunDirectory
from utils.training.start import TrainingModel, build_for_training
from utils.training.validation import NUM_PICTURES, Validation, first_question, spread

QUESTION = "What is the thing in this image?"


@pytest.fixture(scope="module")
def run(tiny_world, tmp_path_factory) -> RunConfig:
    folder = tmp_path_factory.mktemp("runs")
    flags = [*tiny_world.arguments, *TRAIN_FLAGS, "--val_generate=2", "--report_to=none", f"--log_base_dir={folder}"]
    return parse(RunConfig, flags, "").config


@pytest.fixture(scope="module")
def training(run) -> TrainingModel:
    """With LoRA that is far from its start."""
    training = build_for_training(run)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in training.wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    return training


@pytest.fixture(scope="module")
def source(tiny_world) -> Source:
    return build_val_source(str(tiny_world.dataset), "MultiReasonSeg|val")


@pytest.fixture
def validation(run, training, source, monkeypatch) -> Validation:
    """As the trainer makes it, but around the network itself, and with short answers."""
    monkeypatch.setattr(validation_module, "MAX_NEW_TOKENS", 8)
    config, tokenizer = training.config, training.tokenizer
    journal = Journal(
        RunDirectory.of(run), run, UpdateRecords(config, peak_flops=None), first_update=0, total_updates=4
    )
    engine: Any = training.wrapped
    guards: Any = SimpleNamespace(see_validation=lambda *_: None)
    encoder, collator = Encoder(tokenizer, training.network.codebook, config), Collator(config, tokenizer.pad_token_id)
    device = torch.device("cpu")
    return Validation(run, engine, training, [source], encoder, collator, device, journal, guards)


def random_states() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


def test_training_goes_on_as_if_there_had_been_no_validation(validation, run, source):
    """Found by thinking: tensors that generation has left in a cache of the network could not be trained with."""
    before, passes = random_states(), []
    (score,) = validation.score(2, before_pass=lambda: passes.append(1))
    assert random_states() == before
    assert 0 <= score <= 1
    assert len(passes) == len(source) + min(NUM_PICTURES, len(source)) + run.val_generate
    network: Any = validation.engine
    assert network.training
    batch = validation.collator([validation.encoder(get_sample(source, 0), truncate=False)])
    network(**batch.inputs()).loss.backward()
    trained = [parameter for name, parameter in network.named_parameters() if "lora_A" in name]
    assert all(parameter.grad is not None for parameter in trained)
    network.zero_grad(set_to_none=True)


def test_scores_and_pictures_are_written_down(validation, run):
    validation.score(4, before_pass=lambda: None)
    lines = (run.run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()
    forced, generated = [record for record in map(json.loads, lines) if record["update"] == 4]
    assert (forced["protocol"], generated["protocol"]) == ("teacher-forced", "generated")
    assert generated["images"] == 2
    assert generated["questions"] >= generated["right_count"] >= 0
    names = {path.name for path in (run.run_dir / "pictures").glob("*-update-4.jpg")}
    assert names == {"MultiReasonSeg-val-update-4.jpg", "MultiReasonSeg-val-generated-update-4.jpg"}


def test_answers_are_those_of_the_merged_network(training, source):
    """Validation must see LoRA as it is, not the base alone."""
    photo = read_photo(get_sample(source, 0))
    merged = copy.deepcopy(training.wrapped).merge_and_unload()
    base = copy.deepcopy(training.wrapped).unload()
    answers = []
    for network in (training.network, merged, base):
        predictor = PixelLMPredictor(network.eval(), training.tokenizer)
        predictor.set_image(photo)
        answers.append(predictor.ask(QUESTION, max_new_tokens=12).text)
    training.network.train()
    assert answers[0] == answers[1] != answers[2]


def test_generation_is_refused_where_no_process_has_the_network(run, tmp_path: Path):
    settings = tmp_path / "zero3.json"
    settings.write_text('{"zero_optimization": {"stage": 3}}')
    with pytest.raises(InputError, match=r"--val_generate does not go with ZeRO stage 3 of .*zero3.json"):
        deepspeed_settings(RunConfig(val_generate=1, deepspeed_config=str(settings)))
    deepspeed_settings(RunConfig(deepspeed_config=str(settings)))


@pytest.mark.parametrize(("count", "expected"), [(0, []), (1, [0]), (3, [0, 1, 2]), (10, [0, 3, 6, 9])])
def test_pictures_are_of_samples_that_stay(count, expected):
    assert spread(count, 4) == expected


def test_a_picture_shows_one_question(source):
    turns, masks = first_question(get_sample(source, 0))
    assert masks == slice(sum(len(turn.targets) for turn in turns))
