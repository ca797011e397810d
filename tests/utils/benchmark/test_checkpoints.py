"""The bytes that ``benchmark.py checkpoints`` computes are those of checkpoints on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scripts import benchmark
from tests.support.launch import TRAIN_FLAGS
from tests.support.plain_engine import PlainEngine
from utils.benchmark.checkpoints import RECIPES, base_names, sizes_of
from utils.cli.args import parse
from utils.cli.config import RunConfig
from utils.training.base_weights import fingerprint, read_start
from utils.training.checkpoints import Contents, write_step
from utils.training.deepspeed_files import MODEL_STATES, read_file
from utils.training.optimizer import make_adamw
from utils.training.run_description import RunDescription
from utils.training.start import TrainingModel, build_for_training
from utils.training.stored import Progress

# Wide enough for its tensors to outweigh their descriptions.
FLAGS = (*TRAIN_FLAGS, "--out_dim=128")
PROGRESS = Progress(update=1, images_per_update=1, samples=1, processes=1, optimizer_steps=0, schedule_steps=0)


def build(world, *flags: str) -> tuple[RunConfig, TrainingModel]:
    run = parse(RunConfig, [*world.arguments, *FLAGS, *flags], "").config
    return run, build_for_training(run)


def base_of(run: RunConfig, training: TrainingModel) -> dict[str, str]:
    start = read_start(run, training.config, training.base_folder)
    return fingerprint(training.wrapped, start, dtype=torch.float32)


@pytest.mark.parametrize("save_frozen", [False, True], ids=["slim", "whole"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_checkpoint_takes_what_is_computed(tiny_world, tmp_path, recipe, save_frozen):
    run, training = build(tiny_world, *RECIPES[recipe])
    base = {} if save_frozen else base_of(run, training)
    contents = Contents.of(training.wrapped, base, base_place="base", precision="fp32")
    optimizer = make_adamw(run, [weight for weight in training.wrapped.parameters() if weight.requires_grad])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    engine, step = PlainEngine(training.wrapped, optimizer, schedule), tmp_path / "global_step1"
    write_step(engine, step, PROGRESS, contents, describe=lambda folder: None)
    sizes = sizes_of(training.wrapped, run)
    size = sum(path.stat().st_size for path in step.glob("state-*.safetensors"))
    assert size == pytest.approx(sizes.whole if save_frozen else sizes.slim, rel=0.02)


@pytest.mark.parametrize("recipe", RECIPES)
def test_names_alone_tell_what_a_base_has(tiny_world, recipe):
    run, training = build(tiny_world, *RECIPES[recipe])
    assert set(base_names(training.wrapped)) == set(base_of(run, training))


def test_an_earlier_version_wrote_what_is_computed(kept_runs, monkeypatch):
    """Its files are so small that pickles are a third of them: tensors are counted, each memory once."""
    monkeypatch.chdir(kept_runs)
    run = RunDescription(Path("before")).read_flags()
    sizes = sizes_of(build_for_training(run).wrapped, run)
    step = Path("before/ckpt_model/global_step2")
    found = sum(tensor_bytes(read_file(file)) for file in step.glob("*_states.pt"))
    assert found == pytest.approx(sizes.earlier, rel=0.02)
    states = read_file(step / MODEL_STATES)
    assert sizes.earlier_gpu - sizes.earlier == sum(part.nbytes for part in states["frozen_param_fragments"].values())


def tensor_bytes(content: object) -> int:
    """Of all tensors in dictionaries and lists."""
    memories: dict[int, int] = {}

    def collect(value: object) -> None:
        if isinstance(value, torch.Tensor):
            memories[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict | list | tuple):
            for part in value.values() if isinstance(value, dict) else value:
                collect(part)

    collect(content)
    return sum(memories.values())


def test_the_table_has_the_published_sizes(repository, tmp_path, capsys):
    file = tmp_path / "table.md"
    assert benchmark.main(["checkpoints", f"--output_md={file}"]) == 0
    text, report = file.read_text(encoding="utf-8"), capsys.readouterr().out.strip()
    assert report in text
    assert report in (repository / "benchmarks/checkpoints_7b.md").read_text(encoding="utf-8"), "make it anew"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    table = {(row[0], row[1]): dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    assert set(table) == {(name, recipe) for name in ("PixelLM-7B", "PixelLM-13B") for recipe in RECIPES}
    # Of LLaMA's weights all but its two tables are frozen, and all of CLIP's.
    for (name, recipe), row in table.items():
        left_out = float(row["`--save_frozen`, GB"]) - float(row["Slim, GB"])
        weights, width = {"PixelLM-7B": (6.738, 4096), "PixelLM-13B": (13.016, 5120)}[name]
        expected = 2 * (weights - 2 * 32_000 * width / 1e9 + 0.304)
        assert left_out == pytest.approx(expected, rel=0.002), (name, recipe)
        both = float(row["Earlier, from a GPU at ZeRO-2, GB"]) - float(row["Earlier versions, GB"])
        assert both == pytest.approx(left_out, rel=0.002)


def test_precision_counts_for_what_is_not_trained(tiny_world):
    run, training = build(tiny_world)
    half = parse(RunConfig, [*tiny_world.arguments, *FLAGS, "--precision=bf16"], "").config
    single, double = sizes_of(training.wrapped, half), sizes_of(training.wrapped, run)
    assert single.trained == double.trained
    assert double.whole - double.slim == 2 * (single.whole - single.slim)
