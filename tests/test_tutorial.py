"""docs/tutorial.ipynb as it is committed: its outputs are those of its code, and show nothing of a machine."""

from __future__ import annotations

import base64
import io
import re

import pytest
from PIL import Image

from tests.support.notebook import MACHINE_PATH, NOTEBOOK, fingerprint, read


@pytest.fixture(scope="module")
def notebook():
    return read()


@pytest.fixture(scope="module")
def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cells) -> list[str]:
    return [output.text for cell in cells for output in cell.outputs if output.output_type == "stream"]


def test_every_cell_has_run_in_order_and_without_an_error(notebook, code):
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert {output.output_type for cell in code for output in cell.outputs} == {"stream", "execute_result"}
    assert notebook.metadata.code_of_outputs == fingerprint(notebook), (
        "the code is not that of the outputs; `python -m tests.support.notebook` writes them anew"
    )


def test_the_outputs_show_no_machine(code):
    for text in [*texts(code), *(cell.source for cell in code)]:
        assert not MACHINE_PATH.search(text), text
        assert "\r" not in text
        assert "Traceback" not in text
        assert "error: " not in text


@pytest.mark.parametrize("text", ["taken from /tmp/x/run", "/home/me/.venv/lib", "(/root/a)"])
def test_a_machine_path_is_noticed(text):
    assert MACHINE_PATH.search(text)


def test_the_pictures_are_small_and_the_file_is(code):
    assert NOTEBOOK.stat().st_size < 400_000
    data = [output.data for cell in code for output in cell.outputs if output.output_type == "execute_result"]
    assert len(data) == 3
    for picture in data:
        with Image.open(io.BytesIO(base64.b64decode(picture["image/jpeg"]))) as image:
            assert image.width <= 1000


def test_the_words_at_the_end_tell_the_scores_of_the_run(notebook, code):
    scores = [re.findall(r"[\d.]+%", line) for text in texts(code) for line in re.findall("^all .*", text, re.M)]
    (before_giou, _, before_count, _), (after_giou, _, after_count, _) = scores
    (told,) = [cell.source for cell in notebook.cells if cell.source.startswith("## What to expect")]
    assert f"gIoU went from {before_giou} to {after_giou}" in told
    assert f"right counts from {before_count} to {after_count}" in told
