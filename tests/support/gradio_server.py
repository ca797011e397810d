"""A gradio page on a port of its own, in a thread of this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def serve_blocks(blocks: Any) -> Iterator[str]:
    """Serve ``gr.Blocks`` while the block runs; gives the address."""
    import fastapi
    import gradio as gr
    import uvicorn

    app = gr.mount_gradio_app(fastapi.FastAPI(), blocks, path="/", ssr_mode=False)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))  # a port that nobody else has, and keeps it
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = server.force_exit = True
            thread.join(10)
