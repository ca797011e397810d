"""Adding a dataset family: one ``Family`` and its place in the registry's tuple."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from model.errors import InputError
from tests.support.tiny_data import draw_photo
from utils.data import registry, verify
from utils.data.downloads import look_up, require_data
from utils.data.family import Download, Family, ValSets, find_any
from utils.data.names import check_name, split_names
from utils.data.options import DataOptions
from utils.data.records import RawSample, Turn

HW = (40, 60)


@dataclass
class Squares:
    """Photos of a folder, whose upper left corner is the answer."""

    folder: Path
    name: str

    def __len__(self):
        return len(list(self.folder.glob("*.jpg")))

    def get(self, index, rng):
        photo = sorted(self.folder.glob("*.jpg"))[index]
        masks = np.zeros((1, *HW), dtype=bool)
        masks[:, :10, :10] = True
        return RawSample(photo.name, photo, ((Turn("Where is the square?", "{seg}.", (0,)),),), masks)


def squares_download(part):
    return [Download(f"squares {part}", (lambda paths, flag: find_any(paths.root / part, "*.jpg", flag),), "us", "MIT")]


FAMILY = Family(
    "squares",
    lambda options, part: Squares(options.paths.root / part, part),
    squares_download,
    part_flag="vqa_data",
    known_parts=("small", "large"),
    val_sets=ValSets(
        lambda paths, name: Squares(paths.root / "small", name),
        lambda name: squares_download("small"),
        names=("Squares|val",),
    ),
)


@pytest.fixture
def squares(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "FAMILIES", (*registry.FAMILIES, FAMILY))
    for part in ("small", "large"):
        (tmp_path / part).mkdir()
        draw_photo(tmp_path / part / "1.jpg", HW)
    return DataOptions(tmp_path, "squares", "2", vqa_data="small||large")


def test_it_is_opened_for_training_and_validation(squares):
    sources, rates = registry.build_train_sources(squares)
    assert [source.name for source in sources] == ["small", "large"]
    assert rates == [0.5, 0.5]
    assert registry.build_val_source(squares.dataset_dir, "Squares|val").name == "Squares|val"
    with pytest.raises(InputError, match="--vqa_data: 'tiny' is unknown; available are small, large"):
        registry.build_train_sources(DataOptions(squares.dataset_dir, "squares", "1", vqa_data="tiny"))


def test_its_downloads_are_looked_up(squares):
    statuses = look_up(squares, ["Squares|val"])
    assert {status.download.title: status.flags for status in statuses} == {
        "squares small": ["--dataset squares with --vqa_data small", "--val_dataset Squares|val"],
        "squares large": ["--dataset squares with --vqa_data large"],
    }
    require_data(squares, ["Squares|val"])
    (squares.paths.root / "large/1.jpg").unlink()
    with pytest.raises(InputError, match=r"large holds no \*\.jpg, but --dataset squares with --vqa_data large needs"):
        require_data(squares, [])


def test_verify_goes_through_it(squares, capsys):
    flags = [f"--dataset_dir={squares.dataset_dir}", "--dataset=squares", "--vqa_data=small||large", "--workers=0"]
    assert verify.main([*flags, "--val_dataset=Squares|val", "--deep"]) == 0
    text = capsys.readouterr().out
    for name in ("small", "large", "Squares|val"):
        assert f"{name}: 1 samples, 0 bad\n" in text


def test_names_are_split_and_checked():
    assert split_names(" a ||b|c|| ||") == ["a", "b|c"]
    assert split_names("") == []
    with pytest.raises(InputError, match=r"--x: 'b' is unknown; available are a, c \(several are joined"):
        check_name("b", flag="--x", known=["a", "c"])
