"""The output folder of an evaluation: what was begun, and a line for each question that is answered. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, cast

from pydantic import Field
from typing_extensions import TypedDict

from model.errors import InputError
from model.files import is_file, read_object, write_json
from model.outputs import check_output_file
from model.values import NonNegativeInt, Schema, Seed, Share, Text, shorten
from utils.inference import output_folder
from utils.inference.output_folder import SETTINGS, anew, hold, in_whole_batches, put_together, read_lines

from .benchmarks import Benchmark, expand
from .records import Protocol, QuestionRecord, sort_records

FLAG = "--output_dir"
RESULTS, SCORED, REPORT, COMPARISON = "results.json", "questions.jsonl", "report.html", "compare.html"
_ANEW = anew(FLAG)
_GO_ON = "give the command again that began it, which goes on where it stopped"

Key = tuple[str, str, int, int]


class Questions(TypedDict):
    """Of a validation set; see ``questions.QuestionSet``."""

    num_questions: NonNegativeInt
    sha256: Text


class Scoring(TypedDict):
    """What the numbers depend on beside answers and verdicts; the names are those of the flags."""

    matching: Literal["exact", "released"]
    seed: Seed
    judge: Literal["none", "llm"]
    judge_threshold: Share


class Row(TypedDict):
    """A row of the result; ``missing`` says why nothing was asked."""

    name: Text
    protocol: Protocol
    missing: Text


class Settings(TypedDict):
    """What settings.json holds.

    ``config``, ``command`` and ``versions`` are those of the first start. ``answers`` is what the answers depend on.
    """

    config: dict[str, Any]
    command: Text
    versions: dict[str, Text]
    answers: dict[str, Any]
    questions: dict[str, Questions]
    scoring: Scoring
    rows: list[Row]


class _Line(TypedDict):
    batch: NotRequired[Annotated[list[Text | NonNegativeInt], Field(min_length=2)]]


_SETTINGS, _LINE = Schema(Settings), Schema(_Line)


@dataclass(frozen=True)
class AnsweredRow:
    """A row with the answers to its questions, in the order of the set; ``missing`` says why there are none."""

    benchmark: Benchmark
    protocol: Protocol
    records: tuple[QuestionRecord, ...]
    missing: str = ""


@contextmanager
def output_of(folder: Path, settings: Settings, *, overwrite: bool) -> Iterator[None]:
    """Have the folder for the block, its finished lines together in ``predictions.jsonl``.

    Args:
        settings: of this start. Of an earlier one, ``answers`` and the questions of each set have to be the same.
        overwrite: set an earlier folder aside.
    Raises:
        InputError: if the folder cannot be written, holds something else, was begun with other settings, or another
            process is at work in it.
    """
    check_outputs(folder)
    with hold(folder, flag=FLAG, writer="scripts/evaluate.py", overwrite=overwrite) as begun:
        if begun is not None:
            earlier = read_settings(folder)
            _check_same(earlier, settings, place=f"{FLAG} {folder}")
            kept = {name: earlier[name] for name in ("config", "command", "versions")}
            settings = Settings(**{**settings, **kept, "questions": earlier["questions"] | settings["questions"]})
        write_json(folder / SETTINGS, settings)
        gather(folder)
        yield


def check_outputs(folder: Path) -> None:
    """Refuse a folder whose files could not be written, before hours are spent on it.

    Raises:
        InputError: if so.
    """
    for name in (SETTINGS, output_folder.ANSWERS, RESULTS, SCORED, REPORT):
        check_output_file(folder / name, flag=FLAG)


def read_settings(folder: Path) -> Settings:
    """What an evaluation was begun with.

    Raises:
        InputError: if the folder is none of an evaluation, or the file is damaged.
    """
    file = folder / SETTINGS
    if not is_file(file):
        raise InputError(f"{file} does not exist; give a folder that scripts/evaluate.py wrote")
    return _SETTINGS.check(read_object(file, remedy=_ANEW), where=str(file), remedy=_ANEW)


def write_settings(folder: Path, settings: Settings) -> None:
    """Replace them, whole or not at all."""
    write_json(folder / SETTINGS, settings)


def append(folder: Path, records: Sequence[QuestionRecord], *, rank: int) -> None:
    """Add the records of questions that were asked together; whatever happens afterwards, the disk holds them."""
    batch = [*records[0].key, len(records)]
    output_folder.append(folder, [record.to_line() | {"batch": batch} for record in records], rank=rank)


def gather(folder: Path) -> None:
    """Put the lines of all processes together, in the order of the questions.

    Raises:
        InputError: if a line cannot be read.
    """
    put_together(folder, [record.to_line() for record in _whole_batches(folder)])


def keys_done(folder: Path) -> set[Key]:
    """Of the questions that are answered.

    Raises:
        InputError: if a line cannot be read.
    """
    return {record.key for record in _whole_batches(folder)}


def read_rows(folder: Path) -> list[AnsweredRow]:
    """The rows of an evaluation that has come to its end.

    Raises:
        InputError: if questions are not answered yet, or a file is damaged.
    """
    settings = read_settings(folder)
    answered: dict[tuple[str, str], list[QuestionRecord]] = {}
    for record in _whole_batches(folder):
        answered.setdefault((record.benchmark, record.protocol), []).append(record)
    rows = []
    for row in settings["rows"]:
        benchmark = next((one for one in expand([row["name"]]) if one.name == row["name"]), None)
        if benchmark is None or (not row["missing"] and not settings["questions"].keys() >= set(benchmark.sets)):
            raise InputError(f"{folder / SETTINGS} has {row['name']} among its rows, but not its questions; {_ANEW}")
        if row["missing"]:
            rows.append(AnsweredRow(benchmark, row["protocol"], (), row["missing"]))
            continue
        of_row = [record for name in benchmark.sets for record in answered.get((name, row["protocol"]), ())]
        wanted = sum(settings["questions"][name]["num_questions"] for name in benchmark.sets)
        if len(of_row) != wanted:
            raise InputError(
                f"{folder} has answers to {len(of_row)} of the {wanted} questions of {benchmark.name} "
                f"({row['protocol']}); {_GO_ON}"
            )
        rows.append(AnsweredRow(benchmark, row["protocol"], tuple(of_row)))
    return rows


def _whole_batches(folder: Path) -> list[QuestionRecord]:
    """All records, in the order of the sets, but for those of batches that were torn."""
    lines: dict[Key, dict[str, Any]] = {}
    records: dict[Key, QuestionRecord] = {}
    for where, content in read_lines(folder, remedy=_ANEW):
        record = QuestionRecord.of_line(content, where=where, remedy=_ANEW)
        records[record.key] = record
        lines[record.key] = cast(dict[str, Any], _LINE.check(content, where=where, remedy=_ANEW))
    return sort_records([records[key] for key in in_whole_batches(lines)])


def _check_same(begun: Settings, now: Settings, *, place: str) -> None:
    for name, value in now["answers"].items():
        before = begun["answers"].get(name)
        if before == value:
            continue
        if name == "model_files":
            raise InputError(f"{place} was begun with other files of the model; {_ANEW}")
        raise InputError(
            f"{place} was begun with --{name} {shorten(before)}, now it is {shorten(value)}; give it as it was to go "
            f"on, or {_ANEW}"
        )
    for name, questions in now["questions"].items():
        if begun["questions"].get(name, questions) != questions:
            raise InputError(f"{place} was begun with other questions or masks of {name}; {_ANEW}")
