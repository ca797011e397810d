"""The commands that pages show, and whether the command's own parser takes them."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_OTHER_LANGUAGES = ("python", "json")
_INDENTED = re.compile(
    r"^ {4,}(?:python|deepspeed|torchrun|bash|sbatch|pixellm-|printf|cd|[A-Z_]+=)(?:.*\\\n)*.*", re.MULTILINE
)
_LAUNCHERS = ("deepspeed", "torchrun", "sbatch")
_OF_SLURM = "scripts/train_slurm.sh"  # hands its arguments on to train_ds.py
_ELSEWHERE = {_OF_SLURM: "train_ds", "zero_to_fp32.py": "utils.training.zero_to_fp32"}


@dataclass(frozen=True)
class Command:
    """A command line of a page.

    Attributes:
        launcher: deepspeed, torchrun or sbatch with its options; empty without one.
        script: a file or a module of the repository, or one of its console scripts.
        arguments: those of the script.
    """

    launcher: tuple[str, ...]
    script: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join([*self.launcher, self.script, *self.arguments])


def read_commands(page: str) -> list[Command]:
    """All commands of a page: of fenced and indented blocks, and between back-ticks."""
    blocks = [match[3] for match in _FENCE.finditer(page) if match[2] not in _OTHER_LANGUAGES]
    rest = _FENCE.sub("", page)
    blocks += _INDENTED.findall(rest)
    blocks += [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", rest)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [command for line in lines for command in _commands_of(line)]


def _commands_of(line: str) -> Iterator[Command]:
    if not re.search(r"\b(python3?|bash|deepspeed|torchrun|sbatch|pixellm-\w+)\b", line):
        return
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return  # words with an apostrophe
    part: list[str] = []
    for word in [*words, "&&"]:
        if word not in ("&&", "|"):
            part += [word] if part or not re.fullmatch(r"[A-Z_]+=.*", word) else []
            continue
        if (command := _command(_without_dots(part))) is not None:
            yield command
        part = []


def _without_dots(words: list[str]) -> list[str]:
    """``...`` stands for more flags, or for the value of the flag before it."""
    if "..." not in words:
        return words
    shown = words[: words.index("...")]
    return shown[:-1] if shown and shown[-1].startswith("--") else shown


def _command(words: Sequence[str]) -> Command | None:
    """None for what is no command of this repository."""
    if words and words[0].startswith("pixellm-"):
        return Command((), words[0], tuple(words[1:]))
    if len(words) < 2:
        return None
    if words[0] in _LAUNCHERS:
        place = next((place for place, word in enumerate(words) if word.endswith((".py", ".sh"))), None)
        return None if place is None else Command(tuple(words[:place]), words[place], tuple(words[place + 1 :]))
    if words[0] in ("python", "python3", "bash"):
        script, *arguments = words[2:] if words[1] == "-m" else words[1:]
        is_ours = script.startswith(("utils.", "tests.")) if words[1] == "-m" else script.endswith((".py", ".sh"))
        return Command((), script.removeprefix("./"), tuple(arguments)) if is_ours else None
    return None


def check(command: Command, repository: Path, console_scripts: dict[str, str]) -> None:
    """Read the command line by the parsers of launcher and script. ``run_command`` must run nothing.

    Args:
        console_scripts: name -> module and function.
    Raises:
        Exception: of whatever kind the parser has, if it does not take it.
    """
    _check_launcher(*command.launcher)
    if command.script.startswith("pixellm-"):
        module = console_scripts[command.script].partition(":")[0]
    else:
        module = _ELSEWHERE.get(command.script, command.script.removesuffix(".py").replace("/", "."))
    file = repository / (f"{module.replace('.', '/')}.py" if not module.endswith(".sh") else command.script)
    text, arguments = file.read_text(encoding="utf-8"), _without_files_of_runs(command.arguments)
    if "run_command" not in text:
        for word in arguments:
            assert not word.startswith("--") or f'"{word}"' in text or f" {word}" in text, f"{file} has no {word}"
    elif arguments and arguments != ["--help"]:  # by which a parser ends the process
        importlib.import_module(module).main(arguments)


def _without_files_of_runs(arguments: Sequence[str]) -> list[str]:
    """Without ``--config runs/NAME/run_config.json``, which a run writes."""
    left = list(arguments)
    for place in [place for place, word in enumerate(left[:-1]) if word == "--config"][::-1]:
        if left[place + 1].startswith("runs/"):
            del left[place : place + 2]
    return left


def _check_launcher(name: str = "", *options: str) -> None:
    """By its own parser; that of Slurm is not here."""
    if name == "torchrun":
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args([*options, "train_ds.py"])
    elif name == "deepspeed":
        from deepspeed.launcher.runner import parse_args

        parse_args([*options, "train_ds.py"])
