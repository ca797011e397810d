"""What every bad-input test asserts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

Main = Callable[[Sequence[str]], int]


def refused(main: Main, arguments: Sequence[str], capsys: pytest.CaptureFixture[str], *says: str | Path) -> None:
    """Exit code 2, and one line that begins with ``error: ``, says all of ``says``, and is the last one."""
    capsys.readouterr()
    code = main(list(arguments))
    out, err = capsys.readouterr()
    assert code == 2, err
    assert "Traceback" not in out + err
    errors = [line for line in (out + err).splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert err.splitlines()[-1] == errors[0], "the message is one line"
    for part in says:
        assert str(part) in errors[0]


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON object; None removes one."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    change(state)
    torch.save(state, folder / "pytorch_model.bin")
