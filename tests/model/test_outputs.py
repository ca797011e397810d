"""Outputs: what may be written where, whole or not at all, and what a killed command leaves."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from model import outputs
from model.errors import InputError
from model.files import read_json, write_json, write_text
from model.outputs import MARK, check_output_file, check_output_folder, exclusive, output_file, output_folder
from tests.support.snapshot import snapshot

KIND = "merged model"
DEAD = 2**22 + 1  # above the largest process id of Linux
ABANDONED = f"pixellm-{outputs._HOST}-{DEAD}"


def write(folder: Path, **files: str) -> None:
    with output_folder(folder, kind=KIND) as partial:
        for name, text in files.items():
            (partial / name).write_text(text)


def refuses(folder: Path, says: str, **how) -> None:
    before = snapshot(folder.parent)
    with pytest.raises(InputError, match=says) as caught:
        check_output_folder(folder, kind=KIND, **how)
    assert "\n" not in str(caught.value)
    assert snapshot(folder.parent) == before


def test_a_folder_is_written_whole_and_marked(tmp_path):
    with output_folder(tmp_path / "deep/hf", kind=KIND) as partial:
        write_json(partial / "below/a.json", 1)
        assert not (tmp_path / "deep/hf").exists()
    assert read_json(tmp_path / "deep/hf" / MARK) == {"kind": KIND, "files": ["below/a.json"]}
    assert os.listdir(tmp_path / "deep") == ["hf"]


def test_an_empty_folder_and_an_own_one_are_replaced(tmp_path):
    (tmp_path / "hf").mkdir()
    write(tmp_path / "hf", old="1")
    write(tmp_path / "hf", new="2")
    assert sorted(os.listdir(tmp_path / "hf")) == [MARK, "new"]
    assert os.listdir(tmp_path) == ["hf"]


def test_of_a_link_what_it_leads_to_is_replaced(tmp_path):
    write(tmp_path / "hf", old="1")
    (tmp_path / "link").symlink_to("hf")
    write(tmp_path / "link", new="2")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "hf/new").is_file()
    (tmp_path / "a.json").write_text("old")
    (tmp_path / "b.json").symlink_to("a.json")
    write_text(tmp_path / "b.json", "new")
    assert (tmp_path / "b.json").is_symlink()
    assert (tmp_path / "a.json").read_text() == "new"


@pytest.mark.parametrize("name", ["notes.txt", "below/notes.txt", "empty/"])
def test_a_file_of_the_user_in_an_own_folder_is_named(tmp_path, name):
    write(tmp_path / "hf", weights="1")
    path = tmp_path / "hf" / name
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if name.endswith("/") else path.write_text("mine")
    refuses(tmp_path / "hf", f"holds {name.rstrip('/')}, which is not part of the merged model")


@pytest.mark.parametrize("mark", [None, {"kind": "toy world", "files": ["a"]}, {"kind": KIND}, [1], KIND, "{"])
def test_the_mark_decides(tmp_path, mark):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/a").write_text("mine")
    if mark is not None:
        (tmp_path / "hf" / MARK).write_text(mark if mark == "{" else json.dumps(mark))
    refuses(tmp_path / "hf", rf"no {MARK} that says that it is a merged model")


def test_a_file_that_comes_while_the_command_works_is_kept(tmp_path):
    write(tmp_path / "hf", weights="1")

    def work() -> None:
        with output_folder(tmp_path / "hf", kind=KIND):
            (tmp_path / "hf/notes.txt").write_text("mine")

    with pytest.raises(InputError, match=r"holds notes\.txt"):
        work()
    assert sorted(os.listdir(tmp_path / "hf")) == [MARK, "notes.txt", "weights"]


def test_inputs_and_the_working_directory_are_kept(tmp_path, monkeypatch):
    (tmp_path / "run/ckpt").mkdir(parents=True)
    refuses(tmp_path / "run", "is or contains .*ckpt", inputs=[tmp_path / "run/ckpt"])
    monkeypatch.chdir(tmp_path / "run/ckpt")
    for folder in ("", ".", "..", "../.."):
        with pytest.raises(InputError, match="the working directory"):
            check_output_folder(folder, kind=KIND)
    refuses(tmp_path / "run", "the working directory")


def test_places_that_no_folder_can_take(tmp_path):
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    for place, says in {"file": "is a file", "file/below/x": "lies below .*/file, which is not a folder",
                        "pipe": "is a device, a pipe or a socket", "x" * 256: "at most 255 bytes",
                        "/".join(["x" * 200] * 25): "at most 255 bytes, a path"}.items():  # fmt: skip
        with pytest.raises(InputError, match=says):
            check_output_folder(tmp_path / place, kind=KIND, flag="--save_path")
    with pytest.raises(InputError, match=r"mount point|working directory"):
        check_output_folder("/", kind=KIND)
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe"]


@pytest.mark.parametrize("place", ["/dev/full", "/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/x", "/sys/x", "/dev/x"])
def test_system_folders_stay_as_they_are(place):
    for check in (lambda: check_output_file(place), lambda: check_output_folder(place, kind=KIND),
                  lambda: write_json(Path(place), {})):  # fmt: skip
        with pytest.raises(InputError, match="holds devices"):
            check()
    assert not Path("/dev/full").exists() or Path("/dev/full").is_char_device()


def test_places_that_no_file_can_take(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    server = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    server.bind("socket")
    (tmp_path / "circle").symlink_to("circle")
    for place, says in {"folder": "is a folder; expected a file", "socket": "a pipe or a socket", "file/x": "below",
                        "é" * 128: "255 bytes", "zero\0": "cannot be written"}.items():  # fmt: skip
        with pytest.raises(InputError, match=says):
            check_output_file(tmp_path / place)
    with pytest.raises(InputError, match=r"--out .*/file is read by this command"):
        check_output_file(tmp_path / "file", flag="--out", inputs=[tmp_path / "folder/../file"])
    server.close()


def test_a_full_disk_is_told_before_and_after(tmp_path):
    with pytest.raises(InputError, match=r"needs about 1152921504\.6 GB"):
        check_output_folder(tmp_path / "hf", kind=KIND, size=2**60)
    with pytest.raises(InputError, match="needs about"):
        check_output_file(tmp_path / "a", size=2**60)

    def fill_up() -> None:
        with output_folder(tmp_path / "hf", kind=KIND):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError, match="No space left"):
        fill_up()
    assert os.listdir(tmp_path) == []


def test_a_name_of_255_bytes_can_be_written(tmp_path):
    name = "x" * 255
    check_output_file(tmp_path / name)
    write_text(tmp_path / name, "text")
    write(tmp_path / ("y" * 255), a="1")
    assert sorted(os.listdir(tmp_path)) == [name, "y" * 255]


def test_bytes_that_are_not_utf8_survive_json(tmp_path):
    write_json(tmp_path / "a.json", {"name": "photo\udce9"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "photo\udce9"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_one(tmp_path, error):
    write(tmp_path / "hf", weights="old")
    write_text(tmp_path / "a.txt", "old")
    before = snapshot(tmp_path)

    def fail(output) -> None:
        with output as partial:
            (partial / "weights" if partial.is_dir() else partial).write_text("new")
            raise error

    for output in (output_folder(tmp_path / "hf", kind=KIND), output_file(tmp_path / "a.txt")):
        with pytest.raises(error):
            fail(output)
    assert snapshot(tmp_path) == before


def test_a_rename_that_fails_brings_the_old_one_back(tmp_path, monkeypatch):
    write(tmp_path / "hf", weights="old")
    before = snapshot(tmp_path)
    rename = Path.rename

    def fail_for_the_new_one(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, "bad disk")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="bad disk"):
        write(tmp_path / "hf", weights="new")
    assert snapshot(tmp_path) == before


def test_only_leftovers_are_removed(tmp_path):
    """Those of a living process, of another target, of another host today, and whatever a user names alike, stay."""
    abandoned = [f".hf.{ABANDONED}.partial", f".hf.{ABANDONED}.replaced", f".hf.pixellm-elsewhere-{DEAD}.partial"]
    kept = [f".hf.pixellm-{outputs._HOST}-{os.getppid()}.partial", f".other.{ABANDONED}.partial", ".hf.partial",
            f".hf.pixellm-else-{DEAD}.partial"]  # fmt: skip
    write(tmp_path / "hf", weights="1")
    for name in (*abandoned, *kept):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("2")
    (tmp_path / f".hf.{ABANDONED}1.partial").write_text("a file, where a folder is expected")
    two_days_ago = time.time() - 2 * 24 * 60 * 60
    for path in (tmp_path / abandoned[2] / "weights", tmp_path / abandoned[2]):
        os.utime(path, (two_days_ago, two_days_ago))
    check_output_folder(tmp_path / "hf", kind=KIND)
    assert sorted(os.listdir(tmp_path)) == sorted(["hf", *kept, f".hf.{ABANDONED}1.partial"])


def test_leftovers_of_a_file_are_removed(tmp_path):
    for name in (f".a.json.{ABANDONED}.partial", f".b.json.{ABANDONED}.partial"):
        (tmp_path / name).write_text("half")
    check_output_file(tmp_path / "a.json")
    assert os.listdir(tmp_path) == [f".b.json.{ABANDONED}.partial"]


def test_the_files_of_one_answer_are_written_together(tmp_path):
    """A second writer waits until the first is done."""
    order = []

    def second() -> None:
        with exclusive(tmp_path / "vis"):
            order.append("second")

    with exclusive(tmp_path / "vis"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(timeout=0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
