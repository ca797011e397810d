"""The flags that decide what is trained on."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from model.errors import InputError
from utils.cli.args import settings
from utils.cli.config import DataFlags

from .names import split_names
from .paths import DatasetPaths
from .question_plan import QuestionPlan


@settings
class DataOptions(DataFlags):
    """The flags that decide what is trained on, under their released names and with their released defaults.

    Attributes:
        dataset: dataset families, joined with ``||``.
        sample_rates: relative weight of each, joined with commas; not used for a single dataset.
        sem_seg_data, refer_seg_data, vqa_data, reason_seg_data: parts of a family, joined with ``||``; each part is as
            likely as the others. A part of reason_seg is ``ReasonSeg|train``; splits are joined with ``_``.
        explanatory: share of reasoning samples that explain the answer in words alone; -1 for no explanation at all.
        num_classes_per_sample: questions per photo.
        num_classes_per_question: targets per question.
        use_expand_question_list: draw from more wordings.
        custom_data: JSON-lines files of custom, joined with ``||``; every file is as likely as the others.

    Raises:
        InputError: if rates and families differ in number, or a number is out of range.
    """

    def __post_init__(self) -> None:
        if len(self.rates) != len(self.datasets):
            raise InputError(
                f"--sample_rates {self.sample_rates} has {len(self.rates)} numbers for the {len(self.datasets)} "
                f"datasets of --dataset {self.dataset}; expected one for each"
            )

    @classmethod
    def of(cls, flags: Any, **changes: Any) -> DataOptions:
        """The part of a command line that the sources read: its attributes of the same names, but for ``changes``."""
        return cls(**{field.name: getattr(flags, field.name) for field in fields(cls)} | changes)

    @property
    def datasets(self) -> list[str]:
        return split_names(self.dataset)

    @property
    def paths(self) -> DatasetPaths:
        return DatasetPaths(Path(self.dataset_dir))

    @property
    def question_plan(self) -> QuestionPlan:
        return QuestionPlan(self.num_classes_per_sample, self.num_classes_per_question, self.use_expand_question_list)

    @property
    def rates(self) -> list[float]:
        try:
            rates = [float(rate) for rate in self.sample_rates.split(",")]
        except ValueError as err:
            raise InputError(f"--sample_rates {self.sample_rates!r}: expected numbers joined with commas") from err
        if not all(0 < rate < float("inf") for rate in rates):
            raise InputError(f"--sample_rates {self.sample_rates}: expected numbers above 0; leave unused datasets out")
        return rates if len(self.datasets) > 1 else [1.0]
