"""What a dataset family declares about itself; each does so beside its sources, in ``sources/``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model.errors import InputError, one_line
from model.files import is_folder

from .names import check_name, split_names
from .options import DataOptions
from .paths import DatasetPaths, MissingData
from .sources import Source

# Looks up a file, or a folder with a pattern; raises MissingData. The second argument is the flag that asks for it.
Finder = Callable[[DatasetPaths, str], Path]


@dataclass(frozen=True)
class Archive:
    """A file that anyone may fetch: a zip archive, or a single file that is read as it is.

    Attributes:
        url: where it is; only what its makers publish as its address.
        folder: below ``--dataset_dir``, where its files belong.
        wanted: patterns of the files in a zip archive, such as ``train2017/*.jpg``. They match the end of a path, and
            that end is kept; empty for a single file.
        is_large: photos by the ten thousands, which are fetched on demand only.
    """

    url: str
    folder: str
    wanted: tuple[str, ...] = ()
    is_large: bool = False

    @property
    def name(self) -> str:
        """Its file name."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Download:
    """One thing to get.

    Attributes:
        title: unique; two downloads with the same title are the same.
        files: what of it is read.
        source: where it comes from.
        license: what its makers say about its use, as far as we know it.
        full: number of files in a folder of the complete set, where we know it; 0 otherwise.
        archives: what ``verify --download`` can fetch of it; empty where a person has to accept terms, or where we do
            not know an address for certain.
    """

    title: str
    files: tuple[Finder, ...]
    source: str
    license: str
    full: int = 0
    archives: tuple[Archive, ...] = ()


class UnusableSource(InputError):
    """A source cannot be opened, for more reasons than one message holds.

    Attributes:
        problems: all of them, each with its place.
    """

    def __init__(self, message: str, problems: Sequence[str]) -> None:
        super().__init__(message)
        self.problems = tuple(map(one_line, problems))


@dataclass(frozen=True)
class ValSets:
    """The validation sets of a family.

    Attributes:
        open: opens the set of a name.
        downloads: what the set of a name needs.
        names: every set that can be opened; a split may still be absent from the files.
        file_prefix: names of this prefix and a file are sets, too; empty if there are none.
    """

    open: Callable[[DatasetPaths, str], Source]
    downloads: Callable[[str], Sequence[Download]]
    names: tuple[str, ...] = ()
    file_prefix: str = ""

    def __contains__(self, name: str) -> bool:
        return name in self.names or (bool(self.file_prefix) and name.startswith(self.file_prefix))

    @property
    def shown_names(self) -> list[str]:
        """The names, and how one with a file is written."""
        return [*self.names, *([f"{self.file_prefix}FILE"] if self.file_prefix else [])]


@dataclass(frozen=True)
class Family:
    """One of the names of ``--dataset``, with everything that training, evaluation and ``verify`` ask about it.

    Attributes:
        name: as ``--dataset`` has it.
        open_part: opens one part for training. A family without parts is opened with the part "".
        downloads: what a part needs.
        part_flag: the flag that chooses parts, a field of DataOptions; empty if the family has no parts.
        known_parts: every part; empty if other names can be parts, which ``open_part`` and ``downloads`` check.
        extra_downloads: what other flags make necessary: flag with its value -> download.
        val_sets: None if there are no validation sets.
        hint: ends the message that no part is given.
    """

    name: str
    open_part: Callable[[DataOptions, str], Source]
    downloads: Callable[[str], Sequence[Download]]
    part_flag: str = ""
    known_parts: tuple[str, ...] = ()
    extra_downloads: Callable[[DataOptions], Mapping[str, Download]] = field(default=lambda options: {})
    val_sets: ValSets | None = None
    hint: str = ""

    def parts(self, options: DataOptions) -> list[str]:
        """The parts that the flags choose, at least one.

        Raises:
            InputError: if there is none, or one of them is unknown.
        """
        if not self.part_flag:
            return [""]
        parts = split_names(getattr(options, self.part_flag))
        if not parts:
            raise InputError(f"--dataset {self.name} needs --{self.part_flag} (several are joined with ||){self.hint}")
        if self.known_parts:
            for part in parts:
                check_name(part, flag=f"--{self.part_flag}", known=self.known_parts)
        return parts

    def asked_by(self, part: str) -> str:
        """The flags that name a part, for messages."""
        return f"--dataset {self.name}" + (f" with --{self.part_flag} {part}" if self.part_flag else "")


def find_any(folder: Path, pattern: str, asked_by: str) -> Path:
    """The folder with the pattern, if at least one file fits.

    Raises:
        MissingData: if none does.
    """
    if next(folder.glob(pattern), None) is None:
        raise MissingData(folder, f"holds no {pattern}" if is_folder(folder) else "does not exist", asked_by)
    return folder / pattern
