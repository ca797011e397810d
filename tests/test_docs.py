"""The pages under docs/ name places, keys, flags and commands that exist."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from model.configuration import PixelLMConfig
from model.weights.checkpoint import IGNORED_SUFFIXES
from model.weights.released import RELEASED_CONSTANTS
from utils.cli.args import parse
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


def test_commands_of_the_pages_parse(repository, pages):
    """Also those of the README that speak of these pages; ``...`` stands for more flags."""
    text = "\n".join([*pages.values(), (repository / "README.md").read_text(encoding="utf-8")])
    starts = re.findall(r"python train_ds\.py (--init_from[^`\n]*)", text)
    assert starts
    for line in starts:
        parse(RunConfig, [word for word in shlex.split(line) if word != "..."], "")


def test_the_readme_leads_to_every_page(repository, pages):
    readme = (repository / "README.md").read_text(encoding="utf-8")
    for name in pages:
        assert f"docs/{name}" in readme


def test_links_between_pages_exist(repository, pages):
    readme = {"README.md": (repository / "README.md").read_text(encoding="utf-8")}
    for name, page in (pages | readme).items():
        folder = repository / ("docs" if name in pages else ".")
        for target in re.findall(r"\]\((?!http)([^)#]+)", page):
            assert (folder / Path(target)).exists(), f"{name} links to {target}"
