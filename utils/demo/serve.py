"""The page as a server: everything that flags name is looked up before the model is loaded."""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from model.errors import InputError
from model.files import read_bytes
from utils.cli.args import Parsed
from utils.cli.command import INTERRUPTED, exit_at_once

from .flags import DemoConfig

_SPARE_THREADS = 16  # for uploads and downloads, while questions have one each


@dataclass(frozen=True)
class Prepared:
    """What is served: a model that is loaded, with everything that flags name.

    Attributes:
        logins: names and passwords; None for no login.
    """

    shared: Any
    config: DemoConfig
    examples: Sequence[Any]
    logins: list[tuple[str, str]] | None


def prepare(parsed: Parsed[DemoConfig]) -> Prepared:
    """Look up what the flags name, then load the model.

    Raises:
        InputError: without gradio, if the port is taken, a file cannot be read, or the model cannot be loaded.
    """
    config = parsed.config
    if importlib.util.find_spec("gradio") is None:
        raise InputError('the page needs gradio, which is not installed; pip install -c constraints.txt -e ".[demo]"')
    free_port(config.host, config.port)
    logins = read_logins(Path(config.auth)) if config.auth else None

    from .examples import find_examples

    examples = find_examples(config)
    print(f"Loading {config.version} ...", flush=True)

    from model.asking import AnswerOptions
    from model.serving import SharedPredictor
    from utils.inference.processes import load_predictor

    predictor = load_predictor(config, precision=config.precision)
    config = config.settled(AnswerOptions.of(predictor.model.generation_config), parsed.given)
    shared = SharedPredictor(
        predictor, batch_size=config.batch_size, max_waiting=config.max_waiting, keep_logits=True,
        **config.answer_options,
    )  # fmt: skip
    return Prepared(shared, config, examples, logins)


def serve(prepared: Prepared) -> NoReturn:
    """Serve the page until Ctrl-C, or until the process is told to end; then end it."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with _folder_of_uploads() as uploads:
        _, url = _start(prepared, uploads)
        print(f"The page is at {url} (Ctrl-C ends it)", flush=True)
        if prepared.config.open:
            webbrowser.open(url)
        while not ended.wait(1):  # without a limit, signals do not get through on every system
            pass
    exit_at_once(INTERRUPTED)  # gradio would wait for the connections of all open tabs


@contextmanager
def running(prepared: Prepared) -> Iterator[str]:
    """The page, served from threads of this process while the block runs; gives its address.

    Raises:
        InputError: if the port was taken meanwhile.
    """
    with _folder_of_uploads() as uploads:
        blocks, url = _start(prepared, uploads)
        try:
            yield url
        finally:
            blocks.close(verbose=False)
            prepared.shared.close()


def _folder_of_uploads() -> tempfile.TemporaryDirectory[str]:
    """Of this process alone; gradio's own is shared by all users of the machine."""
    return tempfile.TemporaryDirectory(prefix="pixellm-demo-", ignore_cleanup_errors=True)


def _start(prepared: Prepared, uploads: str) -> tuple[Any, str]:
    """The page and its address."""
    config = prepared.config
    os.environ["GRADIO_TEMP_DIR"] = uploads
    _reach_directly(config.host)

    from .page import make_page
    from .theme import HEAD, make_theme

    blocks = make_page(prepared.shared, config, prepared.examples)
    port = free_port(config.host, config.port)
    try:
        _, url, _ = blocks.launch(
            server_name=config.host, server_port=port, share=False, prevent_thread_lock=True, quiet=True,
            ssr_mode=False, mcp_server=False, enable_monitoring=False, run_history=False, pwa=False, inline=False,
            auth=prepared.logins, max_file_size=config.max_bytes, footer_links=["api"],
            max_threads=config.batch_size + config.max_waiting + _SPARE_THREADS, theme=make_theme(), head=HEAD,
        )  # fmt: skip
    except OSError as err:
        raise InputError(f"--port {port} was taken while the model was loaded; start it again") from err
    return blocks, url


def free_port(host: str, port: int) -> int:
    """The port, or any free one for 0.

    Raises:
        InputError: if nothing can listen there.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
            return tried.getsockname()[1]
    except socket.gaierror as err:
        raise InputError(f"--host {host} is no address of this machine ({err.strerror}); give 127.0.0.1") from err
    except OSError as err:
        if err.errno == errno.EADDRINUSE:
            raise InputError(f"--port {port} is in use; end what uses it, or give --port 0 for any free one") from err
        raise InputError(f"nothing can listen at --host {host} --port {port} ({err.strerror}); give others") from err


def read_logins(file: Path) -> list[tuple[str, str]]:
    """Names and passwords, from a file with a line ``NAME:PASSWORD`` for each.

    Raises:
        InputError: if it cannot be read, a line is something else, or it is empty; no password is shown.
    """
    remedy = "expected a line NAME:PASSWORD for each who may log in"
    logins = []
    for number, line in enumerate(read_bytes(file, remedy=remedy).decode("utf-8", "replace").splitlines(), start=1):
        name, colon, password = line.strip().partition(":")
        if line.strip() and not (name and colon and password):
            raise InputError(f"--auth {file}, line {number} has no name, colon and password; {remedy}")
        logins += [(name, password)] if line.strip() else []
    if not logins:
        raise InputError(f"--auth {file} is empty; {remedy}")
    return logins


def _reach_directly(host: str) -> None:
    """At its start the server calls itself, which a proxy of the environment must not answer."""
    for name in ("NO_PROXY", "no_proxy"):
        known = os.environ.get(name, "")
        os.environ[name] = ",".join(filter(None, (known, "localhost", "127.0.0.1", host)))
