"""The list of dataset families, and what is looked up in it by name.

A new family is a file in ``sources/`` that declares a ``Family``, and a line in ``FAMILIES``.
"""

from __future__ import annotations

from pathlib import Path

from .family import Family, ValSets
from .names import check_name
from .options import DataOptions
from .paths import DatasetPaths
from .sources import Source, custom, muse, reason_seg, refer, sem_seg, vqa

FAMILIES: tuple[Family, ...] = (
    sem_seg.FAMILY,
    refer.FAMILY,
    vqa.FAMILY,
    reason_seg.FAMILY,
    muse.FAMILY,
    custom.FAMILY,
)


def find_family(name: str) -> Family:
    """The family of this name.

    Raises:
        InputError: if there is none.
    """
    families = {family.name: family for family in FAMILIES}
    check_name(name, flag="--dataset", known=families)
    return families[name]


def find_val_sets(name: str) -> ValSets:
    """The validation sets that ``name``, one of ``--val_dataset``, belongs to.

    Raises:
        InputError: if there is none.
    """
    groups = [family.val_sets for family in FAMILIES if family.val_sets is not None]
    for sets in groups:
        if name in sets:
            return sets
    check_name(name, flag="--val_dataset", known=[shown for sets in groups for shown in sets.shown_names])
    raise AssertionError(f"{name} is shown, but in none of the sets")


def build_train_sources(options: DataOptions) -> tuple[list[Source], list[float]]:
    """Open everything that ``--dataset`` names.

    Returns:
        sources and the rate of each; the parts of a family share its rate evenly.
    Raises:
        InputError: if a name is unknown, or a file is missing or damaged.
    """
    families = [find_family(name) for name in options.datasets]
    sources: list[Source] = []
    rates: list[float] = []
    for family, rate in zip(families, options.rates, strict=True):
        parts = family.parts(options)
        sources += [family.open_part(options, part) for part in parts]
        rates += [rate / len(parts)] * len(parts)
    return sources, rates


def build_val_source(dataset_dir: str | Path, name: str) -> Source:
    """Open one set of ``--val_dataset``: ``MultiReasonSeg|val``, ``refcoco|unc|val``, ``custom|FILE`` and so on.

    Raises:
        MissingData: if a file, a folder of photos or a split is missing.
        InputError: if the name is unknown, or a file is damaged.
    """
    name = name.strip()
    sets, paths = find_val_sets(name), DatasetPaths(Path(dataset_dir))
    for download in sets.downloads(name):  # photos, too: a source looks for these when it is asked for a sample
        for find in download.files:
            find(paths, f"--val_dataset {name}")
    return sets.open(paths, name)


def val_names() -> list[str]:
    """Every set that ``build_val_source`` can open, but for files of custom data.

    A split may still be absent from the files.
    """
    return [name for family in FAMILIES if family.val_sets is not None for name in family.val_sets.names]
