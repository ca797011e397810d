"""What pip, continuous integration and a reader of the repository rely on: names, versions and files that agree."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

REQUIREMENTS = (
    "requirements.txt", "requirements-demo.txt", "requirements-gpu.txt", "requirements-llm.txt",
    "tests/requirements.txt",
)  # fmt: skip


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(path: Path) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def test_every_console_script_is_a_command(project):
    scripts = project["project"]["scripts"]
    assert {"pixellm-train", "pixellm-chat", "pixellm-merge", "pixellm-evaluate"} <= set(scripts)
    for name, place in scripts.items():
        module, function = place.split(":")
        assert callable(getattr(importlib.import_module(module), function)), name


def pinned(path: Path) -> dict[str, Version]:
    """Package, in lower case with hyphens -> its one version."""
    versions = {}
    for pin in requirements(path):
        (part,) = pin.specifier
        versions[pin.name.lower().replace("_", "-")] = Version(part.version)
    return versions


def test_constraints_pin_what_is_asked_for(repository):
    pins = pinned(repository / "constraints.txt")
    for file in REQUIREMENTS:
        for asked in requirements(repository / file):
            version = pins[asked.name.lower()]
            assert asked.specifier.contains(version, prereleases=True), f"{file}: {asked} against {version}"


def test_the_oldest_constraints_pin_the_lower_bounds(repository):
    """Otherwise scripts/test_oldest.sh would test a bound that nobody can have."""
    pins = pinned(repository / "constraints-oldest.txt")
    for asked in requirements(repository / "requirements.txt"):
        (bound,) = (Version(part.version) for part in asked.specifier if part.operator in ("==", ">="))
        oldest = pins[asked.name.lower()]
        assert oldest.release[: len(bound.release)] == bound.release, f"{asked} against {oldest}"


@pytest.mark.parametrize(
    ("file", "package"),
    [
        ("requirements-demo.txt", "gradio"),
        ("requirements-gpu.txt", "bitsandbytes"),
        ("requirements-llm.txt", "openai"),
        ("requirements-llm.txt", "tenacity"),
    ],
)
def test_tests_ask_for_the_optional_packages_of_users(repository, file, package):
    asked = [
        {one.name: one.specifier for one in requirements(repository / path)}[package]
        for path in (file, "tests/requirements.txt")
    ]
    assert asked[0] == asked[1]


def test_the_range_of_python_versions_is_stated_once(project, repository):
    """What has to repeat it agrees with it."""
    allowed = SpecifierSet(project["project"]["requires-python"])
    assert project["tool"]["pyright"]["pythonVersion"] == min(
        (f"3.{minor}" for minor in range(20) if allowed.contains(f"3.{minor}")), key=Version
    )
    workflow = (repository / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    versions = re.findall(r"\"(3\.\d+)\"", workflow)
    assert versions
    assert all(allowed.contains(version) for version in versions)
    readme = (repository / "README.md").read_text(encoding="utf-8")
    assert not re.findall(r"Python 3\.\d", readme)


@pytest.mark.parametrize("name", ["LICENSE", "NOTICE", "CITATION.cff", "CHANGELOG.md", "docs/log.md"])
def test_habits_of_a_project_are_there_and_linked(repository, name):
    assert (repository / name).read_text(encoding="utf-8").strip()
    assert f"({name})" in (repository / "README.md").read_text(encoding="utf-8")


def test_scripts_find_the_code_by_the_installed_package(repository):
    for script in (repository / "scripts").glob("*.py"):
        assert "sys.path" not in script.read_text(encoding="utf-8"), script
