"""Names that the flags use -> sources. A new dataset family adds a builder here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from model.errors import InputError
from utils.cli.args import settings
from utils.cli.config import DataFlags

from .asking import Asking
from .paths import REFER_SPLIT_BY, DatasetPaths
from .sources import Source, custom, muse, reason_seg, refer
from .sources.label_maps import LABEL_MAPS
from .sources.parts import PARTS
from .sources.vqa import Vqa

SEM_SEG = {**LABEL_MAPS, **PARTS}


@settings
class DataOptions(DataFlags):
    """The flags that decide what is trained on, under their released names and with their released defaults.

    Attributes:
        dataset: dataset families, joined with ``||``.
        sample_rates: relative weight of each, joined with commas.
        sem_seg_data, refer_seg_data, vqa_data, reason_seg_data: parts of a family, joined with ``||``; each part is as
            likely as the others. A part of reason_seg is ``ReasonSeg|train``; splits are joined with ``_``.
        explanatory: share of reasoning samples that explain the answer in words alone; -1 for no explanation at all.
        num_classes_per_sample: questions per photo.
        num_classes_per_question: targets per question.
        use_expand_question_list: draw from more wordings.
        custom_data: JSON-lines files of custom, joined with ``||``; every file is as likely as the others.
    """

    def __post_init__(self) -> None:
        if len(self.rates) != len(self.datasets):
            raise InputError(
                f"--sample_rates {self.sample_rates} has {len(self.rates)} numbers for the {len(self.datasets)} "
                f"datasets of --dataset {self.dataset}; expected one for each"
            )
        if self.explanatory != -1 and not 0 <= self.explanatory <= 1:
            raise InputError(f"--explanatory is {self.explanatory}; expected a share from 0 to 1, or -1 for none")

    @classmethod
    def of(cls, flags: Any, **changes: Any) -> DataOptions:
        """The part of a command line that the sources read: its attributes of the same names, but for ``changes``."""
        return cls(**{field.name: getattr(flags, field.name) for field in fields(cls)} | changes)

    @property
    def datasets(self) -> list[str]:
        return _names(self.dataset)

    @property
    def paths(self) -> DatasetPaths:
        return DatasetPaths(Path(self.dataset_dir))

    @property
    def asking(self) -> Asking:
        return Asking(self.num_classes_per_sample, self.num_classes_per_question, self.use_expand_question_list)

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
    for name in options.datasets:
        if name not in FAMILIES:
            _refuse(name, flag="--dataset", known=list(FAMILIES))
    sources: list[Source] = []
    rates: list[float] = []
    for name, rate in zip(options.datasets, options.rates, strict=True):
        parts = FAMILIES[name](options)
        sources += parts
        rates += [rate / len(parts)] * len(parts)
    return sources, rates


def build_val_source(dataset_dir: str | Path, name: str) -> Source:
    """Open one set of ``--val_dataset``: ``MultiReasonSeg|val``, ``refcoco|unc|val``, ``custom|FILE`` and so on."""
    name = name.strip()
    if name.startswith("custom|"):
        file = Path(name.removeprefix("custom|"))
        return custom.CustomSource(file, asked_by=f"--val_dataset {name}", single_turn=True)
    if name not in val_names():
        _refuse(name, flag="--val_dataset", known=[*val_names(), "custom|FILE"])
    paths = DatasetPaths(Path(dataset_dir))
    dataset, split = name.split("|")[0], name.split("|")[-1]
    if dataset == "ReasonSeg":
        return reason_seg.ReasonSegVal(paths, split=split, name=name)
    if dataset == "MultiReasonSeg":
        return muse.MuseVal(paths, split=split, name=name)
    sizes = refer.MULTI_GROUP_SIZES if dataset.startswith("multi") else (1,)
    return refer.ReferVal(paths, dataset.removeprefix("multi"), split=split, name=name, group_sizes=sizes)


def val_names() -> list[str]:
    """Every set that ``build_val_source`` can open; a split may still be absent from the files."""
    reasoning = [f"ReasonSeg|{split}" for split in reason_seg.VAL_SPLITS]
    reasoning += [f"MultiReasonSeg|{split}" for split in muse.SPLITS]
    referring = [f"{name}|{by}|{split}" for name, by in REFER_SPLIT_BY.items() for split in refer.SPLITS]
    return [*reasoning, *referring, *(f"multi{name}" for name in referring)]


def _sem_seg(options: DataOptions) -> list[Source]:
    sources = []
    for name in _names(options.sem_seg_data):
        if name not in SEM_SEG:
            _refuse(name, flag="--sem_seg_data", known=list(SEM_SEG))
        asked_by = f"--dataset sem_seg with --sem_seg_data {name}"
        sources.append(SEM_SEG[name](options.paths, asked_by=asked_by, asking=options.asking))
    return sources


def _refer_seg(options: DataOptions) -> list[Source]:
    names = _names(options.refer_seg_data)
    for name in names:
        if name not in REFER_SPLIT_BY:
            _refuse(name, flag="--refer_seg_data", known=list(REFER_SPLIT_BY))
    return [refer.ReferTrain(options.paths, name, asking=options.asking) for name in names]


def _vqa(options: DataOptions) -> list[Source]:
    return [Vqa(options.paths, name) for name in _names(options.vqa_data)]


def _reason_seg(options: DataOptions) -> list[Source]:
    sources = []
    for name in _names(options.reason_seg_data):
        dataset, _, splits = name.partition("|")
        if dataset != "ReasonSeg" or not splits:
            _refuse(name, flag="--reason_seg_data", known=["ReasonSeg|train", "ReasonSeg|train_val"])
        source = reason_seg.ReasonSegTrain(
            options.paths,
            splits=splits,
            num_questions=options.num_classes_per_sample,
            explanatory=options.explanatory,
            expand=options.use_expand_question_list,
        )
        sources.append(source)
    return sources


def _multi_reason_seg(options: DataOptions) -> list[Source]:
    return [muse.MuseTrain(options.paths, expand=options.use_expand_question_list)]


def _custom(options: DataOptions) -> list[Source]:
    files = [Path(name) for name in _names(options.custom_data) if name]
    if not files:
        raise InputError("--dataset custom needs --custom_data FILE (several joined with ||); see docs/custom_data.md")
    return [custom.CustomSource(file, asked_by=f"--custom_data {file}") for file in files]


FAMILIES: dict[str, Callable[[DataOptions], list[Source]]] = {
    "sem_seg": _sem_seg,
    "refer_seg": _refer_seg,
    "vqa": _vqa,
    "reason_seg": _reason_seg,
    "multi_reason_seg": _multi_reason_seg,
    "custom": _custom,
}


def _names(joined: str) -> list[str]:
    return [name.strip() for name in joined.split("||")]


def _refuse(name: str, *, flag: str, known: Sequence[str]) -> NoReturn:
    raise InputError(f"{flag}: {name!r} is unknown; available are {', '.join(known)} (several are joined with ||)")
