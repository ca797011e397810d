"""The flags of evaluation, apart from its work: reading them imports no torch."""

from __future__ import annotations

from typing import Literal

from model.errors import InputError
from model.values import Count, NonNegativeInt, Seed, Text
from utils.cli.answering import ModelFlags
from utils.cli.args import flag, settings
from utils.cli.config import LocalRank
from utils.data.names import split_names

from .judge_flags import JudgeFlags

Matching = Literal["exact", "released"]
ProtocolOrAll = Literal["generate", "teacher_forced", "named", "all"]
_TO_REPORT = ("rescore", "compare", "efficiency")


@settings
class EvaluateConfig(JudgeFlags, ModelFlags):
    """Flags of scripts/evaluate.py."""

    dataset_dir: str = flag("./dataset", "dataset tree")
    benchmark: tuple[Text, ...] = flag(
        ("MultiReasonSeg|val",), "benchmarks, also joined with || (docs/evaluation.md)", aliases=("--val_dataset",)
    )
    protocol: tuple[ProtocolOrAll, ...] = flag(
        (), "how questions are asked; all for each that a benchmark has; without it, the benchmark's own"
    )
    limit: NonNegativeInt = flag(0, "images per set, from its start; 0 takes all")
    max_new_tokens: Count = flag(512, "longest answer, in tokens")
    batch_size: Count = flag(16, "questions that are answered together, per process; fewer take less memory")
    output_dir: str = flag("./eval_output", "folder that is written; the same command goes on in it")
    overwrite: bool = flag(False, "set an earlier output aside as OUTPUT_DIR.old-1 (or -2, ...), and start anew")
    pictures: NonNegativeInt = flag(8, "answers of each kind and row that report.html shows with their photo")
    matching: Matching = flag("exact", "which mask answers which: exact by IoU, or as released, at random points")
    seed: Seed = flag(0, "of the random points of --matching released")
    rescore: str = flag("", "folder of an evaluation whose numbers are computed again; needs no model and no data")
    compare: tuple[Text, ...] = flag((), "two folders of evaluations, whose answers are compared question by question")
    local_rank: LocalRank = flag(0, "set by a launcher", aliases=("--local-rank",))
    efficiency: bool = flag(False, "print parameters and FLOPs of the published sizes instead")

    def __post_init__(self) -> None:
        ModelFlags.__post_init__(self)
        JudgeFlags.__post_init__(self)
        if not self.names:
            raise InputError("--benchmark names no set; expected names such as MultiReasonSeg|val")
        if "all" in self.protocol and len(self.protocol) > 1:
            raise InputError("--protocol all stands for every protocol; give it alone, or name some")
        if self.compare and len(self.compare) != 2:
            raise InputError(f"--compare has {len(self.compare)} folder(s); expected two")
        told = [name for name in _TO_REPORT if getattr(self, name)]
        if len(told) > 1:
            raise InputError(f"--{told[0]} and --{told[1]} exclude each other; give one of them")
        if told:
            return
        if not self.version:
            raise InputError("--version is missing; give the folder of a merged model")
        if not self.output_dir:
            raise InputError("--output_dir is empty; give the folder that is written")

    @property
    def names(self) -> list[str]:
        """Of the benchmarks, as they were given."""
        return [name for joined in self.benchmark for name in split_names(joined)]
