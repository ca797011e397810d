"""What a run writes down while it goes on: log.jsonl, TensorBoard, the console."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class JsonLines:
    """A log of one JSON object per line, flushed at once so that it survives a crash."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps({"time": round(time.time(), 3), **record}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
