"""Damaged input of every kind is used, or refused in one line: no other exception, no signal, nothing slow.

python -m pytest tests/mutations --mutations 20000 --mutation_seed 0        # the full count, of any seed
python -m pytest tests/mutations --mutation_case muse:12 --mutation_seed 0  # one case again, with its traceback
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from . import targets
from .run import plan, report, run_cases, slowest

pytestmark = pytest.mark.slow


def test_damaged_input_is_used_or_refused_in_one_line(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    seed, chosen = request.config.getoption("--mutation_seed"), request.config.getoption("--mutation_case")
    cases = plan(targets.SUITE.targets, request.config.getoption("--mutations"))
    if chosen:
        name, _, number = chosen.rpartition(":")
        assert name in targets.SUITE.targets, f"--mutation_case {chosen}: there is {', '.join(targets.SUITE.targets)}"
        cases = [(name, int(number))]
    outcomes = run_cases(
        targets.__name__, cases, seed=seed, folder=tmp_path, processes=min(4, len(os.sched_getaffinity(0)))
    )
    with capsys.disabled():
        print(f"\n{report(outcomes, seed=seed).splitlines()[0]}; {slowest(outcomes)}")
        if chosen:
            print(f"{outcomes[0].kind}\n{outcomes[0].notes}\n{outcomes[0].detail}")
    if any(outcome.is_failure for outcome in outcomes):
        pytest.fail(report(outcomes, seed=seed), pytrace=False)
    assert {outcome.target for outcome in outcomes} == {name for name, _ in cases}
