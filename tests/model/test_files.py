"""What is read as a file: regular files, and nothing that makes its reader wait or never ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from model.errors import InputError, one_line
from model.files import is_file, read_bytes, read_json, read_object
from model.image import read_image
from model.outputs import MARK, check_output_folder
from model.weights.tensors import read_weights


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_circle(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [make_pipe, make_endless, make_circle, Path.mkdir])
def test_only_regular_files_are_read(tmp_path, make):
    path = tmp_path / "input"
    make(path)
    assert not is_file(path)
    for read in (read_json, read_object, read_image, lambda path: read_bytes(path, remedy="give a file")):
        with pytest.raises(InputError, match=rf"{path} (is not a file|does not exist)"):
            read(path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("make", [make_pipe, make_endless])
def test_weights_are_regular_files(tmp_path, name, make):
    make(tmp_path / name)
    (tmp_path / f"{name}.index.json").write_text(f'{{"weight_map": {{"a": "{name}"}}}}')
    with pytest.raises(InputError, match=rf"weights {tmp_path / name} cannot be read \(it is not a file\)"):
        read_weights(tmp_path)


@pytest.mark.parametrize("make", [make_pipe, make_endless, Path.mkdir])
def test_a_mark_is_a_regular_file(tmp_path, make):
    (tmp_path / "hf").mkdir()
    make(tmp_path / "hf" / MARK)
    with pytest.raises(InputError, match=rf"holds {MARK}, but no {MARK} that says"):
        check_output_folder(tmp_path / "hf", kind="merged model")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_names_that_no_file_can_have(tmp_path, name):
    with pytest.raises(InputError, match=r"does not exist; check the path"):
        read_bytes(tmp_path / name, remedy="check the path")


def test_a_message_shows_what_would_turn_or_break_its_line():
    assert one_line("a\nb\u2028c\u202ed\u2066e\ud800f\x1b[2J") == r"a\nb\u2028c\u202ed\u2066e\ud800f\x1b[2J"
    assert one_line("\u05d0\u0645 stays") == "\u05d0\u0645 stays"
