"""A local HTTP server of files that continues broken downloads and breaks some itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from .local_server import serve


@dataclass
class FileServer:
    """What it serves, and what it was asked.

    Attributes:
        files: name -> content.
        breaks_after: name -> bytes after which every answer breaks off.
        requests: name and first byte of every GET.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    breaks_after: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, int]] = field(default_factory=list)
    address: str = ""


@contextmanager
def serve_files() -> Iterator[FileServer]:
    files = FileServer()

    class Handler(_Handler):
        server_of_files = files

    with serve(Handler) as files.address:
        yield files


class _Handler(BaseHTTPRequestHandler):
    server_of_files: FileServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server, name = self.server_of_files, self.path.strip("/")
        content = server.files.get(name)
        if content is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        asked = self.headers.get("Range") if self.headers.get("If-Range") == tag else None
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", tag)
        self.end_headers()
        if self.command == "GET":
            server.requests.append((name, start))
            self.wfile.write(content[start:][: server.breaks_after.get(name)])

    def log_message(self, *_: object) -> None:
        """Say nothing."""
