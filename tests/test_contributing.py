"""CONTRIBUTING.md and docs/extending.md: the recipes work on throw-away material, and what the first names exists."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from model.errors import InputError
from model.predictor import PixelLMPredictor
from model.text.tokenizer import add_codebook, load_tokenizer
from model.values import Share
from utils.benchmark.data import time_samples
from utils.cli.args import build_parser, flag, parse, settings
from utils.cli.config import RunConfig
from utils.data.encode import Encoder
from utils.data.mixture import Mixture
from utils.data.records import RawSample, Turn
from utils.evaluation.asking import ask_all
from utils.evaluation.flags import EvaluateConfig
from utils.evaluation.scores import ScoringOptions, score_records
from utils.training.start import build_for_training, resolve_run_flags

from .support.tiny_data import draw_photo, tiny_config
from .support.tiny_world import TinyWorld, write_llava, write_tokenizer, write_tower
from .test_docs import PLACE, defines

HW = (40, 60)


class Halves:
    """The dataset recipe: photos whose upper half is asked for; the first one is lost."""

    name = "halves"

    def __init__(self, folder: Path, count: int) -> None:
        self._photos = [folder / f"{index}.png" for index in range(count)]
        for photo in self._photos[1:]:
            draw_photo(photo, HW)

    def __len__(self) -> int:
        return len(self._photos)

    def get(self, index: int, rng: np.random.Generator) -> RawSample:
        photo = self._photos[index]
        if not photo.is_file():
            raise InputError(f"{photo} does not exist; download the photos again", reason="image missing")
        mask = np.zeros((1, *HW), dtype=bool)
        mask[:, : HW[0] // 2] = True
        turn = Turn("What is dark?", rng.choice(["The upper half is {seg}.", "{seg}."]), (0,))
        return RawSample(f"halves/{photo.name}", photo, ((turn,),), mask)


@settings
class SharpenConfig:
    """The flag recipe: flags of a command that does not exist."""

    sharpen: bool = flag(False, "sharpen photos")
    strength: Share = flag(0.5, "how much, from 0 to 1")


@pytest.fixture
def encoder(tiny_tokenizer_dir: Path) -> Encoder:
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    codebook = add_codebook(tokenizer, scales=2, tokens=3)
    return Encoder(tokenizer, codebook, tiny_config(codebook))


def test_a_dataset_is_a_source(encoder: Encoder, tmp_path: Path):
    """A sample is a function of its index; one that cannot be used is replaced and reported."""
    mixture = Mixture([Halves(tmp_path, 4)], [1.0], encoder, seed=0)
    samples = [mixture[index] for index in range(12)]
    assert all(sample.masks.sum() == HW[0] * HW[1] / 2 for sample in samples)
    assert [mixture[index].input_ids[0].tolist() for index in range(12)] == [s.input_ids[0].tolist() for s in samples]
    skipped = {(skip.source, skip.reason) for sample in samples for skip in sample.skipped}
    assert skipped == {("halves", "image missing")}


def test_a_validation_set_is_scored(parrot: Path, tmp_path: Path):
    predictor = PixelLMPredictor.from_pretrained(parrot)
    source = Halves(tmp_path, 3)
    draw_photo(tmp_path / "0.png", HW)
    groups, _ = score_records(ask_all(predictor, source, max_new_tokens=20), "matched", options=ScoringOptions())
    scores = groups["all"]
    assert (scores["num_questions"], scores["mean_true"], scores["mean_pred"]) == (3, 1, 1)
    assert 0 <= scores["giou"] <= 1


def test_evaluation_stops_where_training_would_skip(parrot: Path, tmp_path: Path):
    predictor = PixelLMPredictor.from_pretrained(parrot)
    with pytest.raises(InputError, match=r"0\.png does not exist"):
        ask_all(predictor, Halves(tmp_path, 1))


def test_a_measurement_times_any_source(encoder: Encoder, tmp_path: Path):
    source = Halves(tmp_path, 3)
    draw_photo(tmp_path / "0.png", HW)
    timing = time_samples("halves", [source], [1.0], encoder, num=3, rounds=1, seed=0)
    assert timing.rate > 0
    assert sum(timing.shares.values()) == pytest.approx(1)


@pytest.fixture
def base(tmp_path: Path) -> TinyWorld:
    """Folders of a base and a tower; no data."""
    base = TinyWorld(tmp_path / "llava", tmp_path / "clip", tmp_path / "dataset")
    for folder in (base.llava, base.clip):
        folder.mkdir()
    write_llava(base.llava, vocab_size=write_tokenizer(base.llava))
    write_tower(base.clip)
    return base


def test_a_base_is_a_folder_and_a_preset(base: TinyWorld, tmp_path: Path):
    preset = tmp_path / "preset.json"
    preset.write_text(
        json.dumps({"version": str(base.llava), "vision_tower": str(base.clip), "precision": "fp32", "out_dim": 32})
    )
    model = build_for_training(resolve_run_flags(parse(RunConfig, ["--config", str(preset)], "")))
    assert model.base_folder == base.llava
    assert model.config.vision_tower == str(base.clip)
    assert any(parameter.requires_grad for parameter in model.wrapped.parameters())


def test_a_base_without_a_tokenizer_is_refused(base: TinyWorld):
    (base.llava / "tokenizer.model").unlink()
    with pytest.raises(InputError, match=r"expected tokenizer\.model or tokenizer\.json"):
        build_for_training(parse(RunConfig, [*base.arguments, "--precision=fp32"], "").config)


def test_a_flag_is_one_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "flags.json"
    file.write_text('{"sharpen": true, "strength": 0.25}')
    assert parse(SharpenConfig, [], "").config == SharpenConfig(sharpen=False, strength=0.5)
    assert parse(SharpenConfig, ["--sharpen", "--strength=1"], "").config == SharpenConfig(sharpen=True, strength=1.0)
    from_file = parse(SharpenConfig, ["--config", str(file), "--no_sharpen"], "")
    assert from_file.config == SharpenConfig(sharpen=False, strength=0.25)
    assert from_file.given == {"sharpen", "strength"}
    with pytest.raises(InputError, match=r"--strength is 2\.0; expected 1\.0 or less"):
        parse(SharpenConfig, ["--strength=2"], "")
    with pytest.raises(SystemExit):
        parse(SharpenConfig, ["--help"], "")
    assert "how much, from 0 to 1" in " ".join(capsys.readouterr().out.split())


def named(page: str) -> list[str]:
    """What stands in back-ticks, and the commands of indented blocks."""
    blocks = [line.split("#")[0] for line in page.splitlines() if line.startswith("    ")]
    return [" ".join(text.split()) for text in [*re.findall(r"`([^`]+)`", page), *blocks]]


def is_there(text: str, repository: Path, base: Path) -> bool:
    """Whether the page may say it: a place in the code, a file, a flag, or a command of these."""
    flags = {name for config in (RunConfig, EvaluateConfig) for name in build_parser(config, "")._option_string_actions}
    if place := PLACE.fullmatch(f"`{text}`"):
        path = repository / place[1]
        return path.is_file() and defines(ast.parse(path.read_text(encoding="utf-8")).body, place[2])
    first, *rest = shlex.split(text)
    if first.startswith("--"):
        return first in flags | {"--config", "--no_..."}
    if rest[:2] == ["-m", "pytest"]:
        options = (repository / "tests/conftest.py").read_text(encoding="utf-8")
        return (repository / rest[2]).exists() and all(word in options for word in rest if word.startswith("--"))
    if first in ("bash", "python"):
        script = (repository / rest[0]).read_text(encoding="utf-8")
        return all(word in flags or word in script for word in rest[1:] if word.startswith("--"))
    return (repository / first).exists() or (base / first).exists()


def test_everything_named_exists(repository: Path, tiny_world: TinyWorld):
    page = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    known_otherwise = {"slow", ".venv/bin/pre-commit install"}
    texts = set(named(page)) - known_otherwise
    assert {text for text in texts if not is_there(text, repository, tiny_world.llava)} == set()
    for target in re.findall(r"\]\((?!http)([^)#]+)", page):
        assert (repository / target).exists(), target


@pytest.mark.parametrize(
    "text", ["utils/nothing.py", "model/errors.py::Nothing", "--nothing", "bash scripts/test.sh --nothing", "Nothing"]
)
def test_what_does_not_exist_is_noticed(repository: Path, tiny_world: TinyWorld, text: str):
    assert not is_there(text, repository, tiny_world.llava)
