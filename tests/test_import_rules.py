"""Who may import whom: the table of docs/architecture.md, enforced for every room; and what no source may contain.

Protects inference without DeepSpeed, peft, gradio, bitsandbytes, flash-attn or openai, data tools without torch, and
commands that answer ``--help`` at once.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ENTRY_POINTS = {"train_ds", "chat", "merge_lora_weights_and_save_hf_model"}
FIRST_PARTY = {"model", "utils", "scripts", "tests"} | ENTRY_POINTS
# The rooms that may import a heavy or optional library (None: nobody).
OWNERS = {
    "deepspeed": "utils/training/",
    "peft": "utils/training/",
    "pycocotools": ("utils/masks/", "model/rle.py"),
    "gradio": "utils/demo/",
    "bitsandbytes": "model/weights/",
    "flash_attn": None,
    "openai": "utils/llm/",
    "tenacity": "utils/llm/",
}
NO_TORCH = (
    *(f"utils/data/{name}.py" for name in ("records", "paths", "prompts", "registry", "downloads", "fetch", "convert")),
    *("utils/data/sources/", "utils/masks/", "utils/toy_world/scene.py", "utils/toy_world/questions.py"),
    *("utils/toy_world/tree.py", "utils/llm/"),
    *(
        f"utils/evaluation/{name}"
        for name in ("records", "benchmarks", "published", "folder", "results", "scores", "generalized", "matching")
    ),
    *(f"utils/evaluation/{name}" for name in ("metrics", "intervals", "compare", "judge", "report")),
)
# What a command reads before its work: its flags. Here the libraries that take long are imported inside functions.
BEFORE_WORK = (
    *(f"{name}.py" for name in sorted(ENTRY_POINTS)),
    *("scripts/", "utils/cli/", "utils/dist.py", "utils/data/verify.py"),
)
TAKES_LONG = {
    "torch", "transformers", "deepspeed", "peft", "cv2", "scipy", "PIL", "pycocotools", "huggingface_hub",
}  # fmt: skip
BLOCKED = ("deepspeed", "peft", "gradio", "bitsandbytes", "flash_attn", "openai", "tenacity")
# To the program below, the blocked libraries are not installed.
_IMPORT_WITHOUT = """
import importlib, sys
modules, *blocked = sys.argv[1:]
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in blocked else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
try:
    import deepspeed
except ImportError:
    found = [importlib.import_module(module) for module in modules.split(",")]
    print("imported", len(found), "and", set(sys.modules) & set(blocked))
"""


def sources(root: Path) -> list[Path]:
    """Every Python file that users run and that is not empty, relative to the root."""
    files = [path.relative_to(root) for path in root.glob("*.py")]
    for folder in ("model", "utils", "scripts"):
        files += [path.relative_to(root) for path in (root / folder).rglob("*.py")]
    return sorted(file for file in files if (root / file).stat().st_size)


@cache
def parsed(text: str) -> ast.Module:
    """The tree of a file, made once however many rules look at it."""
    return ast.parse(text)


def imports(root: Path, file: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere in it, relative ones resolved; ``from a import b`` gives ``a.b``."""
    return imported_names(file, ast.walk(parsed((root / file).read_text(encoding="utf-8"))))


def imports_at_once(root: Path, file: Path) -> Iterator[str]:
    """Those of them that run when the file itself is imported: outside functions, and not for type checkers alone."""
    return imported_names(file, outside_functions(parsed((root / file).read_text(encoding="utf-8"))))


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not for_types and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from outside_functions(child)


def imported_names(file: Path, nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(file.parent.parts[: len(file.parent.parts) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def top(name: str) -> str:
    return name.split(".")[0]


def first_party_file(root: Path, name: str) -> Path | None:
    """The file behind a dotted name, if it is ours; the last part may be something inside the file."""
    parts = name.split(".")
    for names in (parts, parts[:-1]):
        for candidate in (Path(*names[:-1], f"{names[-1]}.py"), Path(*names, "__init__.py")) if names else ():
            if (root / candidate).is_file():
                return candidate
    return None


def closure(root: Path, file: Path, found_in: Callable[[Path, Path], Iterator[str]] = imports) -> set[Path]:
    """The file and every file of ours that it imports, directly or not, with the packages they lie in.

    Args:
        found_in: which imports of a file count: ``imports`` or ``imports_at_once``.
    """
    seen: set[Path] = set()
    pending = [file]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        packages = [parent / "__init__.py" for parent in current.parents if (root / parent / "__init__.py").is_file()]
        found = [first_party_file(root, name) for name in found_in(root, current)]
        pending += [path for path in (*packages, *found) if path is not None and path != Path("__init__.py")]
    return seen


@dataclass(frozen=True)
class Rule:
    """A row of the table: places that belong to one room, and places that it may import."""

    places: tuple[str, ...]
    may_import: tuple[str, ...]


def read_rules(root: Path) -> list[Rule]:
    page = (root / "docs/architecture.md").read_text(encoding="utf-8")
    lines = page.split("| Room | What is in it | May import |", 1)[1].splitlines()[2:]
    rows = [line.strip("|").split("|") for line in lines[: lines.index("")]]
    return [Rule(tuple(re.findall(r"`([^`]+)`", room)), tuple(re.findall(r"`([^`]+)`", may))) for room, _, may in rows]


def room_of(rules: list[Rule], file: Path) -> Rule:
    """The rule with the longest place that the file lies in."""
    found = [(len(place), rule) for rule in rules for place in rule.places if file.as_posix().startswith(place)]
    assert found, f"{file} lies in no room of docs/architecture.md"
    return max(found, key=lambda pair: pair[0])[1]


def violations(root: Path, rules: list[Rule], file: Path) -> list[str]:
    """Imports of ours that the file's room may not have."""
    own = room_of(rules, file)
    found = []
    for name in imports(root, file):
        target = first_party_file(root, name)
        if target is None or not (root / target).stat().st_size:
            continue  # not ours, or an empty __init__.py
        if target.as_posix().startswith(own.may_import):
            continue
        if target.parts[0] == "tests" or room_of(rules, target) is not own:
            found.append(f"{file} imports {target}")
    return found


@pytest.fixture(scope="module")
def rules(repository) -> list[Rule]:
    rules = read_rules(repository)
    assert len(rules) >= 18
    return rules


@pytest.mark.slow
def test_every_source_file_is_seen(repository, rules):
    """Counts what the other tests look at, so that none of them passes on an empty list."""
    files = sources(repository)
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "*.py"], cwd=repository, capture_output=True, text=True, check=False
    ).stdout.split("\0")
    expected = {Path(name) for name in tracked if name and not name.startswith("tests/")}
    assert {path for path in expected if (repository / path).is_file() and (repository / path).stat().st_size} <= set(
        files
    )
    assert len(files) >= 45
    empty = [rule.places for rule in rules if not any(room_of(rules, file) is rule for file in files)]
    assert not empty, f"docs/architecture.md has rooms without a file: {empty}"


def test_no_room_imports_what_its_row_does_not_name(repository, rules):
    found = [problem for file in sources(repository) for problem in violations(repository, rules, file)]
    assert not found


def test_a_forbidden_import_is_noticed_in_every_room(repository, rules, tmp_path):
    """Plants two in each room: of the tests, and of the last file that the row does not name."""
    for file in (*sources(repository), Path("tests/conftest.py")):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repository / file, tmp_path / file)
    files = sources(tmp_path)
    for rule in rules:
        victim = next(file for file in files if room_of(rules, file) is rule)
        text = (tmp_path / victim).read_text(encoding="utf-8")
        foreign = [file for file in files if not file.as_posix().startswith(rule.may_import + rule.places)]
        for stranger in (Path("tests/conftest.py"), *foreign[-1:]):
            module = ".".join(stranger.with_suffix("").parts)
            (tmp_path / victim).write_text(f"{text}\n\ndef planted():\n    import {module}\n", encoding="utf-8")
            assert violations(tmp_path, rules, victim), f"{victim} may import {module} unnoticed"
        (tmp_path / victim).write_text(text, encoding="utf-8")


def test_files_import_one_another_in_no_circle(repository):
    """A circle makes two rooms one: neither can be read, tested or replaced without the other."""
    graph = {
        file: {target for name in imports(repository, file) if (target := first_party_file(repository, name))} - {file}
        for file in sources(repository)
    }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as err:
        pytest.fail(" -> ".join(map(str, err.args[1])))


def test_nothing_imports_the_tests(repository):
    for file in sources(repository):
        assert "tests" not in {top(name) for name in imports(repository, file)}, file


def test_data_sources_reach_no_torch_and_no_transformers(repository):
    """Datasets are checked and drawn without the deep-learning stack."""
    starts = [file for file in sources(repository) if file.as_posix().startswith(NO_TORCH)]
    assert len(starts) >= 15
    for start in starts:
        for file in closure(repository, start):
            found = {top(name) for name in imports(repository, file)} & {"torch", "transformers"}
            assert not found, f"{start} reaches {file}, which imports {found}"


def test_flags_are_read_before_anything_that_takes_long_is_imported(repository):
    """``--help`` and bad flags answer at once; tests/runs/test_help.py looks at the processes themselves."""
    starts = [file for file in sources(repository) if file.as_posix().startswith(BEFORE_WORK)]
    assert len(starts) >= 15
    for start in starts:
        for file in closure(repository, start, imports_at_once):
            found = set(map(top, imports_at_once(repository, file))) & TAKES_LONG
            assert not found, f"{start} reaches {file}, which imports {found} at its top"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import a\nif x:\n  from b import c", {"a", "b.c"}),
        ("class K:\n  import a\n  def f(self):\n    import b", {"a"}),
        ("if TYPE_CHECKING:\n  import a", set()),
        ("try:\n  import a\nexcept ImportError:\n  import b", {"a", "b"}),
    ],
)
def test_imports_inside_functions_wait(tmp_path, text, names):
    (tmp_path / "file.py").write_text(text, encoding="utf-8")
    assert set(imports_at_once(tmp_path, Path("file.py"))) == names


@pytest.mark.parametrize(("library", "room"), OWNERS.items())
def test_libraries_are_imported_by_their_rooms(repository, library, room):
    users = {file.as_posix() for file in sources(repository) if library in map(top, imports(repository, file))}
    assert bool(users) == (room is not None)
    assert all(user.startswith(room or "") for user in users), users


@pytest.mark.parametrize("library", ["deepspeed", "peft", "bitsandbytes", "openai", "tenacity"])
def test_heavy_libraries_are_imported_inside_functions(repository, library):
    """At the top of a module they would be needed by everything that imports the module."""
    for file in sources(repository):
        assert library not in map(top, imports_at_once(repository, file)), file


@pytest.mark.slow
def test_inference_imports_without_training_libraries(repository):
    modules = (
        "model.predictor",
        "model.PixelLM",
        "utils.dataset",
        "utils.evaluation.judge",
        "utils.evaluation.run",
        "utils.inference.released",
        "utils.inference.terminal",
        "utils.inference.folder",
    )
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_WITHOUT, ",".join(modules), *BLOCKED],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"imported {len(modules)} and set()\n", done.stderr


def forbidden(tree: ast.Module) -> Iterator[str]:
    """What has no place in this code, with the line it stands in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"line {node.lineno}: bare except"
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if "pdb" in map(top, names):
                yield f"line {node.lineno}: pdb"
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in ("eval", "exec", "breakpoint"):
                yield f"line {node.lineno}: {called.id}("
            if isinstance(called, ast.Attribute) and called.attr in ("cuda", "empty_cache", "set_trace"):
                yield f"line {node.lineno}: .{called.attr}("


@pytest.mark.parametrize(
    "text",
    ["x.cuda()", "import pdb", "try:\n  pass\nexcept:\n  pass", "eval('1')", "exec('')", "torch.cuda.empty_cache()"],
)
def test_the_ban_finds_what_it_bans(text):
    assert len(list(forbidden(ast.parse(text)))) == 1


def test_banned_constructs_are_nowhere(repository):
    checked = 0
    for file in sources(repository):
        found = list(forbidden(ast.parse((repository / file).read_text(encoding="utf-8"))))
        assert not found, f"{file}: {found}"
        checked += 1
    assert checked >= 45


@pytest.mark.slow
def test_the_data_root_holds_no_code(repository):
    """Users mount, link or remove data over it; ``./dataset`` is the default of --dataset_dir."""
    tracked = subprocess.run(
        ["git", "ls-files", "dataset"], cwd=repository, capture_output=True, text=True, check=False
    ).stdout.split()
    assert {Path(name).name for name in tracked} <= {".gitignore", "README.md"}
    assert not list((repository / "dataset").glob("*.py"))
