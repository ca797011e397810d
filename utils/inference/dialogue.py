"""A dialogue about photos: what it knows, and what each of its commands does. Nothing here needs a terminal."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from model.errors import InputError
from model.files import is_file, is_folder, write_json
from model.hub import files_read
from model.image import read_image
from model.outputs import check_output_file, exclusive
from model.predictor import PixelLMPredictor
from model.replies import Reply, Target
from utils.cli.answering import ANSWER_FLAGS
from utils.cli.config import ChatConfig

from .answer import picture_stem, to_json, write_answer
from .photos import PICTURE_SUFFIXES, photo_path

# Command -> what follows it, what it does.
COMMANDS = {
    "/image": ("PATH", "talk about another picture; its path alone does the same"),
    "/reset": ("", "forget what was said; the picture stays"),
    "/save": ("[PATH]", "write the dialogue with its masks to a JSON file"),
    "/set": ("[NAME VALUE]", "change how answers are given; alone, list what there is"),
    "/help": ("", "show this list"),
    "/quit": ("", "leave, as Ctrl-D does; Ctrl-C stops an answer"),
}


@dataclass
class Turn:
    """A question, its answer, and the files that were written about it."""

    question: str
    reply: Reply
    written: list[Path] = field(default_factory=list)


class Dialogue:
    """Questions and answers about one photo after another.

    Args:
        predictor: answers.
        config: how answers are given, and where their files go.
    """

    def __init__(self, predictor: PixelLMPredictor, config: ChatConfig) -> None:
        self.predictor = predictor
        self.config = config
        self.photo: Path | None = None
        self.image = np.zeros((1, 1, 3), dtype=np.uint8)
        self.turns: list[Turn] = []
        self._written: Counter[str] = Counter()  # answers about photos of a name, whose files must not meet

    def is_photo(self, text: str) -> bool:
        """Whether a line names a photo instead of asking something: the first one does, and the path of a picture."""
        if self.photo is None:
            return text.partition(" ")[0] not in COMMANDS
        return Path(text).suffix.strip("'\" ").lower() in PICTURE_SUFFIXES and _names_file(text)

    def look_at(self, text: str) -> str:
        """Read a photo; what is asked from now on is about it. Returns what there is to say.

        Raises:
            InputError: if there is no such picture; then the photo before it stays.
        """
        path = photo_path(text)
        image = read_image(path)
        self.predictor.set_image(image)
        self.photo, self.image, self.turns = path, image, []
        return f"{path.name}: {image.shape[1]} x {image.shape[0]} pixels"

    def ask(self, question: str) -> Iterator[str | Target | Reply]:
        """An answer, piece by piece, as of ``PixelLMPredictor.stream``; it goes on with the dialogue.

        An answer that is left half way ends the dialogue: the next question begins another one.

        Raises:
            InputError: if there is no photo, or the question is too long.
        """
        if self.photo is None:
            raise InputError("there is no picture yet; give one with /image PATH")
        turns, self.turns = self.turns, []
        options = self.config.answer_options
        try:
            for piece in self.predictor.stream(question, follows=bool(turns), **options):
                if isinstance(piece, Reply):
                    self.turns = [*turns, Turn(question, piece)]
                yield piece
        except InputError as err:  # nothing was read
            self.turns = turns
            raise InputError(f"{err}; /reset makes room" if turns else str(err)) from err

    def write(self, turn: Turn) -> str:
        """Write the files of an answer; returns how they are called.

        The first answer about a photo has the released names, each later one a number in them.

        Raises:
            InputError: if a file cannot be written.
        """
        assert self.photo is not None
        folder, stem = Path(self.config.vis_save_path), picture_stem(str(self.photo))
        number = self._written[stem] + 1
        turn.written = write_answer(
            self.image, turn.reply, output_dir=folder, stem=stem, number=number, alpha=self.config.alpha
        )
        self._written[stem] = number
        return str(folder / (f"{stem}_*" if number == 1 else f"{stem}_{number}_*"))

    def command(self, text: str) -> str:
        """Run a line that begins with ``/``; returns what there is to say.

        Raises:
            InputError: if there is no such command, or it cannot be done.
        """
        name, _, argument = text.partition(" ")
        argument = argument.strip()
        if name not in COMMANDS:
            raise InputError(f"{name} is no command; /help lists them")
        if argument and not COMMANDS[name][0]:
            raise InputError(f"{name} takes nothing behind it; /help lists what each command takes")
        if name == "/image":
            return self.look_at(argument)
        if name == "/save":
            return self._save(argument)
        if name == "/set":
            return self._set(*argument.split())
        if name == "/reset":
            self.turns = []
            return "what was said is forgotten"
        return "\n".join(f"{f'{name} {takes}':20} {does}" for name, (takes, does) in COMMANDS.items())

    def _save(self, text: str) -> str:
        if not self.turns or self.photo is None:
            raise InputError("there is no answer to save yet; ask something first")
        name = f"{picture_stem(str(self.photo))}_dialogue.json"
        path = Path(text).expanduser() if text else Path(self.config.vis_save_path)
        path = path / name if not text or is_folder(path) else path
        check_output_file(path, flag="/save", inputs=[self.photo, *files_read(self.config.version)])
        turns = [
            to_json(turn.reply, image_path=str(self.photo), question=turn.question)
            | {"files": [str(file) for file in turn.written]}
            for turn in self.turns
        ]
        with exclusive(path.parent):
            write_json(path, {"image": str(self.photo), "turns": turns})
        return f"saved {len(turns)} question{'s' * (len(turns) > 1)} with masks: {path}"

    def _set(self, name: str = "", value: str = "", *more: str) -> str:
        if not name:
            return "\n".join(f"{flag:20} {getattr(self.config, flag)}" for flag in ANSWER_FLAGS)
        if name not in ANSWER_FLAGS:
            raise InputError(f"{name} cannot be set; there are {', '.join(ANSWER_FLAGS)}")
        kind = type(getattr(self.config, name))
        try:
            number = kind(value)
        except ValueError as err:
            whole = "whole " if kind is int else ""
            raise InputError(f"{name} is {value!r}; expected a {whole}number, as in /set {name} 1") from err
        if more:
            raise InputError(f"/set takes a name and a value; found {' '.join(more)!r} behind them")
        self.config = dataclasses.replace(self.config, **{name: number})
        return f"{name} is {number} from the next answer on"


def _names_file(text: str) -> bool:
    try:
        return is_file(photo_path(text))
    except InputError:
        return False
