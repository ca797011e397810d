"""Runs damaged cases in child processes, where a crash or an endless loop ends one case and names it.

A case follows from (seed, target, number) alone. Each process makes what is slow once, and then forks: a child works
through cases until one kills it, and the next child goes on behind that one.
"""

from __future__ import annotations

import faulthandler
import importlib
import logging
import mmap
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import time
import traceback
import unicodedata
import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from .mutate import Mutator, damage_path

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 10.0  # of processor time: how busy the machine is, does not matter
_PATIENCE = 12  # a case that waits ends after so many limits
MEMORY_BYTES = 6 << 30  # of address space: far more than any sound case takes
LONGEST_MESSAGE = 2000
_CASES_PER_CHILD = 400
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of surrogate pairs, line and paragraph ends
_REPEAT = "python -m pytest tests/mutations --mutation_seed {seed} --mutation_case {case}"
USED, REFUSED = "used", "refused"


@dataclass(frozen=True)
class Target:
    """Something that reads what a user gives.

    Attributes:
        use: reads it, through the functions that users reach. It may raise ``InputError``, and nothing else.
        files: of the input folder; one of them, drawn at random, is damaged. Without any, ``use`` damages something.
        weight: how many cases it gets, compared with the others.
    """

    use: Callable[[Case], object]
    files: tuple[str, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True)
class Suite:
    """What a module offers under the name ``SUITE``.

    Attributes:
        write_inputs: writes sound input into an empty folder, once.
        prepare: makes what cases share, from that folder, once per process.
    """

    targets: Mapping[str, Target]
    write_inputs: Callable[[Path], None] = lambda root: None
    prepare: Callable[[Path], Any] = lambda root: None


@dataclass
class Case:
    """One use of one damaged input.

    Attributes:
        root: a copy of the input folder; what is damaged in it, is so for this case only.
        scratch: an empty folder to write into.
        tools: what the suite prepared.
        refusals: of parts of the input, where the rest can still be used.
    """

    root: Path
    scratch: Path
    tools: Any
    mutator: Mutator
    refusals: list[Exception] = field(default_factory=list)

    @property
    def rng(self) -> np.random.Generator:
        return self.mutator.rng

    def attempt(self, do: Callable[[], Any]) -> Any:
        """What ``do`` returns; None if it refuses its input."""
        from model.errors import InputError

        try:
            return do()
        except InputError as err:
            self.refusals.append(err)


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        kind: ``used``, ``refused``, or what is wrong: the name of an exception or a signal, or a few words.
        place: the innermost line of our code.
        notes: what was damaged.
        detail: messages and tracebacks.
        seconds: of processor time.
    """

    target: str
    number: int
    kind: str
    place: str = ""
    notes: str = ""
    detail: str = ""
    seconds: float = 0.0

    @property
    def is_failure(self) -> bool:
        return self.kind not in (USED, REFUSED)


def plan(targets: Mapping[str, Target], count: int) -> list[tuple[str, int]]:
    """Divide ``count`` cases over the targets by weight, at least one each; mixed, so that processes end together."""
    total = sum(target.weight for target in targets.values())
    cases = [
        (name, number)
        for name, target in targets.items()
        for number in range(max(1, round(count * target.weight / total)))
    ]
    random.Random(0).shuffle(cases)
    return cases


def run_cases(
    suite: str, cases: Sequence[tuple[str, int]], *, seed: int, folder: Path, processes: int, limit_s: float = LIMIT_S
) -> list[Outcome]:
    """Run cases in several processes.

    Args:
        suite: name of the module that has the ``SUITE``.
        cases: target and number of each.
        folder: an empty folder to work in.
        limit_s: a case that takes more processor time is a failure.
    Raises:
        RuntimeError: if a process ends early: the input is not made, or cases are started, by unsound code.
    """
    inputs = folder / "inputs"
    inputs.mkdir()
    _write_inputs(importlib.import_module(suite).SUITE, inputs)
    context = multiprocessing.get_context("spawn")  # a process with threads must not fork
    readers: list[Connection] = []
    workers = []
    for number in range(min(processes, len(cases))):
        reader, writer = context.Pipe(duplex=False)
        work = _Work(suite, cases[number::processes], seed, inputs, folder / str(number), limit_s)
        workers.append(context.Process(target=work, args=(writer,), daemon=True))
        with _environment():
            workers[-1].start()
        writer.close()
        readers.append(reader)
    outcomes = list(_collect(readers))
    for worker in workers:
        worker.join()
    if len(outcomes) != len(cases):
        codes = [worker.exitcode for worker in workers]
        raise RuntimeError(f"{len(outcomes)} of {len(cases)} cases ended; exit codes of the processes: {codes}")
    return sorted(outcomes, key=lambda outcome: (outcome.target, outcome.number))


def _write_inputs(suite: Suite, inputs: Path) -> None:
    suite.write_inputs(inputs)
    missing = [file for target in suite.targets.values() for file in target.files if not (inputs / file).is_file()]
    if missing:
        raise RuntimeError(f"targets damage files that are not written: {', '.join(missing)}")


@contextmanager
def _environment() -> Iterator[None]:
    """Set before anything is imported: no network, and one thread, so that the process may fork."""
    changes = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def _collect(readers: list[Connection]) -> Iterator[Outcome]:
    while readers:
        for reader in wait(readers):
            try:
                yield reader.recv()
            except EOFError:
                readers.remove(reader)


@dataclass(frozen=True)
class _Work:
    """The cases of one process."""

    suite: str
    cases: Sequence[tuple[str, int]]
    seed: int
    inputs: Path
    folder: Path
    limit_s: float

    def __call__(self, connection: Connection) -> None:
        warnings.simplefilter("ignore")
        suite: Suite = importlib.import_module(self.suite).SUITE
        tools = suite.prepare(self.inputs)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        place = _SharedPlace()
        begin, child = 0, 0
        while begin < len(self.cases):
            child += 1
            folder = self.folder / str(child)
            shutil.copytree(self.inputs, folder / "inputs")
            numbers = range(begin, min(begin + _CASES_PER_CHILD, len(self.cases)))
            pid = os.fork()
            if pid == 0:
                self._live(suite, tools, folder, place, numbers, connection)
            status = os.waitpid(pid, 0)[1]
            begin = place.get()
            if begin < numbers.stop:
                connection.send(self._death(suite, status, begin, folder))
                begin += 1
            shutil.rmtree(folder, ignore_errors=True)

    def _live(
        self, suite: Suite, tools: Any, folder: Path, place: _SharedPlace, numbers: range, connection: Connection
    ) -> None:
        """Work through cases; ends the process."""
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (1, 2):
                os.dup2(null, stream)
            logging.disable(logging.CRITICAL)
            with (folder / "trace").open("w") as trace:
                faulthandler.enable(trace)
                faulthandler.register(signal.SIGPROF, trace, chain=True)  # which ends the process
                for number in numbers:
                    place.set(number)
                    faulthandler.dump_traceback_later(_PATIENCE * self.limit_s, exit=True, file=trace)
                    signal.setitimer(signal.ITIMER_PROF, self.limit_s)
                    outcome = self._run(suite, tools, folder, *self.cases[number])
                    signal.setitimer(signal.ITIMER_PROF, 0)
                    faulthandler.cancel_dump_traceback_later()
                    connection.send(outcome)
                    place.set(number + 1)
            os._exit(0)
        except BaseException:  # a fault of this engine
            (folder / "trace").write_text(traceback.format_exc(), encoding="utf-8")
            os._exit(1)

    def _run(self, suite: Suite, tools: Any, folder: Path, name: str, number: int) -> Outcome:
        target = suite.targets[name]
        mutator = _mutator(self.seed, name, number)
        scratch = folder / "scratch"
        scratch.mkdir()
        case = Case(folder / "inputs", scratch, tools, mutator)
        started = time.process_time()
        try:
            with _damaged(case, target.files):
                error = _error_of(lambda: target.use(case))
        finally:
            shutil.rmtree(scratch)
        seconds = time.process_time() - started
        kind, place, detail = _judge(error, case.refusals)
        return Outcome(name, number, kind, place, "; ".join(mutator.notes), detail, seconds)

    def _death(self, suite: Suite, status: int, number: int, folder: Path) -> Outcome:
        """A case that ended its process."""
        trace = (folder / "trace").read_text(encoding="utf-8", errors="replace")
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
            kind = f"slower than {self.limit_s:g} s"
        elif "Timeout (" in trace:
            kind = f"waits for {_PATIENCE * self.limit_s:g} s"
        elif os.WIFSIGNALED(status):
            kind = signal.Signals(os.WTERMSIG(status)).name
        else:
            kind = f"exit code {os.WEXITSTATUS(status)}"
        name, number = self.cases[number]
        mutator = _mutator(self.seed, name, number)
        again = shutil.copytree(self.inputs, folder / "again")
        with _damaged(Case(again, folder, None, mutator), suite.targets[name].files):  # what it was given
            notes = "; ".join(mutator.notes)
        told = f"{trace}\n{kind}: {next(iter(trace.splitlines()), 'no trace')}"
        frames = re.findall(r'File "(.*)", line (\d+) in (.*)', trace)
        place_in_code = _place([(file, int(line), code) for file, line, code in frames])
        return Outcome(name, number, kind, place_in_code, notes, told)


class _SharedPlace:
    """The number of a case, which a child writes and its parent reads, also after the child's death."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    def set(self, number: int) -> None:
        self._memory[:] = number.to_bytes(8, "little")

    def get(self) -> int:
        return int.from_bytes(self._memory[:], "little")


def _mutator(seed: int, name: str, number: int) -> Mutator:
    return Mutator(np.random.default_rng([seed, zlib.crc32(name.encode()), number]))


@contextmanager
def _damaged(case: Case, files: Sequence[str]) -> Iterator[None]:
    """Damage one of the files; it is whole again afterwards."""
    if not files:
        yield
        return
    path = case.root / case.mutator.pick(files)
    content = path.read_bytes()
    try:
        damage_path(case.mutator, path)
        yield
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def _error_of(do: Callable[[], object]) -> BaseException | None:
    try:
        do()
    except BaseException as err:
        return err
    return None


def _judge(error: BaseException | None, refusals: Sequence[Exception]) -> tuple[str, str, str]:
    """Kind, place and detail of an outcome."""
    from model.errors import InputError

    refused = [*refusals, *([error] if isinstance(error, InputError) else [])]
    for err in refused:
        problem = message_problem(str(err))
        if problem:
            return problem, _place_of(err), _tell(err)
    if error is not None and not isinstance(error, InputError):
        return type(error).__name__, _place_of(error), _tell(error)
    return (REFUSED if refused else USED), "", "\n".join(map(str, refused))


def message_problem(message: str) -> str:
    """What is wrong with the message of an InputError; empty if nothing is."""
    if not message.strip():
        return "empty message"
    if len(message.splitlines()) != 1:
        return "message of several lines"
    if len(message) > LONGEST_MESSAGE:
        return "message too long"
    if any(unicodedata.category(letter) in _UNPRINTABLE for letter in message):
        return "message not printable"
    return ""


def _tell(err: BaseException) -> str:
    return "".join(traceback.format_exception(err, limit=-25))[-20_000:]


def _place_of(err: BaseException) -> str:
    frames = [(f.f_code.co_filename, line, f.f_code.co_name) for f, line in traceback.walk_tb(err.__traceback__)]
    return _place(frames[::-1])


def _place(frames: Sequence[tuple[str, int, str]]) -> str:
    """The innermost frame in our code, else the innermost of the tests; frames are innermost first."""
    ours = [(Path(file), line, code) for file, line, code in frames if Path(file).is_relative_to(REPOSITORY)]
    named = [(path.relative_to(REPOSITORY).as_posix(), line, code) for path, line, code in ours]
    named = [frame for frame in named if not frame[0].startswith((".venv", "model/errors.py"))]
    best = [frame for frame in named if not frame[0].startswith("tests/")] or named
    return "{}:{} {}".format(*best[0]) if best else "(outside the repository)"


def report(outcomes: Sequence[Outcome], *, seed: int) -> str:
    """Counts, and the failures grouped by kind and place, the most frequent first."""
    groups: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.is_failure:
            groups[outcome.kind, outcome.place].append(outcome)
    counts = {kind: sum(outcome.kind == kind for outcome in outcomes) for kind in (USED, REFUSED)}
    failed = sum(map(len, groups.values()))
    lines = [
        f"{len(outcomes)} mutations of seed {seed}: {counts[USED]} used, {counts[REFUSED]} refused, {failed} faults"
    ]
    for (kind, place), group in sorted(groups.items(), key=lambda item: -len(item[1])):
        first = group[0]
        targets = sorted({outcome.target for outcome in group})
        last = next((line for line in reversed(first.detail.splitlines()) if line.strip()), "")
        lines += [
            f"{len(group):5}  {kind}  {place}",
            f"       by {', '.join(targets[:6])}{' ...' if len(targets) > 6 else ''}; first: {first.notes[:200]}",
            f"       {last[:200]}",
            f"       {_REPEAT.format(seed=seed, case=f'{first.target}:{first.number}')}",
        ]
    return "\n".join(lines)


def slowest(outcomes: Sequence[Outcome], count: int = 5) -> str:
    """The slowest targets, by mean time of a case, and the slowest case."""
    times: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        times[outcome.target].append(outcome.seconds)
    means = sorted(((sum(of_target) / len(of_target), name) for name, of_target in times.items()), reverse=True)
    worst = max(outcomes, key=lambda outcome: outcome.seconds)
    shown = ", ".join(f"{name} {1000 * mean:.0f} ms" for mean, name in means[:count])
    return f"slowest: {shown}; slowest case {worst.target}:{worst.number} {worst.seconds:.1f} s"
