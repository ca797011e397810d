"""What scripts/demo.py looks up before it loads the model, and how it ends."""

from __future__ import annotations

import importlib.util
import socket

import pytest

from model.errors import InputError
from scripts.demo import main
from utils.demo.serve import free_port, read_logins


def told(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The one line of a refused command; nothing was loaded."""
    assert main([*flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_a_port_in_use_is_told_before_the_model_is_loaded(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port} is in use" in told(capsys, "--version=none", f"--port={port}")


def test_without_gradio_the_line_has_the_command_that_installs_it(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert 'pip install -c constraints.txt -e ".[demo]"' in told(capsys, "--version=none", "--port=0")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--version is missing"),
        (["--version=none", "--host=no such host"], "--host no such host is no address of this machine"),
        (["--version=none", "--host=192.0.2.1", "--port=0"], "nothing can listen at --host 192.0.2.1"),
        (["--version=none", "--port=70000"], "--port is 70000"),
        (["--version=none", "--port=0", "--examples=none"], "--examples none does not exist"),
        (["--version=none", "--port=0", "--auth=none"], "none does not exist"),
        (["--version=none", "--max_question=0"], "--max_question is 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_that_cannot_work_are_told_before_the_model_is_loaded(capsys, flags, words):
    assert words in told(capsys, *flags)


def test_any_free_port_is_found():
    assert 0 < free_port("127.0.0.1", 0) < 65_536


def test_logins_are_names_and_passwords_and_passwords_are_never_shown(tmp_path):
    file = tmp_path / "logins"
    file.write_text("ann:s3cret:with colon\n\n bob:x \n")
    assert read_logins(file) == [("ann", "s3cret:with colon"), ("bob", "x")]
    for text in ("", "ann\n", "ann:\n", ":hidden\n", "ann:ok\nhidden\n"):
        file.write_text(text)
        with pytest.raises(InputError) as refused:
            read_logins(file)
        assert "hidden" not in str(refused.value)


# Ctrl-C while a visitor has the page open: gradio would wait for the visitor's connection.
_VISITED = """
import os, signal, sys, threading, time
import httpx
import utils.demo.serve
from scripts.demo import main

def visit(url):
    def stay():
        try:
            with httpx.stream("GET", f"{url}gradio_api/heartbeat/someone", timeout=60) as beat:
                print(beat.status_code, flush=True)
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=stay, daemon=True).start()

utils.demo.serve.webbrowser.open = visit
sys.exit(main())
"""


@pytest.mark.slow
def test_ctrl_c_ends_the_page_at_once_and_quietly(forks, parrot):
    ended = forks.python("-c", _VISITED, f"--version={parrot}", "--precision=fp32", "--port=0", "--open")
    loading, page, visited = ended.stdout.splitlines()[-3:]
    assert (loading, visited) == (f"Loading {parrot} ...", "200")
    assert page.startswith("The page is at http://127.0.0.1:")
    assert ended.code == 130
    assert "Traceback" not in ended.stderr
