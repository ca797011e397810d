"""What is missing of the data of a run, and what is damaged: the work of ``python -m utils.data.verify``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from model.errors import InputError
from model.files import write_text
from model.outputs import check_output_file

from .downloads import Status, look_up
from .encode import read_photo
from .family import UnusableSource
from .fetch import fetch_missing, make_root
from .flags import VerifyConfig
from .names import split_names
from .options import DataOptions
from .paths import MissingData, check_data_kept
from .records import NOTHING_TO_ASK
from .registry import build_val_source, find_family
from .sources import Source
from .workers import DeadWorker, WatchedLoader, note

_SHOWN = 20  # problems per dataset


def verify(config: VerifyConfig) -> None:
    """Print the table and, with ``--deep``, the problems.

    Raises:
        InputError: if anything is missing or bad.
    """
    if config.report:
        custom = [*split_names(config.custom_data), *(name.partition("|")[2] for name in config.val_datasets)]
        check_output_file(config.report, flag="--report", inputs=custom)
        check_data_kept(config.report, [config.dataset_dir], flag="--report")
    if config.download:
        root = Path(config.dataset_dir)
        make_root(root)
        fetch_missing(look_up(config.options(), config.val_datasets), root, photos=config.download_photos)
    statuses = look_up(config.options(), config.val_datasets)
    for status in statuses:
        print(describe(status))
    missing = [status.download.title for status in statuses if status.missing]
    problems = list(find_problems(config)) if config.deep else []
    if config.report:
        write_text(Path(config.report), "".join(f"{problem}\n" for problem in problems))
    faults = []
    if missing:
        are = "is" if len(missing) == 1 else "are"
        faults.append(f"{len(missing)} of {len(statuses)} downloads {are} missing or incomplete: {', '.join(missing)}")
    if problems:
        faults.append("1 record is bad" if len(problems) == 1 else f"{len(problems)} records are bad")
    if faults:
        is_public = any(status.missing and status.download.archives for status in statuses)
        hint = " --download fetches what is public." if is_public and not config.download else ""
        raise InputError(f"{'; '.join(faults)}.{hint} Correct what is listed above, or leave it out of the flags")


def describe(status: Status) -> str:
    """What is there and how much of it, what is missing, who asks for it, where it comes from, its license."""
    download = status.download
    lines = [f"{'MISSING' if status.missing else 'ok':8}{download.title}"]
    lines += [f"{path}{_count(path, download.full)}" for path in status.found]
    lines += [f"{err.path} {err.problem}" for err in status.missing]
    lines += [f"needed by  {'; '.join(status.flags)}"]
    lines += [f"from       {download.source}", f"license    {download.license}"]
    return f"\n{'':10}".join(lines)


def _count(path: Path, full: int) -> str:
    """How many files a pattern finds, and how many the complete set has: an incomplete download shows."""
    folder, star, pattern = str(path).partition("*")
    if not star:
        return ""
    count = sum(1 for _ in Path(folder).glob(star + pattern))
    return f"   {count:,} files" + (f" of {full:,}" if full else "")


def find_problems(config: VerifyConfig) -> Iterator[str]:
    """Go through every sample of every source; prints a line per source and the first problems of each."""
    for name, build in _builders(config.options(), config.val_datasets):
        try:
            source = build()
            found = [("left out", problem) for problem in getattr(source, "left_out", ())]
            found += _bad_samples(source, config.workers)
            what = f"{len(source):,} samples"
        except MissingData as err:
            print(f"{name}: not opened, {err.path} {err.problem}")
            continue
        except InputError as err:  # it cannot be opened at all
            problems = err.problems if isinstance(err, UnusableSource) else (str(err),)
            found, what = [(err.reason, problem) for problem in problems], "not opened"
        reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(reason for reason, _ in found).items())
        print(f"{name}: {what}, {len(found)} bad{f' ({reasons})' if found else ''}")
        for _, message in found[:_SHOWN]:
            print(f"{'':10}{message}")
        if len(found) > _SHOWN:
            print(f"{'':10}... and {len(found) - _SHOWN} more; --report FILE takes all")
        yield from (message for _, message in found)


def _builders(options: DataOptions, val_datasets: Sequence[str]) -> Iterator[tuple[str, Callable[[], Source]]]:
    """Every source of a run and what opens it, so that one that cannot be opened does not hide the others."""
    for family in map(find_family, options.datasets):
        for part in family.parts(options):
            yield part or family.name, partial(family.open_part, options, part)
    for name in val_datasets:
        yield name, partial(build_val_source, options.dataset_dir, name)


def _bad_samples(source: Source, workers: int) -> Iterator[tuple[str, str]]:
    """Reason and message of every sample that cannot be used; new workers go on behind one at which a worker died."""
    left: Sequence[int] = range(len(source))
    with tqdm(total=len(left), desc=source.name, disable=not sys.stderr.isatty()) as bar:
        while left:
            loader = WatchedLoader(SampleProblems(source), [source], sampler=left, batch_size=None, num_workers=workers)
            done = 0
            try:
                for problem in loader:
                    done += 1
                    bar.update()
                    if problem is not None:
                        yield problem
                return
            except DeadWorker as err:
                if err.item not in left[done:]:
                    raise  # no sample did this
                yield err.reason, str(err)
                left = [index for index in left[done:] if index != err.item]


@dataclass(frozen=True)
class SampleProblems(Dataset):
    """What is wrong with each sample of a source, if anything."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[str, str] | None:
        note(0, index)
        try:
            raw = self.source.get(index, np.random.default_rng(index))
            if raw.image_path is not None:
                read_photo(raw)
        except InputError as err:
            return None if err.reason == NOTHING_TO_ASK else (err.reason, str(err))
        return None
