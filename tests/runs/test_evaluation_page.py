"""README's table of results and docs/evaluation.md: what they say runs as it stands there, on tiny data."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import evaluate
from tests.support.chat_server import ChatServer, chat_server
from tests.support.evaluation_tree import write_evaluation_tree
from tests.support.tiny_data import draw_photo
from utils.cli.args import parse
from utils.evaluation.benchmarks import expand
from utils.evaluation.flags import EvaluateConfig

REPOSITORY = Path(__file__).resolve().parents[2]
README, PAGE = ((REPOSITORY / name).read_text(encoding="utf-8") for name in ("README.md", "docs/evaluation.md"))
SQUARE = {"polygon": [5, 4, 25, 4, 25, 14, 5, 14]}
URL = "http://localhost:8000/v1"
TINY = ["--limit=1", "--max_new_tokens=20", "--precision=fp32"]


def table_rows(page: str, header: str) -> list[list[str]]:
    """Cells of the table under a header line."""
    lines = page.split(header, 1)[1].splitlines()[2:]
    table = lines[: next((place for place, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def commands_of(page: str) -> list[list[str]]:
    """Flags of each command of scripts/evaluate.py, by which launcher it may be started."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line.split("scripts/evaluate.py", 1)[1]) for line in lines if "scripts/evaluate.py" in line]


ROWS = table_rows(README, "| Benchmark | Paper, PixelLM-7B | Released weights, run by others |")
(COMMON,) = re.findall(r"after\s+`python scripts/evaluate\.py (.*?)`:", README)
COMMANDS = commands_of(PAGE)


@pytest.fixture(scope="module")
def place(parrot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both pages name: a model, a dataset tree and a file of one's own."""
    place = tmp_path_factory.mktemp("evaluation")
    shutil.copytree(parrot, place / "runs/pixellm-7b/hf_model")
    write_evaluation_tree(place / "dataset")
    draw_photo(place / "my_data/1.jpg")
    turn = {"question": "What is it?", "answer": "It is {seg}.", "names": ["a thing"], "targets": [SQUARE]}
    line = json.dumps({"image": "1.jpg", "turns": [turn]})
    (place / "my_data/val.jsonl").write_text(f"{line}\n", encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def judge() -> Iterator[ChatServer]:
    with chat_server('{"scores": [1.0]}') as server:
        yield server


@pytest.fixture
def run(place: Path, judge: ChatServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("OPENAI_API_KEY", "none")

    def run(flags: list[str]) -> None:
        tiny = [] if {"--rescore", "--compare", "--efficiency"} & set(flags) else TINY
        assert evaluate.main([judge.url if flag == URL else flag for flag in flags] + tiny) == 0, flags

    return run


def test_one_command_takes_what_there_is_and_names_what_is_missing(place, run, shared):
    (flags,) = commands_of(README)
    run([str(shared / "real_mini") if flag == "./dataset" else flag for flag in flags])
    results = json.loads((place / "runs/pixellm-7b/evaluation/results.json").read_text(encoding="utf-8"))["results"]
    assert [result["name"] for result in results] == [one.name for one in expand(["paper"])]
    answered = [result for result in results if not result["missing"]]
    splits = ["val", "test_less", "test_many", "test", *["val"] * 7]  # MUSE has all; the others have val alone
    assert [result["name"].split("|")[-1] for result in answered] == splits
    assert all(result["num_questions"] for result in answered)
    for result in results:
        assert result in answered or result["name"].split("|")[-1] in result["missing"]


@pytest.mark.parametrize(
    ("paper", "others", "here", "protocol", "flags"),
    [pytest.param(*row[1:], marks=pytest.mark.long if "--efficiency" in row[-1] else ()) for row in ROWS],
    ids=[row[-1].split()[-1].strip("`") for row in ROWS],
)
def test_a_row_of_the_results_is_one_command(paper, others, here, protocol, flags, place, run, capsys):
    flags = shlex.split(flags.strip("`"))
    run([*shlex.split(COMMON), *flags])
    said = capsys.readouterr().out
    if protocol == "none":
        assert paper.split(",")[0] in said
        assert all(f"{less}%" in said for less in re.findall(r"(\d+) %", here))
        return
    results = json.loads((place / "eval_output/results.json").read_text(encoding="utf-8"))["results"]
    assert results
    for result in results:
        assert (result["protocol"], result["missing"]) == (protocol.strip("`"), "")
        assert result["judge"] == ("MODEL" if "--judge" in flags else "none")
        assert result["num_questions"] == result["scores"]["all"]["num_questions"] > 0
    published = [
        f"{100 * figure['value']:.1f}"
        for metric in ("giou", "ciou")
        for result in results
        for figure in result["published"]
        if (figure["model"], figure["metric"], figure["group"]) == ("PixelLM-7B", metric, "all")
    ]
    assert published == re.findall(r"\d+\.\d", f"{paper}; {others}")


def test_the_commands_of_the_page_run(place, run, capsys):
    assert len(COMMANDS) == 13
    runs = place / "runs/pixellm-7b"
    for flags in COMMANDS:
        if "--compare" in flags:  # the answers of another model
            shutil.copytree(runs / "muse", place / "runs/other/muse")
        if not {"--efficiency", "paper"} & set(flags):  # other tests here run these
            run(flags)
    assert "B is better in 0 questions, worse in 0" in capsys.readouterr().out
    for name in ("settings.json", "predictions.jsonl", "verdicts.jsonl", "results.json", "report.html"):
        assert (runs / "judged" / name).is_file()
    assert (runs / "muse/results.json").read_bytes() == (place / "runs/other/muse/results.json").read_bytes()


def test_every_command_is_understood():
    for flags in [*COMMANDS, *(shlex.split(f"{COMMON} {row[-1].strip('`')}") for row in ROWS), *commands_of(README)]:
        config = parse(EvaluateConfig, flags, "").config
        assert config.efficiency or config.rescore or config.compare or expand(config.names)


def test_the_figures_of_the_page_are_those_of_the_results():
    """In the order of the page: a row has one metric, or one model with all sets of RefCOCO."""
    for section, metric, model, benchmarks in (
        ("MUSE", "giou", "gIoU", ["MUSE"]),
        ("MUSE", "ciou", "cIoU", ["MUSE"]),
        ("RefCOCO, RefCOCO+, RefCOCOg, RefCLEF", "ciou", "PixelLM-7B", ["refcoco", "refcoco+", "refcocog"]),
        ("RefCOCO, RefCOCO+, RefCOCOg, RefCLEF", "ciou", "LISA-7B", ["refcoco", "refcoco+", "refcocog"]),
    ):
        (line,) = (line for line in section_of(section).splitlines() if line.startswith(f"| {model} |"))
        wanted = model if "-" in model else "PixelLM-7B"
        assert re.findall(r"\d+\.\d", line) == figures_of(benchmarks, metric, wanted)
    lines = [line for line in section_of("ReasonSeg").splitlines() if line.startswith("|")][2:]
    models = ("PixelLM-7B", "LISA-7B", "LISA-7B (fine-tuned on ReasonSeg)")
    wanted = [figures_of(["ReasonSeg"], metric, model) for model in models for metric in ("giou", "ciou")]
    assert [re.findall(r"\d+\.\d", line) for line in lines] == wanted


def test_the_savings_of_the_page_are_those_of_the_table():
    table = (REPOSITORY / "benchmarks/efficiency.md").read_text(encoding="utf-8")
    totals = table_rows(table, "| Targets | PixelLM-7B | LISA-7B | less by | PixelLM-13B | LISA-13B | less by |")
    (one, *_, ten) = totals
    (said,) = re.findall(r"In short: .*", " ".join(section_of("Efficiency").split()))
    assert re.findall(r"(\d+) %", said) == [row[column].rstrip("%") for column in (3, 6) for row in (one, ten)]


def section_of(title: str) -> str:
    return PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def figures_of(benchmarks: list[str], metric: str, model: str) -> list[str]:
    """In percent, as the results have them."""
    return [
        f"{100 * figure.value:.1f}"
        for benchmark in expand(benchmarks)
        for figure in benchmark.published
        if (figure.model, figure.metric) == (model, metric)
    ]
