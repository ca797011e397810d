"""The engine of the mutation tests: whatever ends a case is caught, named and attributed, and the others go on."""

from __future__ import annotations

import ctypes
import re
import time
from pathlib import Path

import numpy as np
import pytest

from model.errors import InputError
from model.rle import encode_rle

from .mutate import Mutator
from .run import Case, Suite, Target, message_problem, plan, report, run_cases

pytestmark = pytest.mark.slow


def crash(case: Case) -> None:
    ctypes.string_at(0)


def spin(case: Case) -> None:
    while True:
        pass


def wait(case: Case) -> None:
    while True:
        time.sleep(1)


def raise_key_error(case: Case) -> None:
    raise KeyError("questions")


def raise_in_our_code(case: Case) -> None:
    encode_rle(None)  # type: ignore[arg-type]


def refuse_in_two_lines(case: Case) -> None:
    err = InputError("one")
    err.args = ("one\ntwo",)
    case.refusals.append(err)


def refuse_at_length(case: Case) -> None:
    err = InputError("one")
    err.args = ("word " * 1000,)
    raise err


def fill_memory(case: Case) -> None:
    np.ones(2**31)


def exit_early(case: Case) -> None:
    raise SystemExit(0)


def refuse(case: Case) -> None:
    raise InputError("it is bad; mend it")


def read(case: Case) -> None:
    """Uses what it finds, leaves something behind, and refuses what is damaged."""
    assert not list(case.scratch.iterdir())
    (case.scratch / "left").write_text("over")
    if (case.root / "other.json").read_text() != "{}":
        raise AssertionError("the damage of another case is still there")
    case.attempt(lambda: refuse(case))


def write_inputs(root: Path) -> None:
    (root / "some.json").write_text('{"a": [1, 2, {"b": "text"}]}')
    (root / "other.json").write_text("{}")


BROKEN = {
    "crash": (crash, "SIGSEGV"),
    "spin": (spin, "slower than 0.5 s"),
    "wait": (wait, "waits for 6 s"),
    "key": (raise_key_error, "KeyError"),
    "ours": (raise_in_our_code, "AttributeError"),
    "lines": (refuse_in_two_lines, "message of several lines"),
    "length": (refuse_at_length, "message too long"),
    "memory": (fill_memory, "MemoryError"),
    "exit": (exit_early, "SystemExit"),
}
SOUND = {"refuse": Target(refuse), "read": Target(read, ("some.json",)), "use": Target(lambda case: None)}
SUITE = Suite(
    {**{name: Target(use, weight=0.1 if name == "wait" else 1) for name, (use, _) in BROKEN.items()}, **SOUND},
    write_inputs,
)


def test_every_end_of_a_case_is_attributed_and_the_others_go_on(tmp_path: Path):
    cases = plan(SUITE.targets, 40)
    outcomes = run_cases(__name__, cases, seed=3, folder=tmp_path, processes=2, limit_s=0.5)
    assert sorted((outcome.target, outcome.number) for outcome in outcomes) == sorted(cases)
    kinds = {name: {outcome.kind for outcome in outcomes if outcome.target == name} for name in SUITE.targets}
    assert kinds == {
        **{name: {kind} for name, (_, kind) in BROKEN.items()},
        "refuse": {"refused"},
        "read": {"refused"},
        "use": {"used"},
    }
    places = {outcome.target: outcome.place for outcome in outcomes}
    assert re.fullmatch(r"tests/mutations/test_engine.py:\d+ wait", places["wait"])
    assert re.fullmatch(r"model/rle.py:\d+ encode_rle", places["ours"]), "the innermost of our own code"


def test_the_report_groups_faults_and_repeats_one(tmp_path: Path):
    outcomes = run_cases(__name__, [("key", 4), ("key", 7), ("refuse", 0)], seed=3, folder=tmp_path, processes=1)
    text = report(outcomes, seed=3)
    assert text.startswith("3 mutations of seed 3: 0 used, 1 refused, 2 faults")
    assert re.search(r"^    2  KeyError  tests/mutations/test_engine.py:\d+ raise_key_error$", text, re.MULTILINE)
    assert "python -m pytest tests/mutations --mutation_seed 3 --mutation_case key:4" in text


def test_damage_follows_from_the_seed_alone():
    data = b'{"a": [1, 2, {"b": "text"}], "c": null}'

    def damage(seed: int) -> tuple[bytes, list[str]]:
        mutator = Mutator(np.random.default_rng(seed))
        return mutator.file("some.json", data), mutator.notes

    assert all(damage(seed) == damage(seed) for seed in range(200))
    assert len({damage(seed)[0] for seed in range(200)}) > 100


@pytest.mark.parametrize("suffix", ["json", "jsonl", "p", "png", "jpg", "safetensors", "bin"])
def test_anything_can_be_damaged(suffix: str):
    """Also what is not of the kind that its name says."""
    for seed in range(50):
        for data in (b"", b"\0", b"[1]", b"\x89PNG", bytes(100)):
            assert isinstance(Mutator(np.random.default_rng(seed)).file(f"file.{suffix}", data), bytes)


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("it is bad; mend it", ""),
        ("café 左邊", ""),
        (" ", "empty message"),
        ("a\nb", "message of several lines"),
        ("a\x85b", "message of several lines"),
        ("a\x1bb", "message not printable"),
        ("a\ud800", "message not printable"),
        ("x" * 2001, "message too long"),
    ],
)
def test_messages_are_judged(message: str, problem: str):
    assert message_problem(message) == problem
