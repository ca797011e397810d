"""Files and folders that a command writes: checked before the work begins, written aside, synced, renamed.

A folder is replaced only if it carries our mark (``.pixellm.json``: its kind, and the files that we wrote) and holds
nothing else. What a killed command left beside its target is removed, or put back, by the next one for that target.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from .errors import InputError

MARK = ".pixellm.json"
NAME_BYTES = 255  # of one name, on every usual file system
_PATH_BYTES = 4095 - NAME_BYTES  # leaves room for the temporary name
_DAY = 24 * 60 * 60
# Where files are devices, processes and settings: even one that looks regular is somebody's open file.
_SYSTEM_FOLDERS = (Path("/dev"), Path("/proc"), Path("/sys"))
_SHARED_MEMORY = Path("/dev/shm")
_HOST = re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())[:40]
_ASIDE = r"\.pixellm-(?P<host>\w+)-(?P<pid>\d+)\.(?P<what>partial|replaced)"
_UNFINISHED_FOLDER = re.compile(rf"\..+{_ASIDE}")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# safetensors gives no number, torch.save only what its zip writer or the stream below it came upon.
_FULL_IN_WORDS = re.compile(
    r"No space left|File too large|quota exceeded|iostream error|PytorchStreamWriter failed"
    r"|inline_container.*unexpected pos"
)


def check_output_file(path: str | Path, *, flag: str = "", inputs: Iterable[str | Path] = (), size: int = 0) -> None:
    """Refuse a file that could not be written, or must not be, before hours are spent on it.

    Args:
        flag: names the file in messages.
        inputs: files that the command reads.
        size: about how many bytes will be written.
    Raises:
        InputError: if it is a folder, a device or an input, lies below a file, or there is no right or room to write.
    """
    place = f"{flag} {path}".strip()
    with _problems_told(place):
        target = _locate(path, place)
        if target.is_dir():
            _refuse(place, "is a folder; expected a file")
        if any(Path(read).resolve() == target for read in inputs):
            _refuse(place, "is read by this command and would be lost")
        if target.exists() and not os.access(target, os.W_OK):
            _refuse(place, "is write-protected")
        _check_room(target, place, size)
        _remove_leftovers(target, folders=False)


def check_output_folder(
    folder: str | Path, *, kind: str, flag: str = "", inputs: Iterable[str | Path] = (), size: int = 0
) -> None:
    """Refuse a folder that could not be written, or where something would be lost. An empty one may exist.

    Args:
        kind: what is written, such as "merged model"; a folder of the same kind that we wrote is replaced.
        flag: names the folder in messages.
        inputs: files and folders that the command reads.
        size: about how many bytes will be written.
    Raises:
        InputError: if it is not a folder, is a mount point, holds files that are not ours, is or contains an input or
            the working directory, lies below a file, or there is no right or room to write.
    """
    place = f"{flag} {folder}".strip()
    with _problems_told(place):
        target = _locate(folder, place)
        if target.exists() and not target.is_dir():
            _refuse(place, "is a file; expected a folder")
        for path, what in ((Path.cwd(), "the working directory"), *((Path(read), str(read)) for read in inputs)):
            if path.resolve().is_relative_to(target):
                _refuse(place, f"is or contains {what}, which would be lost")
        if os.path.ismount(target):
            _refuse(place, "is a mount point, which cannot be replaced; give a folder in it")
        _check_replaceable(target, kind, place)
        _check_room(target, place, size)
        _remove_leftovers(target, folders=True)


@contextmanager
def output_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary file name to write to; it takes the place of ``path`` only if everything went well.

    Folders above are made. Of a link, the file that it leads to is replaced.

    Raises:
        InputError: if nothing can be written there.
    """
    place = str(path)
    with _problems_told(place):
        target = _locate(path, place)
        if target.is_dir():
            _refuse(place, "is a folder; expected a file")
        target.parent.mkdir(parents=True, exist_ok=True)
        whole = any(_UNFINISHED_FOLDER.fullmatch(above.name) for above in target.parents)
        if not whole:
            _remove_leftovers(target, folders=False)
    if whole:
        yield target  # the folder around it is synced and renamed as a whole
        return
    partial = _aside(target, "partial")
    try:
        yield partial
        sync(partial)
        partial.replace(target)
    except OSError as err:
        partial.unlink(missing_ok=True)
        _refuse(place, f"cannot be written ({err.strerror})")
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(target.parent)


@contextmanager
def output_folder(folder: str | Path, *, kind: str) -> Iterator[Path]:
    """Give a temporary folder to write in; marked, it takes the place of ``folder`` only if everything went well.

    Args:
        kind: as of ``check_output_folder``.
    Raises:
        InputError: as ``check_output_folder``, and if the disk is full.
    """
    check_output_folder(folder, kind=kind)
    with atomic_folder(folder) as partial:
        yield partial
        mark = {"kind": kind, "files": _contents(partial)}
        (partial / MARK).write_text(json.dumps(mark, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        _check_replaceable(Path(folder).resolve(), kind, str(folder))  # files may have come in the meantime


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """The same for a folder without a mark, inside one that the command owns: what it held is replaced unasked.

    Raises:
        InputError: if nothing can be written there.
    """
    target = Path(folder).resolve()  # of a link, the folder that it leads to is replaced
    partial = _aside(target, "partial")
    with _problems_told(str(folder)):
        if target.parent.is_dir():
            _remove_leftovers(target, folders=True)
        partial.mkdir(parents=True)
    with _full_disk_told(folder):
        try:
            yield partial
            _sync_tree(partial)
            _exchange(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def output_files(folder: str | Path, *, replaces: Callable[[str], bool]) -> Iterator[Path]:
    """Give a temporary folder to write files in; they take their places in ``folder`` only if everything went well.

    Args:
        folder: made if it is missing; its other files stay.
        replaces: whether a file of this name belongs to what is replaced, and goes if it is not written anew.
    Raises:
        InputError: if nothing can be written there, or the disk is full.
    """
    with _problems_told(str(folder)):
        target = _locate(folder, str(folder))
        if target.exists() and not target.is_dir():
            _refuse(str(folder), "is a file; expected a folder")
        partial = _aside(target / "files", "partial")
        target.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target / "files", folders=True)
        partial.mkdir()
    with _full_disk_told(folder):
        try:
            yield partial
            _sync_tree(partial)
            with exclusive(target):
                written = sorted(partial.iterdir())
                for path in written:
                    path.replace(target / path.name)
                names = {path.name for path in written}
                for old in [path for path in target.iterdir() if replaces(path.name) and path.name not in names]:
                    old.unlink()
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for the same out of a folder, which is made if it is missing.

    Raises:
        InputError: if it cannot be made.
    """
    import fcntl  # POSIX alone has it

    with _problems_told(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def is_full(err: BaseException) -> bool:
    """Whether something could not be written because there was no room for it."""
    if isinstance(err, OSError) and err.errno in _NO_ROOM:
        return True
    return _FULL_IN_WORDS.search(str(err)) is not None


def _refuse(place: str, problem: str) -> NoReturn:
    raise InputError(f"{place} {problem}. Nothing was written; give another place")


@contextmanager
def _full_disk_told(folder: str | Path) -> Iterator[None]:
    """That there was no room for a folder, as bad input."""
    try:
        yield
    except Exception as err:
        if is_full(err):
            raise InputError(f"{folder} cannot be written ({err}); make room or give another folder") from err
        raise


@contextmanager
def _problems_told(place: str) -> Iterator[None]:
    """What the operating system refuses, as bad input."""
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError) as err:  # refused; a circle of links; a name with a zero byte
        _refuse(place, f"cannot be written ({getattr(err, 'strerror', None) or err})")


def _locate(path: str | Path, place: str) -> Path:
    """Where a path leads; refused if no file or folder can be there."""
    given = Path(os.path.abspath(path))
    if any(len(os.fsencode(name)) > NAME_BYTES for name in given.parts) or len(os.fsencode(given)) > _PATH_BYTES:
        _refuse(place, f"cannot be written (a name has at most {NAME_BYTES} bytes, a path {_PATH_BYTES})")
    target = given.resolve()
    for candidate in (given, target):
        if any(map(candidate.is_relative_to, _SYSTEM_FOLDERS)) and not candidate.is_relative_to(_SHARED_MEMORY):
            _refuse(place, f"lies in /{candidate.parts[1]}, which holds devices, not files")
    if target.exists() and not (stat.S_ISREG(target.stat().st_mode) or target.is_dir()):
        _refuse(place, "is a device, a pipe or a socket; expected a file or folder")
    return target


def _check_room(target: Path, place: str, size: int) -> None:
    above = next(folder for folder in target.parents if folder.exists())
    if not above.is_dir():
        _refuse(place, f"lies below {above}, which is not a folder")
    # Permission bits do not tell: root ignores them, and a file system may be read-only.
    os.rmdir(tempfile.mkdtemp(prefix=".pixellm-", dir=above))
    free = shutil.disk_usage(above).free
    if free < size:
        _refuse(place, f"needs about {size / 1e9:.1f} GB, but {above} has {free / 1e9:.1f} GB left")


def _check_replaceable(folder: Path, kind: str, place: str) -> None:
    """Only what our mark names may be lost."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    found = _contents(folder)
    mark = _read_mark(folder)
    if mark.get("kind") != kind:
        holds = next((name for name in found if name != MARK), MARK)
        _refuse(place, f"exists and holds {holds}, but no {MARK} that says that it is a {kind} of ours")
    ours = {MARK, *mark["files"]}
    foreign = next((name for name in found if name not in ours), None)
    if foreign:
        _refuse(place, f"exists and holds {foreign}, which is not part of the {kind} and would be lost")


def _read_mark(folder: Path) -> dict[str, Any]:
    if not (folder / MARK).is_file():
        return {}
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    files = mark.get("files") if isinstance(mark, dict) else None
    return mark if isinstance(files, list) and all(isinstance(name, str) for name in files) else {}


def _contents(folder: Path) -> list[str]:
    """Relative names of all files, links and empty folders below a folder, sorted."""
    found = []
    for root, folders, files in os.walk(folder):
        above = Path(root)
        leaves = [above / name for name in files] + [above / name for name in folders if (above / name).is_symlink()]
        if not files and not folders and above != folder:
            leaves.append(above)
        found += [leaf.relative_to(folder).as_posix() for leaf in leaves]
    return sorted(found)


def _aside(target: Path, what: str) -> Path:
    """A name beside the target that says whose it is; as short as a name has to be."""
    return target.with_name(f"{_aside_prefix(target)}.pixellm-{_HOST}-{os.getpid()}.{what}")


def _aside_prefix(target: Path) -> str:
    name = os.fsencode(target.name)
    return f".{target.name}" if len(name) <= NAME_BYTES // 2 else f".{hashlib.sha256(name).hexdigest()}"


def remove_folder(folder: Path) -> None:
    """Remove a folder of ours: at once under its name, so that nobody meets half of it. Of a link, only the link."""
    if folder.is_symlink():
        folder.unlink()
        return
    aside = _aside(folder, "partial")
    folder.rename(aside)
    shutil.rmtree(aside)


def remove_leftovers(target: Path) -> None:
    """Remove what killed commands left beside a file or folder; one that a later write to it would find, too."""
    _remove_leftovers(target, folders=False)
    _remove_leftovers(target, folders=True)


def _remove_leftovers(target: Path, *, folders: bool) -> None:
    """Remove what killed commands left beside a target, and put back an old folder whose successor never came."""
    if not target.parent.is_dir():
        return
    pattern = re.compile(re.escape(_aside_prefix(target)) + _ASIDE)
    for path in list(target.parent.iterdir()):
        match = pattern.fullmatch(path.name)
        if not match or path.is_symlink() or path.is_dir() != folders or not _is_abandoned(path, match):
            continue
        if not folders:
            path.unlink(missing_ok=True)
        elif match["what"] == "replaced" and not (target.exists() and any(target.iterdir())):
            path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path, name: re.Match[str]) -> bool:
    if name["host"] != _HOST:
        newest = max(part.lstat().st_mtime for part in (path, *(path.iterdir() if path.is_dir() else ())))
        return time.time() - newest > _DAY
    if int(name["pid"]) == os.getpid():
        return True  # an earlier process had the same number: this one has not begun
    try:
        os.kill(int(name["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _exchange(partial: Path, target: Path) -> None:
    """Rename a whole new folder into place; until then, or if that fails, the old one is there."""
    if not target.exists() or not any(target.iterdir()):
        partial.rename(target)
        sync(target.parent)
        return
    old = _aside(target, "replaced")
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        if not target.exists():
            old.rename(target)
        raise
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            sync(Path(root, name))
        sync(Path(root))


def sync(path: Path) -> None:
    """Have the disk hold it before a rename says so."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as err:
        if err.errno != errno.EINVAL:  # a file system that cannot sync a folder
            raise
    finally:
        os.close(handle)


def name_aside(folder: Path) -> Path:
    """The first free name ``NAME.old-1``, ``NAME.old-2``, ... for what a new folder of its name takes the place of."""
    return next(path for number in count(1) if not (path := Path(f"{folder}.old-{number}")).exists())
