"""Fixtures of the data tests; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.text.tokenizer import add_codebook, load_tokenizer
from model.text.tokens import SegCodebook
from tests.support.tiny_data import tiny_config, write_dataset
from tests.support.whole_tree import write_whole_tree
from utils.data.encode import Encoder


@pytest.fixture(scope="session")
def make_encoder(tiny_tokenizer_dir: Path) -> Callable[..., Encoder]:
    """An encoder for S scales x K tokens; other arguments change the configuration."""

    def make(scales: int = 2, tokens: int = 3, **changes: Any) -> Encoder:
        tokenizer = load_tokenizer(tiny_tokenizer_dir)
        codebook = add_codebook(tokenizer, scales=scales, tokens=tokens)
        return Encoder(tokenizer, codebook, tiny_config(codebook, **changes))

    return make


@pytest.fixture(scope="session")
def encoder(make_encoder: Callable[..., Encoder]) -> Encoder:
    return make_encoder()


@pytest.fixture(scope="session")
def codebook(encoder: Encoder) -> SegCodebook:
    return encoder.codebook


@pytest.fixture(scope="session")
def shared_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``--dataset_dir`` for tests that only read."""
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def dataset_dir(tmp_path: Path) -> Path:
    """A ``--dataset_dir`` of one's own, to damage."""
    return write_dataset(tmp_path / "dataset")


@pytest.fixture(scope="session")
def whole_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``--dataset_dir`` with every dataset in it, for tests that only read."""
    return write_whole_tree(tmp_path_factory.mktemp("whole_tree"))
