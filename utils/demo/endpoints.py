"""The endpoints of the page for programs (docs/demo.md); they keep to its limits, and wait in the same line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components.api_component import Api
from gradio.utils import get_upload_folder
from gradio_client.utils import is_http_url_like

from model.errors import InputError
from model.replies import Reply
from model.serving import Conversation, SharedPredictor

from .answers import checked_question, names_in
from .flags import DemoConfig
from .uploads import read_upload


class Endpoints:
    """Each call stands alone: it has a photo of its own, and no dialogue."""

    def __init__(self, shared: SharedPredictor, config: DemoConfig) -> None:
        self.shared, self.config = shared, config

    def segment(self, image: gr.FileData, question: str) -> dict[str, Any]:
        """Answer a question about a photo, with a mask for each thing that the answer names.

        Returns a JSON object: text, in which [0] stands for the first target; targets, each with phrase, score, area in
        pixels and segmentation (COCO run lengths); and reason, which is null when all is well.
        """
        try:
            text = checked_question(question, self.config)
            stream = self.shared.stream(self._look_at(image), text)
            replies = [piece for piece in stream if isinstance(piece, Reply)]
            return _to_json(replies[-1])
        except InputError as err:
            raise gr.Error(str(err), print_exception=False) from err

    def segment_names(self, image: gr.FileData, names: list[str]) -> dict[str, Any]:
        """A mask for each name of a thing in a photo; returns the same as segment."""
        try:
            listed = names if isinstance(names, list) else [names]
            text = checked_question("\n".join(name for name in listed if isinstance(name, str)), self.config)
            return _to_json(self.shared.segment(self._look_at(image), names_in(text)))
        except InputError as err:
            raise gr.Error(str(err), print_exception=False) from err

    def _look_at(self, image: Any) -> Conversation:
        sent = image if isinstance(image, dict) else {}
        path, folder = sent.get("path"), Path(get_upload_folder())
        upload = read_upload(path, sent.get("orig_name") or path, folder=folder, config=self.config)
        return self.shared.look_at(upload.pixels)


def fetch_nothing(blocks: gr.Blocks) -> None:
    """Refuse web addresses as images: gradio would download them, whatever their size, before an endpoint is called.

    Raises:
        ValueError: if there is no input of an endpoint to guard.
    """
    inputs = [block for function in blocks.fns.values() for block in function.inputs if isinstance(block, Api)]
    if not inputs:
        raise ValueError("the page has no endpoint with an input")
    for block in inputs:
        block.async_move_resource_to_block_cache = _uploaded_file


async def _uploaded_file(url_or_file_path: str | Path | None) -> str | None:
    """The path of an upload, as it is; gradio has checked that it lies in the folder of uploads."""
    path = None if url_or_file_path is None else str(url_or_file_path)
    if path is not None and is_http_url_like(path):
        raise gr.Error("the image is a web address; download it, and give the file", print_exception=False)
    return path


def _to_json(reply: Reply) -> dict[str, Any]:
    kept = ("phrase", "score", "area", "segmentation")
    targets = [{key: found[key] for key in kept} for found in reply.to_coco()]
    return {"text": reply.numbered(), "targets": targets, "reason": reply.reason}
