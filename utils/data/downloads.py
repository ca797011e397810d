"""What has to be downloaded for a run: which flag needs it, and whether it is there.

Only names are looked up, no file is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model.errors import InputError

from .family import Download
from .options import DataOptions
from .paths import DatasetPaths, MissingData
from .registry import find_family, find_val_sets


@dataclass
class Status:
    """A download on this disk.

    Attributes:
        flags: what asks for it.
        found: paths; for the files of a folder, with a pattern.
    """

    download: Download
    flags: list[str] = field(default_factory=list)
    found: list[Path] = field(default_factory=list)
    missing: list[MissingData] = field(default_factory=list)


def needs(options: DataOptions, val_datasets: Sequence[str]) -> Iterator[tuple[Download, str]]:
    """Every download that a run reads, and the flag that makes it necessary.

    Raises:
        InputError: if a flag names something unknown, or no part of a family.
    """
    for name in options.datasets:
        family = find_family(name)
        for part in family.parts(options):
            yield from ((download, family.asked_by(part)) for download in family.downloads(part))
        for flag, download in family.extra_downloads(options).items():
            yield download, f"--dataset {name} with {flag}"
    for name in val_datasets:
        yield from ((download, f"--val_dataset {name}") for download in find_val_sets(name).downloads(name))


def look_up(options: DataOptions, val_datasets: Sequence[str]) -> list[Status]:
    """Every download once, with all flags that need it.

    Raises:
        InputError: if a flag names something unknown, or ``--dataset_dir`` is not a folder.
    """
    paths = DatasetPaths(Path(options.dataset_dir))
    statuses: dict[str, Status] = {}
    for download, flag in needs(options, val_datasets):
        status = statuses.setdefault(download.title, Status(download))
        if not status.flags:
            for find in download.files:
                try:
                    status.found.append(find(paths, flag))
                except MissingData as err:
                    if all(err.path != other.path for other in status.missing):
                        status.missing.append(err)
        status.flags.append(flag)
    return list(statuses.values())


def require_data(options: DataOptions, val_datasets: Sequence[str]) -> None:
    """Stop before the slow start of a run if any file that it needs is missing.

    Raises:
        MissingData: if one place has no data.
        InputError: if several have none; the message names all of them.
    """
    missing = [err for status in look_up(options, val_datasets) for err in status.missing]
    if len(missing) == 1:
        raise missing[0]
    if missing:
        raise InputError(
            f"{len(missing)} places have no data: {_list_by_flag(missing, Path(options.dataset_dir))}. "
            "`python -m utils.data.verify` with the same flags says where they come from"
        )


def _list_by_flag(missing: Sequence[MissingData], root: Path) -> str:
    """``--sem_seg_data ade20k: ade20k/images/training, ade20k/annotations/training; --vqa_data ...``."""
    places: dict[str, list[str]] = {}
    for err in missing:
        place = err.path.relative_to(root) if err.path.is_relative_to(root) else err.path
        problem = "" if err.problem == "does not exist" else f" ({err.problem})"
        places.setdefault(err.asked_by.rpartition(" with ")[2], []).append(f"{place}{problem}")
    return "; ".join(f"{flag}: {', '.join(of_flag)}" for flag, of_flag in places.items())
