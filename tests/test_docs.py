"""The pages name places, keys and flags that exist, and link to what is there. Commands: test_page_commands.py."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from model.configuration import PixelLMConfig
from model.weights.checkpoint import IGNORED_SUFFIXES
from model.weights.released import RELEASED_CONSTANTS
from utils.cli.config import RELEASE_RECIPE_FLAGS, RunConfig

PLACE = re.compile(r"`([\w/]+\.py)::([\w.]+)`")
KEYS = {field.name for config in (RunConfig, PixelLMConfig) for field in dataclasses.fields(config)}


@pytest.fixture(scope="module")
def pages(repository) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted((repository / "docs").glob("*.md"))}


def defines(body: list[ast.stmt], name: str) -> bool:
    """Whether statements define a dotted name: a function, a class, something in it, or an assigned name."""
    first, _, rest = name.partition(".")
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == first:
            return not rest or defines(node.body, rest)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
        if first in names and not rest:
            return True
    return False


def rows(page: str, header: str) -> list[list[str]]:
    """Cells of the table under a header line."""
    lines = page.split(header, 1)[1].splitlines()[2:]
    table = lines[: next((index for index, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def keys(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_every_place_exists(repository, pages):
    places = [(name, *place) for name, page in pages.items() for place in PLACE.findall(page)]
    assert places
    for page, file, name in places:
        path = repository / file
        assert path.is_file(), f"docs/{page} names {file}"
        assert defines(ast.parse(path.read_text(encoding="utf-8")).body, name), f"docs/{page} names {file}::{name}"


@pytest.mark.parametrize("name", ["nothing", "MaskDecoder.nothing", "nothing.forward", "forward"])
def test_a_place_that_does_not_exist_is_noticed(repository, name):
    tree = ast.parse((repository / "model/pixel_decoder.py").read_text(encoding="utf-8"))
    assert defines(tree.body, "MaskDecoder.forward")
    assert not defines(tree.body, name)


def test_every_key_of_the_symbols_exists(pages):
    symbols = rows(pages["paper_to_code.md"], "| Paper | What it is | Config key | Place |")
    named = {key for _, _, cell, _ in symbols for key in keys(cell)}
    assert named
    assert named <= KEYS
    assert all(PLACE.search(place) for *_, place in symbols)


def test_every_decision_has_its_flag_and_its_place(pages):
    decisions = rows(pages["paper_to_code.md"], "| # | Topic | Paper | Release |")
    assert [row[0] for row in decisions] == [str(number) for number in range(1, len(decisions) + 1)], "cited by number"
    flags = {key for row in decisions for key in keys(row[5])}
    assert set(RELEASE_RECIPE_FLAGS) <= flags <= {field.name for field in dataclasses.fields(RunConfig)}
    assert all(PLACE.search(row[6]) for row in decisions)


def test_the_recipe_is_the_one_described(pages):
    text = " ".join(pages["paper_to_code.md"].split())
    described = re.search(r"`--release_recipe` means `([^`]*)`", text)[1]
    assert sorted(described.split()) == sorted(
        f"--no_{name}" if value is False else f"--{name}={value}" for name, value in RELEASE_RECIPE_FLAGS.items()
    )


def test_the_allow_list_is_the_one_described(pages):
    table = rows(pages["checkpoints.md"], "| Name | Missing | Left over | Why |")
    assert keys_of_names(table[0][0]) == set(RELEASED_CONSTANTS)
    assert {name.removeprefix("*.") for name in keys_of_names(table[1][0])} == set(IGNORED_SUFFIXES)


def keys_of_names(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def test_the_first_screen_shows_what_this_is_and_how_to_begin(repository):
    lines = (repository / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    screen = lines[: lines.index("## Ask about your own photos")]
    begin = [
        "docs/teaser_light.webp", "bash scripts/quickstart.sh ", "bash scripts/test.sh", "source .venv/bin/activate",
        "bash scripts/quickstart.sh --demo", "python scripts/demo.py --version", "python chat.py --version",
    ]  # fmt: skip
    found = [next((number for number, line in enumerate(screen) if text in line), len(lines)) for text in begin]
    assert found == sorted(found)
    assert found[-1] < 30


def test_the_readme_leads_to_every_page(repository, pages):
    """And so does the map of all pages."""
    readme = (repository / "README.md").read_text(encoding="utf-8")
    for name in pages:
        assert f"(docs/{name})" in readme
        assert f"]({name})" in pages["README.md"] or name == "README.md"


def heading_anchors(page: str) -> set[str]:
    """What GitHub makes of the headings; a repeated one gets a number."""
    seen: dict[str, int] = {}
    anchors = set[str]()
    for heading in re.findall(r"^#{1,6} (.+)$", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        seen[anchor] = seen.get(anchor, -1) + 1
        anchors.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
    return anchors


def broken_links(file: Path, page: str) -> list[str]:
    """Relative links of a page, pictures too, that lead nowhere."""
    broken = []
    in_html = re.findall(r'(?:src|srcset|href)="(?!https?://)([^"]+)"', page)
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page) + in_html:
        target, _, anchor = link.partition("#")
        path = file.parent / target if target else file
        text = page if path == file else path.read_text(encoding="utf-8") if anchor and path.exists() else ""
        if not path.exists() or (anchor and anchor not in heading_anchors(text)):
            broken.append(link)
    return broken


def test_every_link_leads_somewhere(repository):
    files = [repository / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "dataset/README.md")]
    files += sorted([*(repository / "docs").glob("*.md"), *(repository / "benchmarks").glob("*.md")])
    for file in files:
        assert broken_links(file, file.read_text(encoding="utf-8")) == [], file


def test_a_link_that_leads_nowhere_is_noticed(repository):
    file = repository / "docs/data.md"
    assert broken_links(file, "[a](log.md) [b](evaluation.md#the-judge) [c](https://nowhere) ![d](chat.png)") == []
    page = "# Two Words, `code`\n[a](#two-words-code) [b](#two) [c](log.md#nothing) [d](nothing.md) ![e](nothing.png)"
    assert broken_links(file, page) == ["#two", "log.md#nothing", "nothing.md", "nothing.png"]


def test_pictures_of_the_pages_are_small(repository):
    suffixes = (".png", ".webp", ".svg", ".jpg", ".gif")
    pictures = [path for path in (repository / "docs").iterdir() if path.suffix in suffixes]
    assert pictures
    assert {path.name: path.stat().st_size for path in pictures if path.stat().st_size >= 100_000} == {}


def test_the_memory_of_the_readme_is_that_of_the_page(repository, pages):
    """Each figure in GiB, as it is written there."""
    readme = (repository / "README.md").read_text(encoding="utf-8")
    figures = {number for cells in re.findall(r"([\d./; to]+) GiB", readme) for number in re.findall(r"\d+\.\d", cells)}
    assert len(figures) >= 19
    written = {f"{float(number):.1f}" for number in re.findall(r"\d+\.\d+", pages["hardware.md"])}
    assert figures <= written, figures - written


def test_the_quickstart_by_hand_is_that_of_the_script(repository, pages):
    script = (repository / "scripts/quickstart.sh").read_text(encoding="utf-8")
    script = script.replace("$WORLD", "toy_world").replace("$RUN", "runs/toy").replace('"', "")
    chapter = pages["quickstart.md"].split("\n## Step by step")[1].split("\n## ")[0]
    (commands,) = re.findall(r"```bash\n(.*?)```", chapter, re.DOTALL)
    words = commands.replace("\\\n", " ").replace('"', "").replace("--num_gpus 2", "--num_gpus $processes").split()
    assert [word for word in words if word not in script.split()] == []
