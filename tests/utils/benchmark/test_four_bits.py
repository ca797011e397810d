"""How ``benchmark.py four_bits`` says what it has found."""

from __future__ import annotations

from scripts import benchmark
from tests.support.bad_input import refused
from utils.benchmark.four_bits import Measured, table


def test_the_table_compares_quarters_of_the_run():
    exact = Measured(16, 4 * 2**20, [8.0, 8.0, 6.0, 4.0, 4.0, 2.0, 2.0, 2.0])
    rounded = Measured(4, 2**20, [8.0, 8.0, 6.0, 4.0, 4.0, 2.0, 2.0, 2.2])
    lines = table([exact, rounded]).splitlines()
    for span in ("1 to 2", "3 to 4", "5 to 6", "7 to 8"):
        assert f"| loss of updates {span} |" in lines[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert rows[0] == ["16", "4.00", "8.0000", "5.0000", "3.0000", "2.0000"]
    assert rows[1] == ["4", "1.00", "8.0000", "5.0000", "3.0000", "2.1000"]
    assert rows[2] == ["difference", "-75%", "+0.00%", "+0.00%", "+0.00%", "+5.00%"]


def test_too_few_updates_are_refused(capsys):
    refused(benchmark.main, ["four_bits", "--updates=3"], capsys, "--updates is 3; expected 4 or more")
