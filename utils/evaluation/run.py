"""Ask a merged model the questions of benchmarks, in one process or several, and write down what it answers."""

from __future__ import annotations

import logging
import platform
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

import torch
from tqdm import tqdm

from model.errors import InputError
from model.predictor import PixelLMPredictor
from utils import dist
from utils.data.paths import MissingData, check_data_kept
from utils.data.registry import build_val_source
from utils.data.sources import Source
from utils.inference.processes import join_processes, load_predictor, model_files

from .asking import ask
from .benchmarks import Benchmark, expand
from .flags import EvaluateConfig, ProtocolOrAll
from .folder import FLAG, RESULTS, Key, Row, Scoring, Settings, append, check_outputs, gather, keys_done, output_of
from .guards import no_token_group
from .questions import QuestionSet, look_through
from .records import Protocol, QuestionRecord
from .results import finish, judge_answers, table

Wanted = list[tuple[Benchmark, Protocol]]
Part = tuple[QuestionSet, Protocol, list[int]]  # what is asked together: photos of a set, in a protocol

logger = logging.getLogger(__name__)

# What answers depend on, beside precision, files of the model and the questions.
_OF_ANSWERS = ("version", "vision_tower", "conv_type", "load_in_8bit", "load_in_4bit", "limit", "max_new_tokens")


def evaluate(config: EvaluateConfig) -> None:
    """Ask what is not answered yet, score all, and print a table.

    Raises:
        InputError: for a bad model, output or sample, and if the data of every benchmark are missing.
    """
    folder = Path(config.output_dir)
    check_outputs(folder)
    check_data_kept(folder, [config.dataset_dir], flag=FLAG)
    wanted = _wanted(expand(config.names), config.protocol)
    sources, missing = _open_sets(config.dataset_dir, wanted)
    device, precision = join_processes(config)
    config = replace(config, precision=precision)
    sets = {name: look_through(source, name, limit=config.limit) for name, source in sources.items()}
    parts = _parts([row for row in wanted if row[0].name not in missing], sets, config.batch_size)
    with ExitStack() as held:
        with dist.stop_together():
            if dist.is_main():
                settings = _settings(config, wanted, missing, sets)
                held.enter_context(output_of(folder, settings, overwrite=config.overwrite))
        with dist.stop_together():
            done = keys_done(folder)
        _ask_rest(config, parts[dist.rank() :: dist.world_size()], done, folder=folder, device=device)
        if dist.is_main():
            gather(folder)
            _report(config, folder)


def _wanted(benchmarks: Sequence[Benchmark], protocols: Sequence[ProtocolOrAll]) -> Wanted:
    """The rows of the result."""
    wanted: Wanted = []
    for one in benchmarks:
        ways = one.protocols if "all" in protocols else protocols or one.protocols[:1]
        for way in dict.fromkeys(ways):
            if way not in one.protocols:
                raise InputError(
                    f"--protocol {way} is none of {one.name}, which has {', '.join(one.protocols)}; give one of them"
                )
            wanted.append((one, way))
    return wanted


def _open_sets(dataset_dir: str, wanted: Wanted) -> tuple[dict[str, Source], dict[str, str]]:
    """Every set that there are data for, and benchmark -> why it cannot be asked.

    Raises:
        MissingData: if there are no data at all.
    """
    sources: dict[str, Source] = {}
    problems: dict[str, MissingData] = {}
    for name in dict.fromkeys(name for one, _ in wanted for name in one.sets):
        try:
            sources[name] = build_val_source(dataset_dir, name)
        except MissingData as err:
            problems[name] = err
    missing = {
        one.name: str(next(problems[name] for name in one.sets if name in problems))
        for one, _ in wanted
        if any(name in problems for name in one.sets)
    }
    if all(one.name in missing for one, _ in wanted):
        raise next(iter(problems.values()))
    return sources, missing


def _parts(rows: Wanted, sets: Mapping[str, QuestionSet], batch_size: int) -> list[Part]:
    """All that is asked; rows may share sets, whose questions are asked once."""
    asked: dict[tuple[str, Protocol], None] = dict.fromkeys((name, way) for one, way in rows for name in one.sets)
    return [(sets[name], way, batch) for name, way in asked for batch in sets[name].batches(batch_size)]


def _settings(
    config: EvaluateConfig, wanted: Wanted, missing: Mapping[str, str], sets: Mapping[str, QuestionSet]
) -> Settings:
    versions = {name: metadata.version(name) for name in ("torch", "transformers")}
    told = [word for word in sys.argv if not word.startswith(("--local_rank", "--local-rank"))]
    return Settings(
        config={name: value for name, value in asdict(config).items() if name != "local_rank"},
        command=shlex.join(told),
        versions={"pixellm": _own_version(), "python": platform.python_version(), **versions},
        answers={
            **{name: getattr(config, name) for name in (*_OF_ANSWERS, "precision")},
            "model_files": model_files(config.version),
        },
        questions={name: {"num_questions": sum(one.counts), "sha256": one.sha256} for name, one in sets.items()},
        scoring=Scoring(**{name: getattr(config, name) for name in Scoring.__annotations__}),
        rows=[Row(name=one.name, protocol=way, missing=missing.get(one.name, "")) for one, way in wanted],
    )


def _own_version() -> str:
    try:
        return metadata.version("pixellm")
    except metadata.PackageNotFoundError:  # run from a checkout
        return "unknown"


def _ask_rest(config: EvaluateConfig, own: Sequence[Part], done: set[Key], *, folder: Path, device: str) -> None:
    """Of the parts that fall to this process, what is not answered."""
    left = [part for part in own if not done.issuperset(_keys(part))]
    with dist.stop_together():
        predictor = load_predictor(config, precision=config.precision, device=device) if left else None
    with dist.stop_together():
        if predictor:
            total, remaining = (sum(len(_keys(part)) for part in parts) for parts in (own, left))
            with tqdm(total=total, initial=total - remaining, unit="question", disable=not dist.is_main()) as bar:
                for part in left:
                    bar.set_description(" ".join(_keys(part)[0][:2]))
                    append(folder, _ask(predictor, config, part, done), rank=dist.rank())
                    bar.update(len(_keys(part)))


def _keys(part: Part) -> list[Key]:
    asked, way, photos = part
    return [(asked.name, way, index, number) for index in photos for number in range(asked.counts[index])]


def _ask(
    predictor: PixelLMPredictor, config: EvaluateConfig, part: Part, done: Collection[Key]
) -> list[QuestionRecord]:
    asked, way, photos = part
    try:
        return ask(
            predictor, asked.source, photos,
            protocol=way, name=asked.name, done=done,
            batch_size=config.batch_size, max_new_tokens=config.max_new_tokens,
        )  # fmt: skip
    except torch.OutOfMemoryError as err:
        raise InputError(
            f"the memory of the GPU does not suffice for --batch_size {config.batch_size}; give the command again with "
            "a smaller one, which goes on where this one stopped"
        ) from err


def _report(config: EvaluateConfig, folder: Path) -> None:
    """Judge and score, and say what was found."""
    judge_answers(folder, config)
    rows = finish(folder)
    print(table(rows), flush=True)
    for row in rows:
        records = [one.record for one in row.questions]
        name = f"{row.benchmark.name} ({row.protocol})"
        if row.protocol == "generate" and (
            warning := no_token_group(name, records, version=config.version, results_file=str(folder / RESULTS))
        ):
            logger.warning("%s", warning)
    print(f"{folder} holds {', '.join(sorted(path.name for path in folder.iterdir()))}")
