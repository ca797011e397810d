"""Chat at a terminal: a line with history and completion, and what the dialogue has to say to it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory
from prompt_toolkit.shortcuts import CompleteStyle
from rich.console import Console

from model.errors import InputError
from model.predictor import PixelLMPredictor
from utils.cli.answering import ANSWER_FLAGS
from utils.cli.config import ChatConfig
from utils.cli.log import report_input_error

from .dialogue import COMMANDS, Dialogue
from .screen import Screen

_LEAVE = ("/quit", "/exit")


def chat_at_terminal(predictor: PixelLMPredictor, config: ChatConfig) -> None:
    """Talk until the user leaves.

    Raises:
        InputError: if the picture of ``--image`` cannot be decoded.
    """
    dialogue = Dialogue(predictor, config)
    screen = Screen(Console(highlight=False, markup=False, emoji=False), preview=config.preview)
    if config.image:
        _look_at(config.image, dialogue, screen)
    else:
        screen.say("Type the path of a picture, then ask about it.")
    screen.say("/help lists the commands, Ctrl-D leaves.")
    session: PromptSession[str] = PromptSession(
        history=History(), completer=LineCompleter(dialogue), complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
    )  # fmt: skip
    while (line := _read_line(session, dialogue, screen)) not in (None, *_LEAVE):
        said_before = bool(dialogue.turns)
        try:
            _respond(line, dialogue, screen)
        except InputError as err:
            report_input_error(err)
        except KeyboardInterrupt:
            forgotten = said_before and not dialogue.turns
            screen.say("stopped; what was said is forgotten, the picture stays" if forgotten else "stopped")


def _read_line(session: PromptSession[str], dialogue: Dialogue, screen: Screen) -> str | None:
    """What is typed, without the spaces around it; None at the end of the input."""
    while True:
        try:
            line = session.prompt("> " if dialogue.photo else "picture> ").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            if not session.default_buffer.text:
                screen.say("Ctrl-D or /quit leaves.")
            continue
        if line:
            return line


def _respond(line: str, dialogue: Dialogue, screen: Screen) -> None:
    name, _, argument = line.partition(" ")
    if name == "/image":
        _look_at(argument, dialogue, screen)
    elif dialogue.is_photo(line):
        _look_at(line, dialogue, screen)
    elif line.startswith("/"):
        screen.say(dialogue.command(line))
    else:
        screen.stream(dialogue.ask(line))
        turn = dialogue.turns[-1]
        screen.targets(turn.reply)
        where = dialogue.write(turn)
        if turn.written:
            screen.picture(dialogue.image, turn.reply.masks(dialogue.image.shape[:2]))
            screen.say(f"saved {len(turn.written)} files: {where}")


def _look_at(text: str, dialogue: Dialogue, screen: Screen) -> None:
    said = dialogue.look_at(text)
    screen.picture(dialogue.image)
    screen.say(said)


class LineCompleter(Completer):
    """Commands, what belongs behind them, and paths while there is no picture."""

    def __init__(self, dialogue: Dialogue) -> None:
        self._dialogue = dialogue
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        command, space, rest = document.text_before_cursor.partition(" ")
        if not space and command.startswith("/"):
            yield from _beginning_with(command, COMMANDS)
        if command == "/set":
            yield from _beginning_with(rest, ANSWER_FLAGS)
        elif command in ("/image", "/save"):
            yield from self._paths.get_completions(Document(rest), complete_event)
        elif self._dialogue.photo is None:
            yield from self._paths.get_completions(document, complete_event)


def _beginning_with(text: str, words: Iterable[str]) -> Iterator[Completion]:
    return (Completion(word, -len(text)) for word in words if word.startswith(text))


class History(FileHistory):
    """What was typed in earlier chats, in the user's folder for such state; where it cannot be kept, it is not."""

    def __init__(self) -> None:
        folder = Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "pixellm")
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        super().__init__(str(folder / "chat_history"))

    def load_history_strings(self) -> Iterable[str]:
        with suppress(OSError):
            return list(super().load_history_strings())
        return []

    def store_string(self, string: str) -> None:
        with suppress(OSError, UnicodeError):
            if string.strip():
                super().store_string(string)
