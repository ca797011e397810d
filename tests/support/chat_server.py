"""A local server that speaks OpenAI's protocol for chats, and fails in every way that a test asks for."""

from __future__ import annotations

import json
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from .local_server import serve

platform.processor()  # the library openai asks for it once, Python runs uname, and fast tests may launch nothing


@dataclass
class Sent:
    """What goes back for one request.

    Attributes:
        text: of the reply; unused if there is another body.
        usage: tokens read and written; None says nothing.
        body: bytes in place of a chat completion.
        claims: bytes that the header promises; 0 promises as many as there are.
        wait: sent only when it is set.
    """

    text: str = ""
    status: int = 200
    finish_reason: str = "stop"
    usage: tuple[int, int] | None = (10, 5)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    claims: int = 0
    wait: threading.Event | None = None

    def content(self) -> bytes:
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": {"message": self.text, "code": None}}).encode()
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": self.text},
            "finish_reason": self.finish_reason,
        }
        answer: dict[str, Any] = {"id": "1", "object": "chat.completion", "model": "m", "choices": [choice]}
        if self.usage:
            answer["usage"] = {"prompt_tokens": self.usage[0], "completion_tokens": self.usage[1]}
        return json.dumps(answer).encode()


@dataclass
class ChatServer:
    """What it answers, and what it was asked.

    Attributes:
        answer: from the body of a request to what goes back.
        requests: bodies, in the order in which they came.
        keys: headers ``Authorization``.
        most_at_once: requests that were in its hands together.
    """

    answer: Callable[[dict[str, Any]], Sent]
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def chat_server(*replies: Sent | str, answer: Callable[[dict[str, Any]], Sent] | None = None) -> Iterator[ChatServer]:
    """Answer with these replies in turn, the last one again and again, or with what a function makes of the request."""
    left = [Sent(reply) if isinstance(reply, str) else reply for reply in replies]

    def in_turn(_: dict[str, Any]) -> Sent:
        return left.pop(0) if len(left) > 1 else left[0]

    state = ChatServer(answer or in_turn)

    class Handler(_Handler):
        chats = state

    with serve(Handler) as address:
        state.url = f"{address}/v1"
        yield state


class _Handler(BaseHTTPRequestHandler):
    chats: ChatServer

    def do_POST(self) -> None:
        chats = self.chats
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with chats.lock:
            chats.requests.append(body)
            chats.keys.append(self.headers.get("Authorization", ""))
            chats.at_once += 1
            chats.most_at_once = max(chats.most_at_once, chats.at_once)
            sent = chats.answer(body)
        try:
            if sent.wait:
                sent.wait.wait(10)
        finally:
            with chats.lock:
                chats.at_once -= 1  # before the client knows of the answer and sends the next request
        content = sent.content()
        self.send_response(sent.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(sent.claims or len(content)))
        for name, value in sent.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
