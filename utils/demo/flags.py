"""The flags of scripts/demo.py: reading them imports neither torch nor gradio."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from model.errors import InputError
from model.values import Count, NonNegativeInt
from utils.cli.answering import AnswerFlags, ModelFlags
from utils.cli.args import flag, settings

Port = Annotated[int, Field(ge=0, le=65_535)]


@settings
class DemoConfig(AnswerFlags, ModelFlags):
    """Flags of scripts/demo.py."""

    host: str = flag("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines in (docs/demo.md)")
    port: Port = flag(7860, "port to listen on; 0 takes any free one")
    auth: str = flag("", "file with a line NAME:PASSWORD for each who may log in; without it, there is no login")
    examples: str = flag("", "folder of photos, or JSON lines of image and prompt, shown as examples (docs/demo.md)")
    max_side: Count = flag(10_000, "longest side of a photo, in pixels")
    max_pixels: Count = flag(25_000_000, "pixels of a photo at most")
    max_upload: Count = flag(20, "size of an uploaded file at most, in MB")
    max_question: Count = flag(500, "characters of a question at most")
    batch_size: Count = flag(8, "answers that are written together; other questions wait")
    max_waiting: NonNegativeInt = flag(32, "questions that wait at most; more are refused")
    open: bool = flag(False, "open the page in a browser")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.version:
            raise InputError("--version is missing; give the folder of a merged model")
        if not self.host.strip():
            raise InputError("--host is empty; give an address of this machine, such as 127.0.0.1")

    @property
    def max_bytes(self) -> int:
        """Of an uploaded file."""
        return self.max_upload * 2**20
