"""A hub of one's own: a cache in the layout of huggingface_hub, and a server of what downloads and uploads ask."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .local_server import serve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_cache(cache: Path, repository: str, folders: Mapping[str, Path]) -> Path:
    """Put folders into a cache; returns the snapshot.

    Args:
        folders: place in the repository ("" is its root) -> local folder.
    """
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    for name in ("refs", "blobs"):
        (root / name).mkdir(parents=True)
    (root / "refs/main").write_text(COMMIT)
    for place, folder in folders.items():
        (snapshot / place).mkdir(parents=True, exist_ok=True)
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            content = file.read_bytes()
            blob = root / "blobs" / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            (snapshot / place / file.name).symlink_to(blob)
    return snapshot


@dataclass
class Hub:
    """Repositories that a local server gives out.

    Attributes:
        repositories: name -> path in it -> content.
        gated: repositories whose files are refused.
        commits: summaries of what was uploaded, in order.
        served: paths of files that were sent, in order.
    """

    repositories: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)
    served: list[str] = field(default_factory=list)
    address: str = ""


@contextmanager
def serve_hub(repositories: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    hub = Hub(repositories)

    class Handler(_HubHandler):
        served_hub = hub

    with serve(Handler) as hub.address:
        yield hub


class _HubHandler(BaseHTTPRequestHandler):
    served_hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._answer("/".join(parts[2:4]), parts[4:])
        else:  # owner/name/resolve/revision/path
            self._answer("/".join(parts[:2]), parts[2:])

    def do_POST(self) -> None:
        """A repository is made, every file is said to be a small one, and a commit brings them."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        hub, answer = self.served_hub, {}
        if self.path == "/api/repos/create":
            request = json.loads(content)
            repository = f"{request.get('organization', 'me')}/{request['name']}"
            hub.repositories.setdefault(repository, {})
            answer = {"url": f"{hub.address}/{repository}"}
        elif self.path.endswith("/preupload/main"):
            paths = [file["path"] for file in json.loads(content)["files"]]
            answer = {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
        elif self.path.endswith("/commit/main"):
            entries = [json.loads(line) for line in content.splitlines()]
            owner, name = self.path.split("/")[3:5]
            files = {e["value"]["path"]: base64.b64decode(e["value"]["content"]) for e in entries if e["key"] == "file"}
            hub.repositories[f"{owner}/{name}"] |= files
            answer = {"commitUrl": f"{hub.address}/{owner}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
        self._send(200, json.dumps(answer).encode())

    def _answer(self, repository: str, request: list[str]) -> None:
        hub = self.served_hub
        files = hub.repositories.get(repository)
        if files is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif repository in hub.gated:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif request[0] != "resolve" and request[1:] and request[1] not in ("main", COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif request[0] == "tree":
            sizes = {path: {"size": len(content), "oid": _oid(content)} for path, content in files.items()}
            tree = [{"type": "file", "path": path, **entry} for path, entry in sizes.items()]
            self._send(200, json.dumps(tree).encode())
        elif request[0] == "resolve" and "/".join(request[2:]) not in files:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        elif request[0] == "resolve":
            path = "/".join(request[2:])
            if self.command == "GET":
                hub.served.append(path)
            if path not in files:
                self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
                return
            self._send(200, files[path], {"X-Repo-Commit": COMMIT, "ETag": f'"{_oid(files[path])}"'})
        else:
            siblings = [{"rfilename": path} for path in files]
            self._send(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode())

    def _send(self, code: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
