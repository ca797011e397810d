"""Fetch public archives into a dataset tree: resumed, checked, unpacked beside what is there, never over it.

An archive lies in ``.downloads/`` below the tree until all of it is in place. ``.downloads.json`` records the size and
the SHA-256 of what came from each address, and another content from the same address is refused later.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from model.errors import InputError
from model.files import is_file, read_object, write_json

from .downloads import Status
from .family import Archive

LOCK = ".downloads.json"
_KEPT = ".downloads"
_SECONDS = 60  # without a byte
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Offer:
    """What a server says about an archive.

    Attributes:
        size: bytes.
        version: its ETag, or else its date; "" if it gives neither.
    """

    archive: Archive
    size: int
    version: str


def make_root(root: Path) -> None:
    """Make the dataset tree, if there is none.

    Raises:
        InputError: if it cannot be made.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise InputError(f"--dataset_dir {root} cannot be made ({err.strerror}); choose another folder") from err


def fetch_missing(statuses: Iterable[Status], root: Path, *, photos: bool) -> None:
    """Fetch what is missing of these downloads and public; says sizes first, and each failure in a line.

    Args:
        root: the dataset tree.
        photos: fetch large archives of photos, too.
    Raises:
        InputError: if the tree has no room for all of it.
    """
    offers = list(_offers(statuses, root, photos=photos))
    for offer in offers:
        print(f"fetching    {offer.archive.url}, {as_size(offer.size)}, for {offer.archive.folder}/")
    check_space(offers, root)
    for offer in offers:
        try:
            print(f"in place    {offer.archive.folder}/: {fetch(offer, root):,} new files")
        except InputError as err:
            print(f"not fetched {err}")


def _offers(statuses: Iterable[Status], root: Path, *, photos: bool) -> Iterator[Offer]:
    archives = [
        archive
        for status in statuses
        for archive in status.download.archives
        if status.missing or unfinished(archive, root)
    ]
    for archive in dict.fromkeys(archives):
        try:
            offer = ask(archive)
        except InputError as err:
            print(f"not fetched {err}")
            continue
        if archive.is_large and not photos:
            print(f"left out    {archive.url}, {as_size(offer.size)}: --download_photos fetches it")
        else:
            yield offer


def unfinished(archive: Archive, root: Path) -> bool:
    """Whether an earlier call was interrupted while it fetched or unpacked it."""
    return _place(archive, root).exists() or _partial(archive, root).exists()


def ask(archive: Archive) -> Offer:
    """Size and version of an archive, before it is fetched.

    Raises:
        InputError: if the server cannot be reached or does not have it.
    """
    try:
        with urlopen(Request(archive.url, method="HEAD"), timeout=_SECONDS) as answer:
            version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
            return Offer(archive, int(answer.headers["Content-Length"]), version)
    except (OSError, HTTPException, TypeError, ValueError) as err:  # the last two: it does not say the size
        raise _failed(archive, err) from err


def check_space(offers: Iterable[Offer], root: Path) -> None:
    """Everything unpacked, and the largest archive beside it, must fit.

    Raises:
        InputError: if it does not.
    """
    sizes = [offer.size for offer in offers]
    needed, free = sum(sizes) + max(sizes, default=0), shutil.disk_usage(root).free
    if needed > free:
        raise InputError(
            f"--dataset_dir {root} has {as_size(free)} free; about {as_size(needed)} are needed, archives included. "
            "Make room, or fetch less by naming fewer datasets"
        )


def fetch(offer: Offer, root: Path) -> int:
    """Bring an archive's files into the tree; what an interrupted call has left is used.

    Returns:
        how many files were new; those that are there stay as they are.
    Raises:
        InputError: if it cannot be had, is damaged, or is not what came from this address before.
    """
    archive = offer.archive
    place = _place(archive, root)
    try:
        if not place.exists():
            _transfer(offer, root)
        target = root / archive.folder
        if archive.wanted:
            new = _unpack(place, target, archive)
        else:
            with place.open("rb") as source:
                new = _install(source, target / archive.name)
        place.unlink()
        _remove_if_empty(place.parent)
    except OSError as err:
        raise InputError(
            f"{archive.url} cannot be stored in {root} ({err.strerror}); make room there and run it again"
        ) from err
    return new


def as_size(count: float) -> str:
    """``3.4 GB``; bytes in powers of ten, as disks are sold."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def _place(archive: Archive, root: Path) -> Path:
    return root / _KEPT / archive.name


def _partial(archive: Archive, root: Path) -> Path:
    return root / _KEPT / f"{archive.name}.partial"


def _failed(archive: Archive, err: Exception) -> InputError:
    reason = f"HTTP {err.code}" if isinstance(err, HTTPError) else str(getattr(err, "reason", "") or err)
    return InputError(
        f"{archive.url} cannot be fetched ({reason}); run the same command again, which goes on from there, or put its "
        f"files into {archive.folder}/ yourself"
    )


def _transfer(offer: Offer, root: Path) -> None:
    """Fetch the archive, try again as long as something arrives, and check it against the lock file."""
    archive, partial = offer.archive, _partial(offer.archive, root)
    partial.parent.mkdir(parents=True, exist_ok=True)
    before = -1
    while not partial.exists() or partial.stat().st_size < offer.size:
        arrived = partial.stat().st_size if partial.exists() else 0
        if arrived == before:
            raise _failed(archive, OSError(f"it ended after {as_size(arrived)} of {as_size(offer.size)}"))
        before = arrived
        try:
            _receive(offer, partial, root)
        except URLError as err:
            raise _failed(archive, err) from err
        except (HTTPException, ConnectionError, TimeoutError):  # it broke off
            continue
    _check(offer, partial, root)
    partial.rename(_place(archive, root))


def _receive(offer: Offer, partial: Path, root: Path) -> None:
    """Append what is missing; begin again if the server cannot go on, or has another version now."""
    lock, headers = _read_lock(root), {}
    entry = lock.get(offer.archive.url, {})
    arrived = partial.stat().st_size if partial.exists() else 0
    if arrived and offer.version and entry.get("version") == offer.version:
        headers = {"Range": f"bytes={arrived}-", "If-Range": offer.version}
    else:
        write_json(root / LOCK, lock | {offer.archive.url: entry | {"version": offer.version}})
    with urlopen(Request(offer.archive.url, headers=headers), timeout=_SECONDS) as answer:
        goes_on = answer.status == 206
        done = arrived if goes_on else 0
        with (
            partial.open("ab" if goes_on else "wb") as file,
            tqdm(total=offer.size, initial=done, unit="B", unit_scale=True, desc=offer.archive.name) as bar,
        ):
            while block := answer.read(_BLOCK):
                file.write(block)
                bar.update(len(block))


def _read_lock(root: Path) -> dict[str, Any]:
    return read_object(root / LOCK, remedy="remove it") if is_file(root / LOCK) else {}


def _check(offer: Offer, partial: Path, root: Path) -> None:
    """Record what came the first time, and hold later downloads to it."""
    with partial.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    lock = _read_lock(root)
    recorded = lock.get(offer.archive.url, {}).get("sha256", digest)
    size = partial.stat().st_size
    if recorded != digest or size != offer.size:
        partial.unlink()
        raise InputError(
            f"{offer.archive.url} gave {size} bytes with SHA-256 {digest[:16]}..., expected {offer.size} bytes"
            f"{f' with {recorded[:16]}...' if recorded != digest else ''}; fetch it again, or remove its entry from "
            f"{root / LOCK} if its makers have changed it"
        )
    entry = {"version": offer.version, "size": size, "sha256": digest}
    write_json(root / LOCK, lock | {offer.archive.url: entry})


def _unpack(place: Path, target: Path, archive: Archive) -> int:
    """Files that match, each whole or not at all; paths cannot leave the folder, as only their matched end is kept."""
    try:
        with zipfile.ZipFile(place) as packed:
            wanted = list(_wanted(packed, archive))
            if not wanted:
                raise InputError(
                    f"{archive.url} holds no {' or '.join(archive.wanted)}; its makers have changed it. Unpack "
                    f"{place} yourself"
                )
            new = 0
            for member, name in tqdm(wanted, desc=f"unpacking {archive.name}"):
                with packed.open(member) as source:
                    new += _install(source, target / name)
            return new
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as err:
        raise InputError(
            f"{place} is damaged or no zip archive ({err}); remove it, then run the same command again"
        ) from err


def _wanted(packed: zipfile.ZipFile, archive: Archive) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    for member in packed.infolist():
        path = PurePosixPath(member.filename)
        pattern = next((pattern for pattern in archive.wanted if path.match(pattern)), None)
        if pattern and not member.is_dir():
            yield member, "/".join(path.parts[-pattern.count("/") - 1 :])


def _install(source: IO[bytes], target: Path) -> int:
    """Write a file, whole or not at all, unless something is there; how many were written."""
    if target.exists():
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    with partial.open("wb") as file:
        shutil.copyfileobj(source, file, _BLOCK)
    partial.replace(target)
    return 1


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()
