"""Who may import whom (design.md section 2), and what no source file may contain.

Protects inference without DeepSpeed, peft, gradio, bitsandbytes or flash-attn, and data tools without torch.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ENTRY_POINTS = {"train_ds", "chat", "merge_lora_weights_and_save_hf_model"}
FIRST_PARTY = {"model", "utils", "scripts", "tests"} | ENTRY_POINTS
# The one module that may import a heavy or optional library (None: nobody).
OWNERS = {
    "deepspeed": {"utils/training/engine.py"},
    "peft": {"utils/training/lora.py"},
    "pycocotools": {"utils/masks/rle.py", "utils/masks/rasterize.py"},
    "gradio": set(),
    "bitsandbytes": set(),
    "flash_attn": set(),
}
NO_TORCH = ["records", "paths", "prompts", "registry", "downloads", "convert"]
BLOCKED = ("deepspeed", "peft", "gradio", "bitsandbytes", "flash_attn")
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
    """Every Python file that users run, relative to the root."""
    files = [path.relative_to(root) for path in root.glob("*.py")]
    for folder in ("model", "utils", "scripts"):
        files += [path.relative_to(root) for path in (root / folder).rglob("*.py")]
    return sorted(files)


def imports(root: Path, file: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere in it, relative ones resolved; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse((root / file).read_text(encoding="utf-8"))):
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


def closure(root: Path, file: Path) -> set[Path]:
    """The file and every file of ours that it imports, directly or not, with the packages they lie in."""
    seen: set[Path] = set()
    pending = [file]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        packages = [parent / "__init__.py" for parent in current.parents if (root / parent / "__init__.py").is_file()]
        found = [first_party_file(root, name) for name in imports(root, current)]
        pending += [path for path in (*packages, *found) if path is not None and path != Path("__init__.py")]
    return seen


def test_every_source_file_is_seen(repository):
    """Counts what the other tests look at, so that none of them passes on an empty list."""
    files = sources(repository)
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "*.py"], cwd=repository, capture_output=True, text=True, check=False
    ).stdout.split("\0")
    expected = {Path(name) for name in tracked if name and not name.startswith("tests/")}
    assert {path for path in expected if (repository / path).is_file()} <= set(files)
    assert len(files) >= 45


def test_model_imports_nothing_of_ours_outside_model(repository):
    files = [file for file in sources(repository) if file.parts[0] == "model"]
    assert len(files) >= 15
    for file in files:
        found = {top(name) for name in imports(repository, file)} & (FIRST_PARTY - {"model"})
        assert not found, f"{file} imports {found}"


def test_utils_import_no_entry_point_and_no_script(repository):
    files = [file for file in sources(repository) if file.parts[0] == "utils"]
    assert len(files) >= 25
    for file in files:
        found = {top(name) for name in imports(repository, file)} & (FIRST_PARTY - {"model", "utils"})
        assert not found, f"{file} imports {found}"


def test_nothing_imports_the_tests(repository):
    for file in sources(repository):
        assert "tests" not in {top(name) for name in imports(repository, file)}, file


def test_data_sources_reach_no_torch_and_no_transformers(repository):
    """Datasets are checked and drawn without the deep-learning stack."""
    starts = [Path("utils/data") / f"{name}.py" for name in NO_TORCH]
    starts += [file for file in sources(repository) if file.parent == Path("utils/data/sources")]
    assert len(starts) >= 8
    for start in starts:
        reached = closure(repository, start)
        assert len(reached) >= 3
        for file in reached:
            found = {top(name) for name in imports(repository, file)} & {"torch", "transformers"}
            assert not found, f"{start} reaches {file}, which imports {found}"


@pytest.mark.parametrize(("library", "owners"), OWNERS.items())
def test_libraries_have_one_importer(repository, library, owners):
    users = {file.as_posix() for file in sources(repository) if library in map(top, imports(repository, file))}
    assert users == owners


@pytest.mark.parametrize("library", ["deepspeed", "peft"])
def test_heavy_libraries_are_imported_inside_functions(repository, library):
    """At the top of a module they would be needed by everything that imports the module."""
    (owner,) = OWNERS[library]
    tree = ast.parse((repository / owner).read_text(encoding="utf-8"))
    for node in tree.body:
        assert not (isinstance(node, ast.Import) and library in {top(alias.name) for alias in node.names})
        assert not (isinstance(node, ast.ImportFrom) and top(node.module or "") == library)


def test_inference_imports_without_training_libraries(repository):
    modules = (
        "model.predictor",
        "model.PixelLM",
        "utils.dataset",
        "utils.evaluation.generative",
        "scripts.evaluate",
        "chat",
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
    """What style.md section 7 bans, with the line it stands in."""
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


def test_the_data_root_holds_no_code(repository):
    """Users mount, link or remove data over it; ``./dataset`` is the default of --dataset_dir."""
    tracked = subprocess.run(
        ["git", "ls-files", "dataset"], cwd=repository, capture_output=True, text=True, check=False
    ).stdout.split()
    assert {Path(name).name for name in tracked} <= {".gitignore", "README.md"}
    assert not list((repository / "dataset").glob("*.py"))
