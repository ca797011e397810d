"""Reference curves of the toy world: benchmarks/toy_curves.json, and how a run becomes one of them.

    python -m tests.support.toy_curves quickstart runs/toy

writes the losses of runs/toy/log.jsonl into the file under the name ``quickstart``; docs/training.md says how the runs
are made.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FILE = Path(__file__).resolve().parents[2] / "benchmarks/toy_curves.json"
PARTS = ("total", "ce", "bce", "dice", "refine")
Curve = dict[str, list[float]]


def read_curve(name: str) -> Curve:
    """Losses by part, from the first update on."""
    return json.loads(FILE.read_text(encoding="utf-8"))[name]


def curve_of(run: Path) -> Curve:
    """Losses of a run by part, from the first update on."""
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    updates = {record["update"]: record for record in map(json.loads, lines) if "total" in record}
    assert sorted(updates) == list(range(1, len(updates) + 1)), f"updates are missing in {run}"
    return {part: [updates[number][part] for number in sorted(updates)] for part in PARTS}


def record(name: str, run: Path, *, file: Path = FILE) -> None:
    """Put the curve of a run into the file; a curve is one line for each part."""
    curves = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    curves[name] = curve_of(run)
    entries = []
    for key, curve in curves.items():
        parts = ",\n".join(f"    {json.dumps(part)}: {json.dumps(values)}" for part, values in curve.items())
        entries.append(f"  {json.dumps(key)}: {{\n{parts}\n  }}")
    file.write_text("{\n" + ",\n".join(entries) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    record(sys.argv[1], Path(sys.argv[2]))
