"""What quickstart.sh shows at its end, and which held-out image it chats about."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.cli.args import flag, settings
from utils.cli.command import run_commands
from utils.data.registry import build_val_source


def example(dataset_dir: str) -> str:
    """``IMAGE|QUESTION``: the first question of the held-out set that asks for three objects."""
    source = build_val_source(dataset_dir, "MultiReasonSeg|test_less")
    samples = [source.get(index, np.random.default_rng(0)) for index in range(len(source))]
    image, question = next(
        (sample.image_path, conversation[0].question)
        for sample in samples
        for conversation in sample.conversations
        if len(conversation[0].targets) == 3
    )
    return f"{image}|{question}"


def table(run: Path) -> str:
    """Seconds of each stage, the loss, and the scores, as aligned text."""
    seconds: dict[str, int] = {}
    for line in (run / "stages.tsv").read_text(encoding="utf-8").splitlines():
        name, value = line.split("\t")
        seconds[name] = seconds.get(name, 0) + int(value)
    rows = [(f"time of {name}, all runs together", tqdm.format_interval(value)) for name, value in seconds.items()]
    updates = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [record["total"] for record in updates if "total" in record]
    rows.append(("loss, first and last 20 updates", f"{np.mean(losses[:20]):.3f} -> {np.mean(losses[-20:]):.3f}"))
    results = json.loads((run / "evaluation" / "results.json").read_text(encoding="utf-8"))["results"]
    rows += [row for result in results for row in _scores(result)]
    width = max(len(name) for name, _ in rows)
    pictures = [run / "evaluation" / "pictures.png", *sorted((run / "chat").glob("*_targets.png"))]
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    return "\n".join([*lines, "pictures:", *(f"  {path}" for path in pictures)])


def _scores(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"{result['name']}, {group}: gIoU / cIoU", f"{scores['giou']:.3f} / {scores['ciou']:.3f}")
        for group, scores in result["scores"].items()
        if scores["num_questions"]
    ]


@settings
class ExampleFlags:
    """The held-out image and question that the quickstart chats about, as IMAGE|QUESTION."""

    dataset_dir: str = flag("toy_world/dataset", "dataset tree")


@settings
class TableFlags:
    """Times, loss, scores and pictures of a run."""

    run: str = flag("runs/toy", "run directory")


COMMANDS = {
    "example": (ExampleFlags, lambda parsed: print(example(parsed.config.dataset_dir))),
    "table": (TableFlags, lambda parsed: print(table(Path(parsed.config.run)))),
}


def main(argv: Sequence[str] | None = None) -> int:
    return run_commands(COMMANDS, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
