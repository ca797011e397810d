"""Fixtures that several folders of tests share; nothing is downloaded."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from .support.fork_server import ForkServer, fork_server
from .support.no_processes import forbid_processes
from .support.parrot import write_parrot
from .support.tiny_network import make_network
from .support.tiny_world import TinyWorld, write_tiny_world, write_tokenizer

RUNS = Path(__file__).parent / "runs"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mutations", "tests/mutations: damaged input of every kind")
    group.addoption("--mutations", type=int, default=800, help="how many cases (the full count: 20000)")
    group.addoption("--mutation_seed", type=int, default=0, help="everything follows from it")
    group.addoption("--mutation_case", default="", metavar="TARGET:NUMBER", help="run one case, and show its traceback")
    group = parser.getgroup("gpu", "tests/gpu: what a CUDA GPU computes")
    group.addoption("--gpu_tests_on_cpu", action="store_true", help="run them without one, to try the tests themselves")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything under tests/runs/ launches processes or trains. What is slow comes first, so nothing waits for it."""
    for item in items:
        if RUNS in item.path.parents:
            item.add_marker("slow")
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test that is not marked slow may launch no process, nor may its fixtures."""
    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("slow") is None:
            forbid_processes(patch)
        return (yield)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def forks(repository: Path) -> Iterator[ForkServer]:
    """Starts commands that need not import the libraries again; for slow tests."""
    with fork_server(repository) as server:
        yield server


@pytest.fixture(scope="session")
def shared(repository: Path) -> Path:
    """Material beside the checkout, such as what the release computed; without it the test is skipped."""
    folder = repository.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip(f"{folder} with golden/ is not here")
    return folder


@pytest.fixture(scope="session")
def kept_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What earlier versions of this code wrote, for tests that only read (fixtures/make.py)."""
    folder = tmp_path_factory.mktemp("fixtures")
    with tarfile.open(Path(__file__).parent / "fixtures/runs.tar.xz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # of Python 3.11.4 and later
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """LLaVA base, CLIP tower and dataset tree, for tests that only read."""
    return write_tiny_world(tmp_path_factory.mktemp("tiny_world"))


@pytest.fixture
def world(tiny_world: TinyWorld, tmp_path: Path) -> TinyWorld:
    """A world of one's own, to damage."""
    root = Path(shutil.copytree(tiny_world.llava.parent, tmp_path / "world"))
    return TinyWorld(root / "llava-tiny", root / "clip-tiny", root / "dataset")


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but a LLaMA-like tokenizer.model."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def parrot(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged model that answers every question with one target (see tests/support/parrot.py)."""
    folder = tmp_path_factory.mktemp("parrot") / "hf_model"
    network, tokenizer = make_network(tiny_world.llava, scales=1, tokens=2)
    write_parrot(folder, network, tokenizer, "the thing is [SEG0] [SEG1] </s>", source=tiny_world.llava)
    return folder
