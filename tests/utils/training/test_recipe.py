"""``--release_recipe`` switches every decision between paper and release, and what a run chose is on record."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from model.configuration import PixelLMConfig
from model.errors import InputError
from model.files import read_object
from model.image import CLIP_MEAN, CLIP_STD, RELEASED_MEAN, RELEASED_STD
from model.recipe import RECIPE_OF_PUBLISHED_WEIGHTS
from model.vision_tower import resize_position_table
from model.weights.tensors import read_weights
from tests.support.tiny_world import LLAMA, TinyWorld
from utils.cli.args import parse
from utils.cli.config import RELEASE_RECIPE_FLAGS, RunConfig
from utils.training.recipe import recipe_of, shown_name
from utils.training.run_description import RunDescription
from utils.training.start import TrainingModel, build_for_training, read_normalization, resolve_run_flags

SHAPE = (
    "--seg_token_num=3", "--image_feature_scale_num=2", "--pad_train_clip_images", "--resize_vision_tower",
    "--resize_vision_tower_size=84", "--out_dim=32", "--precision=fp32", "--separate_mm_projector",
)  # fmt: skip
FROZEN_IN_THE_RELEASE = ("image_feature_neck", "no_mask_embed", "token_fusion", "scale_weights")


@pytest.fixture(scope="module")
def preprocessor(tmp_path_factory) -> str:
    """What the release reads and ignores."""
    path = tmp_path_factory.mktemp("preprocessor") / "preprocessor_84.json"
    path.write_text(json.dumps({"size": 84, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}))
    return f"--preprocessor_config={path}"


def flags(world: TinyWorld, *more: str) -> RunConfig:
    return resolve_run_flags(parse(RunConfig, [*world.arguments, *SHAPE, *more], ""))


@pytest.fixture(scope="module")
def paper(tiny_world, preprocessor) -> TrainingModel:
    return build_for_training(flags(tiny_world, preprocessor))


@pytest.fixture(scope="module")
def released(tiny_world, preprocessor) -> TrainingModel:
    return build_for_training(flags(tiny_world, preprocessor, "--release_recipe"))


def test_flags_of_both(tiny_world):
    assert {name: getattr(flags(tiny_world), name) for name in RELEASE_RECIPE_FLAGS} == {
        "refine_alpha": 2.0, "trained_set": "paper", "vision_position_resize": "correct",
        "image_normalization": "file", "projector_init": "llava", "query_init": "unit", "loss_normalization": "global",
        "shared_prefix": True,
    }  # fmt: skip
    run = flags(tiny_world, "--release_recipe")
    assert {name: getattr(run, name) for name in RELEASE_RECIPE_FLAGS} == {
        "refine_alpha": 1.0, "trained_set": "released", "vision_position_resize": "released",
        "image_normalization": "released", "projector_init": "fresh", "query_init": "released",
        "loss_normalization": "local", "shared_prefix": False,
    }  # fmt: skip


@pytest.mark.parametrize("spelling", ["command line", "file"])
def test_a_flag_that_contradicts_the_recipe_is_refused(tmp_path, spelling):
    given = ["--refine_alpha=2.0"]
    if spelling == "file":
        (tmp_path / "flags.json").write_text(json.dumps({"refine_alpha": 2.0}))
        given = [f"--config={tmp_path / 'flags.json'}"]
    with pytest.raises(
        InputError, match=r"--release_recipe means --refine_alpha=1.0, but --refine_alpha=2.0 was given"
    ):
        parse(RunConfig, ["--release_recipe", *given], "")


def test_a_flag_that_agrees_with_the_recipe_is_welcome():
    run = parse(RunConfig, ["--release_recipe", "--refine_alpha=1.0"], "").config
    assert run.refine_alpha == 1.0
    assert parse(RunConfig, ["--no_release_recipe", "--refine_alpha=1.5"], "").config.refine_alpha == 1.5


def test_what_is_trained(paper, released):
    """Decisions 2, 3 and 9."""
    ours, theirs = (
        {name for name, parameter in training.wrapped.named_parameters() if parameter.requires_grad}
        for training in (paper, released)
    )
    assert theirs < ours
    assert {part for part in FROZEN_IN_THE_RELEASE for name in ours - theirs if part in name} == set(
        FROZEN_IN_THE_RELEASE
    )
    assert all(any(part in name for part in FROZEN_IN_THE_RELEASE) for name in ours - theirs)
    network = released.network
    assert torch.allclose(network.model.token_fusion.weights, torch.full((3,), 1 / 6))
    assert torch.allclose(network.model.mask_decoder.scale_weights, torch.full((2,), 1 / 2))


def test_position_table(paper, released, tiny_world):
    """Decision 4."""
    key = "vision_model.embeddings.position_embedding.weight"
    native = read_weights(tiny_world.clip)[key]
    for training, rule in ((paper, "correct"), (released, "released")):
        table = training.network.model.vision_tower.vision_tower["vision_model"].embeddings.position_embedding.weight
        assert training.config.vision_position_resize == rule
        assert torch.equal(table, resize_position_table(native, grid=6, rule=rule))


def test_normalization(paper, released, tiny_world, preprocessor):
    """Decision 5: padded images only; without padding the release reads its file too."""
    assert (paper.config.image_mean, paper.config.image_std) == (CLIP_MEAN, CLIP_STD)
    assert (released.config.image_mean, released.config.image_std) == (RELEASED_MEAN, RELEASED_STD)
    cropped = build_for_training(flags(tiny_world, preprocessor, "--release_recipe", "--no_pad_train_clip_images"))
    assert (cropped.config.image_mean, cropped.config.image_std) == (CLIP_MEAN, CLIP_STD)


def test_projector(paper, released, tiny_world):
    """The release starts its projector afresh; ours goes on with LLaVA's."""
    linear = read_weights(tiny_world.llava)["model.mm_projector.weight"]
    width = LLAMA["hidden_size"]
    assert torch.equal(paper.network.model.mm_projector[0].weight[:width], linear)
    fresh = released.network.model.mm_projector[0].weight
    assert not torch.equal(fresh[:width], linear)
    assert fresh.std() > 0


def test_first_queries(paper, released):
    """Ours start as large as the decoder's own tokens; the release's several times smaller."""
    torch.manual_seed(0)
    sizes = []
    for network in (paper.network, released.network):
        fusion = network.model.token_fusion
        states = torch.randn(200, network.codebook.scales, network.codebook.tokens, LLAMA["hidden_size"])
        queries = fusion(network.model.text_hidden_fcs[0](states))
        sizes.append(float(queries.detach().pow(2).mean().sqrt()))
    assert 0.7 < sizes[0] < 1.4
    assert sizes[1] < 0.25


def test_the_saved_config_records_each_choice(paper, released, tmp_path):
    records = []
    for training in (paper, released):
        training.config.save_pretrained(tmp_path)
        flat = read_object(tmp_path / "config.json")
        assert PixelLMConfig.from_dict(flat) == training.config
        records.append(flat)
    ours, theirs = records
    choices = ("release_recipe", *RECIPE_OF_PUBLISHED_WEIGHTS)
    assert {name: ours["recipe"][name] for name in choices} == {
        "release_recipe": False, "refine_alpha": 2.0, "trained_set": "paper", "projector_init": "llava",
        "query_init": "unit", "loss_normalization": "global",
    }  # fmt: skip
    assert {name: theirs["recipe"][name] for name in choices} == {
        "release_recipe": True, "refine_alpha": 1.0, "trained_set": "released", "projector_init": "fresh",
        "query_init": "released", "loss_normalization": "local",
    }  # fmt: skip
    assert (ours["vision_position_resize"], theirs["vision_position_resize"]) == ("correct", "released")
    assert ours["image_mean"] != theirs["image_mean"]


def test_the_record_says_what_a_run_is_made_of(tiny_world):
    mix = (
        "--dataset=sem_seg||refer_seg",
        "--sample_rates=1,3",
        "--sem_seg_data=ade20k",
        "--refer_seg_data=refclef||refcoco",
    )
    record = build_for_training(flags(tiny_world, *mix, "--epochs=2", "--steps_per_epoch=3")).config.recipe
    assert (record["base"], record["vision_tower"]) == ("llava-tiny", "clip-tiny")
    assert record["data"] == [
        {"name": "sem_seg: ade20k", "share": 0.25}, {"name": "refer_seg: refclef", "share": 0.375},
        {"name": "refer_seg: refcoco", "share": 0.375},
    ]  # fmt: skip
    assert {entry["title"] for entry in record["data_terms"]} >= {
        "ADE20K, scene parsing edition",
        "refcoco annotations",
    }
    assert (record["epochs"], record["updates_per_epoch"], record["images_per_update"]) == (2, 3, 20)
    assert record["lora"] == {"rank": 8, "alpha": 16, "layers": ["q_proj", "v_proj"]}
    assert (record["optimizer"], record["lr"], record["precision"]) == ("adamw", 0.0003, "fp32")
    assert "updates" not in record  # a plan is no fact


def test_the_record_names_no_place_on_this_machine(tmp_path, tiny_world):
    (tmp_path / "mine.jsonl").touch()
    mine = (f"--custom_data={tmp_path / 'mine.jsonl'}", "--dataset=custom", "--epoch_mode=all")
    record = recipe_of(flags(tiny_world, *mine))
    assert str(tmp_path) not in json.dumps(record)
    assert str(tiny_world.llava.parent) not in json.dumps(record)
    assert record["data"] == [{"name": "custom: mine.jsonl", "share": None}]
    assert record["updates_per_epoch"] is None


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("openai/clip-vit-large-patch14", "openai/clip-vit-large-patch14"), ("maverickrzw/PixelLM-7B/hf_model@v1",) * 2,
        ("{tmp}/llava", "llava"), ("{tmp}/llava/", "llava"), ("{tmp}/run/hf_model", "run"),
    ],
)  # fmt: skip
def test_names_on_the_hub_stay_and_folders_lose_their_path(tmp_path, given, shown):
    for name in ("llava", "run/hf_model"):
        (tmp_path / name).mkdir(parents=True)
    assert shown_name(given.format(tmp=tmp_path)) == shown


def test_a_run_on_top_of_another_keeps_its_record(tiny_world):
    run = flags(tiny_world)
    first = recipe_of(run)
    second = recipe_of(dataclasses.replace(run, init_from="owner/first"), before=first)
    third = recipe_of(dataclasses.replace(run, init_from="owner/second"), before=second)
    assert [stage.get("init_from", stage.get("base")) for stage in third["earlier"]] == ["owner/first", "llava-tiny"]
    assert "base" not in third
    assert not any("earlier" in stage for stage in third["earlier"])


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        ({"base": 3}, "base is 3"),
        ({"lora": {"rank": 8}}, "lora"),
        ({"data": [{"name": "x", "share": 2.0}]}, "share is 2.0"),
    ],
)
def test_a_damaged_record_is_named(paper, recipe, problem):
    with pytest.raises(InputError, match=problem):
        dataclasses.replace(paper.config, recipe=recipe)


def test_a_record_of_another_version_loads(paper):
    for recipe in ({}, {"refine_alpha": 1.0}, {"release_recipe": True, "of_tomorrow": [1]}):
        config = dataclasses.replace(paper.config, recipe=recipe)
        assert PixelLMConfig.from_dict(config.to_diff_dict()).recipe == recipe


def test_the_run_directory_records_each_choice(tiny_world, tmp_path):
    run = dataclasses.replace(flags(tiny_world, "--release_recipe"), log_base_dir=str(tmp_path), exp_name="x")
    description = RunDescription(run.run_dir)
    description.write_flags(run)
    assert description.read_flags() == run
    stored = read_object(description.folder / "run_config.json")
    assert all(stored[name] == value for name, value in RELEASE_RECIPE_FLAGS.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_mean": 0.5}, "image_mean is 0.5; expected a list"),
        ({"image_mean": [0.5, 0.5]}, "image_mean is .*; expected 3 entries or more"),
        ({"image_std": [1.0, 0.0, 1.0]}, r"image_std\[1\] is 0.0; expected more than 0"),
        ({"image_std": [1.0, "1", 1.0]}, r"image_std\[1\] is '1'; expected a number"),
        ({"image_std": None}, "image_std is None; expected a list"),
        ({"size": "big"}, "size.* is 'big'; expected"),
    ],
)
def test_a_preprocessor_file_of_nonsense_is_named(tmp_path, changes, message):
    good = {"image_mean": [0.5, 0.5, 0.5], "image_std": [1.0, 1.0, 1.0], "size": {"shortest_edge": 56}}
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(good | changes))
    with pytest.raises(InputError, match=rf"^--preprocessor_config {file}: {message}"):
        read_normalization(str(file), image_size=56)
