"""verify --download: what is public comes from a server, whole or resumed, beside what the user has."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections import namedtuple
from functools import partial
from pathlib import Path

import pytest

from model.errors import InputError
from tests.support.bad_input import refused
from tests.support.file_server import FileServer, serve_files
from utils.data import registry, verify
from utils.data.downloads import look_up, needs
from utils.data.family import Archive, Download, Family, find_any
from utils.data.fetch import LOCK, as_size, ask, check_space, fetch
from utils.data.options import DataOptions
from utils.data.paths import DatasetPaths

PHOTOS = {"train/1.jpg": b"first" * 2000, "train/2.jpg": b"second" * 2000}


def zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


@pytest.fixture
def server():
    with serve_files() as files:
        files.files = {
            "photos.zip": zipped({f"Wrapped/{name}": content for name, content in PHOTOS.items()} | {"log.txt": b"x"}),
            "notes.json": b'{"notes": []}',
            "huge.zip": zipped({"huge/1.jpg": b"h"}),
        }
        yield files


@pytest.fixture
def archive(server) -> Archive:
    return Archive(f"{server.address}/photos.zip", "squares", ("train/*.jpg",))


def _find(place: str, paths: DatasetPaths, flag: str) -> Path:
    return find_any(paths.root / "squares" / place, "*.*", flag)


@pytest.fixture
def flags(server, archive, monkeypatch, tmp_path) -> list[str]:
    """The command line of a family with three downloads that the server has, and one that nobody has."""
    notes = Archive(f"{server.address}/notes.json", "squares/notes")
    huge = Archive(f"{server.address}/huge.zip", "squares", ("huge/*.jpg",), is_large=True)
    served = {"train": (archive,), "notes": (notes,), "huge": (huge,), "private": ()}
    downloads = [
        Download(place, (partial(_find, place),), "us", "MIT", archives=archives) for place, archives in served.items()
    ]
    family = Family("squares", lambda options, part: None, lambda part: downloads)
    monkeypatch.setattr(registry, "FAMILIES", (*registry.FAMILIES, family))
    return [f"--dataset_dir={tmp_path / 'data'}", "--dataset=squares", "--workers=0", "--download"]


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_what_is_public_is_fetched_and_the_rest_is_named(flags, tmp_path, capsys):
    refused(verify.main, flags, capsys, "2 of 4 downloads are missing or incomplete: huge, private.")
    found = tree(tmp_path / "data")
    lock = json.loads(found.pop(LOCK))
    assert found == {f"squares/{name}": content for name, content in PHOTOS.items()} | {
        "squares/notes/notes.json": b'{"notes": []}'
    }
    assert sorted(entry["size"] for entry in lock.values())[0] == 13
    assert all(len(entry["sha256"]) == 64 for entry in lock.values())


def test_sizes_are_said_before_and_large_archives_are_left_to_a_flag(flags, server, capsys):
    assert verify.main(flags) == 2
    text = capsys.readouterr().out
    assert f"fetching    {server.address}/notes.json, 13 bytes, for squares/notes/\n" in text
    assert (
        f"left out    {server.address}/huge.zip, {len(server.files['huge.zip'])} bytes: --download_photos fetches it\n"
        in text
    )
    assert text.index("fetching ") < text.index("in place    squares/: 2 new files")
    server.requests.clear()
    assert verify.main([*flags[:-1], "--download_photos"]) == 2
    assert server.requests == [("huge.zip", 0)], "what is there is not fetched again"
    assert "ok      huge" in capsys.readouterr().out


def test_without_the_flag_nothing_is_fetched(flags, server, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    refused(verify.main, flags[:-1], capsys, "4 of 4 downloads are missing", "--download fetches what is public")
    assert server.requests == []
    assert tree(tmp_path / "data") == {}


def test_a_failure_does_not_stop_the_others(flags, server, capsys, tmp_path):
    del server.files["photos.zip"]
    assert verify.main(flags) == 2
    text = capsys.readouterr().out
    assert f"not fetched {server.address}/photos.zip cannot be fetched (HTTP 404)" in text
    assert "put its files into squares/ yourself" in text
    assert (tmp_path / "data/squares/notes/notes.json").exists()


def test_no_file_of_the_user_is_overwritten(archive, tmp_path):
    mine = tmp_path / "squares/train/1.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert fetch(ask(archive), tmp_path) == 1
    assert mine.read_bytes() == b"mine"
    assert (mine.parent / "2.jpg").read_bytes() == PHOTOS["train/2.jpg"]


def test_a_download_that_breaks_off_goes_on(server: FileServer, archive, tmp_path):
    """Within one call as long as something arrives, and by the next call after that."""
    size = len(server.files["photos.zip"])
    server.breaks_after["photos.zip"] = size // 2 - 1
    assert fetch(ask(archive), tmp_path) == 2
    assert [start for _, start in server.requests] == [0, size // 2 - 1, 2 * (size // 2 - 1)]


def test_a_download_that_was_killed_goes_on(server: FileServer, archive, tmp_path):
    offer = ask(archive)
    kept = tmp_path / ".downloads/photos.zip.partial"
    kept.parent.mkdir()
    kept.write_bytes(server.files["photos.zip"][:5000])
    (tmp_path / LOCK).write_text(json.dumps({archive.url: {"version": offer.version}}))
    assert fetch(offer, tmp_path) == 2
    assert server.requests == [("photos.zip", 5000)]
    assert not kept.parent.exists(), "the archive is gone once all of it is in place"


def test_a_part_of_another_version_is_not_continued(server: FileServer, archive, tmp_path):
    kept = tmp_path / ".downloads/photos.zip.partial"
    kept.parent.mkdir()
    kept.write_bytes(b"of another version")
    (tmp_path / LOCK).write_text(json.dumps({archive.url: {"version": "older"}}))
    assert fetch(ask(archive), tmp_path) == 2
    assert server.requests == [("photos.zip", 0)]


def test_a_server_that_gives_nothing(server: FileServer, archive, tmp_path):
    server.breaks_after["photos.zip"] = 0
    with pytest.raises(InputError, match=r"photos\.zip cannot be fetched \(it ended after 0 bytes of .*run the same"):
        fetch(ask(archive), tmp_path)


def test_another_content_from_the_same_address_is_refused(server: FileServer, archive, tmp_path):
    fetch(ask(archive), tmp_path)
    shutil.rmtree(tmp_path / "squares")
    server.files["photos.zip"] = zipped({"train/1.jpg": b"another"})
    with pytest.raises(InputError, match=rf"photos\.zip gave .* SHA-256 .*, expected .*remove its entry from .*{LOCK}"):
        fetch(ask(archive), tmp_path)
    assert not (tmp_path / "squares").exists()


@pytest.mark.parametrize("name", ["../../train/1.jpg", "/etc/train/1.jpg", "a/../train/1.jpg"])
def test_no_path_leaves_the_folder(server: FileServer, archive, tmp_path, name):
    root = tmp_path / "data"
    root.mkdir()
    server.files["photos.zip"] = zipped({name: b"evil", "train/..": b"evil"})
    assert fetch(ask(archive), root) == 1
    assert sorted(tree(tmp_path)) == sorted([f"data/{LOCK}", "data/squares/train/1.jpg"])


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"<html>", "is damaged or no zip archive"), (zipped({"a.txt": b"x"}), r"holds no train/\*\.jpg")],
)
def test_an_archive_that_is_none(server: FileServer, archive, tmp_path, content, says):
    server.files["photos.zip"] = content
    with pytest.raises(InputError, match=says):
        fetch(ask(archive), tmp_path)


def test_room_is_looked_for_first(archive, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1000))
    with pytest.raises(InputError, match=rf"--dataset_dir {tmp_path} has 1 kB free; about .* kB are needed"):
        check_space([ask(archive)], tmp_path)


def test_a_dataset_dir_that_cannot_be_made(flags, tmp_path, capsys):
    (tmp_path / "data").write_text("a file")
    refused(verify.main, flags, capsys, f"--dataset_dir {tmp_path / 'data'} cannot be made")


def test_nobody_listens(archive, server, tmp_path):
    silent = Archive("http://127.0.0.1:9/photos.zip", "squares", ("*.jpg",))
    with pytest.raises(InputError, match=r"photos\.zip cannot be fetched \(.*refused.*put its files into squares/"):
        ask(silent)


def test_sizes_in_words():
    assert [as_size(count) for count in (13, 1000, 19_336_861_798)] == ["13 bytes", "1 kB", "19.3 GB"]


def test_what_is_unpacked_is_what_sources_look_for(tmp_path):
    """Every archive that we name puts its files where the dataset paths find them."""
    options = DataOptions(tmp_path, "sem_seg||refer_seg||vqa||multi_reason_seg", "1,1,1,1")
    public = [download for download, _ in needs(options, []) if download.archives]
    assert len({download.title for download in public}) == 7
    for archive in [archive for download in public for archive in download.archives]:
        for pattern in archive.wanted or (archive.name,):
            file = tmp_path / archive.folder / pattern.replace("*", "train")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"")
    missing = {status.download.title for status in look_up(options, []) if status.missing}
    assert missing
    assert not missing & {download.title for download in public}
