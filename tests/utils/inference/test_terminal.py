"""A person at a terminal: typing, history, stopping an answer, leaving."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

import chat
from model.predictor import PixelLMPredictor
from tests.support.bad_input import refused
from tests.support.parrot import write_parrot
from tests.support.tiny_data import draw_photo
from tests.support.tiny_network import make_network
from tests.support.tiny_world import TinyWorld
from tests.support.typist import Typist, typist
from utils.cli.config import ChatConfig
from utils.inference.dialogue import Dialogue
from utils.inference.terminal import History, LineCompleter

CTRL_C, CTRL_D, UP, ENTER, TAB = "\x03", "\x04", "\x1b[A", "\r", "\t"


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.jpg"
    draw_photo(path)
    return path


@pytest.fixture(scope="module")
def endless(tiny_world: TinyWorld, tmp_path_factory) -> Path:
    """A model that never ends its answers."""
    folder = tmp_path_factory.mktemp("endless") / "hf_model"
    network, tokenizer = make_network(tiny_world.llava, scales=1, tokens=2)
    network.config.text_config.max_position_embeddings = 2**20
    write_parrot(folder, network, tokenizer, "the thing is [SEG0] [SEG1] mask", source=tiny_world.llava)
    return folder


@pytest.mark.slow
def test_a_session(endless, photo, repository, tmp_path):
    """Loads the model once, so it is one test: everything that needs a real terminal."""
    flags = [f"--version={endless}", f"--image={photo.name}", "--vis_save_path=vis", "--max_new_tokens=12"]
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}
    with typist(repository / "chat.py", *flags, cwd=tmp_path, **state) as person:
        person.wait_for("photo.jpg: 60 x 40 pixels")
        person.wait_for(person.READY)
        ask(person, "What is it?", "the thing is [0] mask the thing is [1]", "saved ", "vis/photo_*")
        ask(person, UP, "What is it?", "saved ", "vis/photo_2_*")

        ask(person, "   ")  # asked again, and nothing is sent to the model
        ask(person, "/set max_targets 0", "max_targets is 0")
        ask(person, "/set max_new_tokens 1000000", "max_new_tokens is 1000000")
        person.type("Go on." + ENTER)
        person.wait_for("the thing is")
        person.type(CTRL_C)
        person.wait_for("stopped; what was said is forgotten")
        person.wait_for(person.READY)

        ask(person, "/quid", "error: /quid is no command")
        ask(person, "never sent" + CTRL_C)
        ask(person, CTRL_C, "Ctrl-D or /quit leaves.")
        person.type(CTRL_D)
        assert person.wait_for_the_end() == 0
        assert "Traceback" not in person.shown
    names = {path.name for path in (tmp_path / "vis").iterdir()}
    assert {"photo_mask_0.jpg", "photo_targets.png", "photo_2_mask_0.jpg", "photo_2_targets.png"} <= names
    assert not [name for name in names if name.startswith("photo_3")], "nothing of the stopped answer"
    kept = [line[1:] for line in (tmp_path / "state/pixellm/chat_history").read_text().splitlines() if line[:1] == "+"]
    assert kept[:2] == ["What is it?", "/set max_targets 0"]


def ask(person: Typist, line: str, *shown: str) -> None:
    """Type a line, wait for what it brings, and for the next one."""
    person.type(line + ("" if line.endswith(CTRL_C) else ENTER))
    for text in (*shown, person.READY):
        person.wait_for(text)


@pytest.mark.slow
def test_ctrl_c_while_the_model_is_loaded_ends_quietly(parrot, photo, forks, tmp_path):
    code = (
        "import chat, signal, sys; from model.predictor import PixelLMPredictor;"
        "PixelLMPredictor.from_pretrained = lambda *_, **__: signal.raise_signal(signal.SIGINT);"
        "sys.exit(chat.main(sys.argv[1:]))"
    )
    flags = [f"--version={parrot}", f"--image={photo}", "--prompt=What?", f"--vis_save_path={tmp_path / 'vis'}"]
    finished = forks.python("-c", code, *flags)
    assert finished.code == 130
    assert "Traceback" not in finished.text


def test_ctrl_c_during_the_one_answer_ends_quietly(parrot, photo, tmp_path, capsys, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests of training have one of their own
    try:
        monkeypatch.setattr(PixelLMPredictor, "ask", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        flags = [f"--version={parrot}", f"--image={photo}", "--prompt=What?", f"--vis_save_path={tmp_path / 'vis'}"]
        assert chat.main(flags) == 130
        assert "Traceback" not in capsys.readouterr().err
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_photo_is_looked_at_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(PixelLMPredictor, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    (tmp_path / "notes.jpg").write_text("no picture")
    for name, says in (("notes.jpg", "cannot be decoded"), ("note.jpg", "did you mean"), (".", "is a folder")):
        refused(chat.main, [f"--version={tmp_path}", f"--image={tmp_path / name}", "--prompt=What?"], capsys, says)


def test_an_image_alone_needs_a_terminal(photo, capsys):
    refused(chat.main, [f"--image={photo}"], capsys, "--image and --prompt belong together")


def completions(text: str, dialogue: Dialogue) -> list[str]:
    found = LineCompleter(dialogue).get_completions(Document(text), CompleteEvent(completion_requested=True))
    return [text[: len(text) + one.start_position] + one.text for one in found]


def test_tab_completes_commands_settings_and_paths(photo, monkeypatch):
    monkeypatch.chdir(photo.parent)
    dialogue = Dialogue(None, ChatConfig())
    assert completions("ph", dialogue) == ["photo.jpg"], "the first line names a picture"
    dialogue.photo = photo
    assert completions("ph", dialogue) == []
    assert completions("/r", dialogue) == ["/reset"]
    assert completions("/set temp", dialogue) == ["/set temperature"]
    assert completions("/image ph", dialogue) == ["/image photo.jpg"]


@pytest.mark.parametrize("blocked", ["state", "state/pixellm", "state/pixellm/chat_history"])
def test_where_no_history_can_be_kept_none_is(tmp_path, monkeypatch, blocked):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    place = tmp_path / blocked
    place.parent.mkdir(parents=True, exist_ok=True)
    place.mkdir() if blocked.endswith("history") else place.write_text("in the way")
    history = History()
    history.append_string("What?")
    assert list(history.load_history_strings()) == []


def test_what_was_typed_is_there_in_the_next_chat(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for line in ("What?", "photo\udce9", "Where?"):
        History().append_string(line)
    newest, *_, oldest = History().load_history_strings()
    assert (newest, oldest) == ("Where?", "What?")
