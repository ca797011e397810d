"""docs/tutorial.ipynb: run it as Jupyter does, or its cells alone; and write its outputs anew.

    python -m tests.support.notebook

needs the model of scripts/quickstart.sh in runs/toy/hf_model, and no custom_sample/ and no runs/my-photos/.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import nbformat

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs/tutorial.ipynb"
# Another folder, a home or a temporary folder; "runs/my-photos" and "s/update" are none.
MACHINE_PATH = re.compile(r"(?<![\w.$])/(?:home|root|tmp|work|usr|mnt|opt|var|Users)/")


def read() -> Any:
    """The notebook as it lies in the repository."""
    return nbformat.read(NOTEBOOK, as_version=4)


def edited(source: str, values: dict[str, str]) -> str:
    """A cell with other values of its settings, such as ``UPDATES``."""
    for name, value in values.items():
        source = re.sub(rf"^{name} = [^#\n]*", f"{name} = {value}  ", source, flags=re.MULTILINE)
    return source


def fingerprint(notebook: Any) -> str:
    """Of all code, so that outputs of other code are noticed."""
    code = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def execute(notebook: Any, root: Path) -> Any:
    """Run every cell in a kernel that starts in ``root / "docs"``; an error in one of them is raised."""
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook, timeout=900, record_timing=False, resources={"metadata": {"path": str(root / "docs")}}
    )
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [_cleaned(output, f"{root}/") for output in _joined(cell.outputs)]
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "code_of_outputs": fingerprint(notebook)}
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """One output for what a stream printed in several pieces."""
    joined: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _cleaned(output: Any, root: str) -> Any:
    """Without the folder of this machine, and of each progress bar what a terminal shows last."""
    if output.output_type == "stream":
        output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text.replace(root, ""))
    return output


if __name__ == "__main__":
    nbformat.write(execute(read(), NOTEBOOK.parents[1]), NOTEBOOK)
