"""Every command shows its flags, and refuses unknown ones, before it imports a library that takes long.

Commands are read from pyproject.toml and from scripts/, so a new one is covered by itself.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from tests.support.launch import python
from tests.test_import_rules import TAKES_LONG

ROOT = Path(__file__).resolve().parents[2]
# Exit codes of --help and of an unknown flag, and the libraries that are imported after both.
_ASK = """
import importlib, json, sys
module, function = sys.argv[1].split(":")
main = getattr(importlib.import_module(module), function)
try:
    main(["--help"])
except SystemExit as stop:
    shown = stop.code
refused = main(["--no-such-flag"])
print(json.dumps([shown, refused, sorted({name.split(".")[0] for name in sys.modules})]))
"""


def commands() -> list[str]:
    """``module:function`` of every installed command, and of every script."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    scripts = {f"scripts.{file.stem}:main" for file in (ROOT / "scripts").glob("*.py") if file.stem != "__init__"}
    return sorted({*project["scripts"].values(), *scripts})


def test_the_commands_are_found():
    assert {"chat:main", "train_ds:main", "utils.data.verify:main", "scripts.quickstart_summary:main"} <= {*commands()}


@pytest.mark.parametrize("command", commands())
def test_flags_are_answered_at_once(repository, command):
    finished = python("-c", _ASK, command, cwd=repository)
    assert finished.stdout.startswith("usage: "), finished.text
    shown, refused, imported = json.loads(finished.stdout.splitlines()[-1])
    assert (shown, refused) == (0, 2)
    assert len(finished.errors) == 1
    assert not TAKES_LONG & set(imported)
