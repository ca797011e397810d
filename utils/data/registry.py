"""Names that the flags use -> sources. A new dataset family adds a builder here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from model.errors import InputError

from .paths import REFER_SPLIT_BY, DatasetPaths
from .sources import Source, custom, muse, refer

# Names of the release whose loaders are still to come.
NOT_YET = ("sem_seg", "vqa", "reason_seg")
REFER_NOT_YET = ("refclef", "grefcoco")
VAL_NOT_YET = ("ReasonSeg", "refclef", "grefcoco", "multirefcoco", "multirefcoco+", "multirefcocog")


@dataclass(frozen=True)
class DataOptions:
    """The flags that decide what is trained on, under their released names.

    Attributes:
        dataset: dataset families, joined with ``||``.
        sample_rates: relative weight of each, joined with commas.
        refer_seg_data: parts of refer_seg, joined with ``||``; every part is as likely as the others.
        num_classes_per_sample: questions per photo.
        num_classes_per_question: targets per question.
        use_expand_question_list: draw from more wordings.
        custom_data: JSON-lines files of custom, joined with ``||``; every file is as likely as the others.
    """

    dataset_dir: str | Path
    dataset: str
    sample_rates: str
    refer_seg_data: str = "refcoco||refcoco+||refcocog"
    num_classes_per_sample: int = 3
    num_classes_per_question: int = 1
    use_expand_question_list: bool = False
    custom_data: str = ""

    def __post_init__(self) -> None:
        if len(self.rates) != len(self.datasets):
            raise InputError(
                f"--sample_rates {self.sample_rates} has {len(self.rates)} numbers for the {len(self.datasets)} "
                f"datasets of --dataset {self.dataset}; expected one for each"
            )
        for name in ("num_classes_per_sample", "num_classes_per_question"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}; expected 1 or more")

    @property
    def datasets(self) -> list[str]:
        return [name.strip() for name in self.dataset.split("||")]

    @property
    def refer_datasets(self) -> list[str]:
        return [name.strip() for name in self.refer_seg_data.split("||")]

    @property
    def rates(self) -> list[float]:
        try:
            rates = [float(rate) for rate in self.sample_rates.split(",")]
        except ValueError as err:
            raise InputError(f"--sample_rates {self.sample_rates!r}: expected numbers joined with commas") from err
        if not all(0 < rate < float("inf") for rate in rates):
            raise InputError(f"--sample_rates {self.sample_rates}: expected numbers above 0; leave unused datasets out")
        return rates


def build_train_sources(options: DataOptions) -> tuple[list[Source], list[float]]:
    """Open everything that ``--dataset`` names.

    Returns:
        sources and the rate of each; the parts of a family share its rate evenly.
    """
    builders = {"refer_seg": _refer_parts, "multi_reason_seg": _muse_parts, "custom": _custom_parts}
    for name in options.datasets:
        if name not in builders:
            _refuse(name, flag="--dataset", known=list(builders), not_yet=name in NOT_YET)
    sources: list[Source] = []
    rates: list[float] = []
    for name, rate in zip(options.datasets, options.rates, strict=True):
        parts = builders[name](options)
        sources += parts
        rates += [rate / len(parts)] * len(parts)
    return sources, rates


def build_val_source(dataset_dir: str | Path, name: str) -> Source:
    """Open one set of ``--val_dataset``: ``MultiReasonSeg|val``, ``refcoco|unc|val``, ``custom|FILE`` and so on."""
    name = name.strip()
    if name.startswith("custom|"):
        file = Path(name.removeprefix("custom|"))
        return custom.CustomSource(file, asked_by=f"--val_dataset {name}", single_turn=True)
    dataset, split = name.split("|")[0], name.split("|")[-1]
    if name not in val_names():
        _refuse(name, flag="--val_dataset", known=[*val_names(), "custom|FILE"], not_yet=dataset in VAL_NOT_YET)
    paths = DatasetPaths(Path(dataset_dir))
    if dataset in REFER_SPLIT_BY and dataset not in REFER_NOT_YET:
        return refer.ReferVal(paths, dataset, split=split, name=name)
    return muse.MuseVal(paths, split=split, name=name)


def val_names() -> list[str]:
    """Every set that ``build_val_source`` can open; a split may still be absent from the files."""
    known = {name: by for name, by in REFER_SPLIT_BY.items() if name not in REFER_NOT_YET}
    referring = [f"{name}|{by}|{split}" for name, by in known.items() for split in refer.SPLITS]
    return [f"MultiReasonSeg|{split}" for split in muse.SPLITS] + referring


def _refer_parts(options: DataOptions) -> list[Source]:
    for name in options.refer_datasets:
        if name not in REFER_SPLIT_BY or name in REFER_NOT_YET:
            _refuse(
                name,
                flag="--refer_seg_data",
                known=[n for n in REFER_SPLIT_BY if n not in REFER_NOT_YET],
                not_yet=name in REFER_NOT_YET,
            )
    return [
        refer.ReferTrain(
            DatasetPaths(Path(options.dataset_dir)),
            name,
            num_classes_per_sample=options.num_classes_per_sample,
            num_classes_per_question=options.num_classes_per_question,
            expand=options.use_expand_question_list,
        )
        for name in options.refer_datasets
    ]


def _muse_parts(options: DataOptions) -> list[Source]:
    return [muse.MuseTrain(DatasetPaths(Path(options.dataset_dir)), expand=options.use_expand_question_list)]


def _custom_parts(options: DataOptions) -> list[Source]:
    files = [Path(name.strip()) for name in options.custom_data.split("||") if name.strip()]
    if not files:
        raise InputError("--dataset custom needs --custom_data FILE (several joined with ||); see docs/custom_data.md")
    return [custom.CustomSource(file, asked_by=f"--custom_data {file}") for file in files]


def _refuse(name: str, *, flag: str, known: Sequence[str], not_yet: bool) -> NoReturn:
    problem = "is not available yet" if not_yet else "is unknown"
    raise InputError(f"{flag}: {name!r} {problem}; available are {', '.join(known)} (several are joined with ||)")
