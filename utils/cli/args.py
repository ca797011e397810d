"""Command lines from dataclasses: one field is one flag, with its released name and default.

``parse`` merges defaults < ``--config`` file < flags given on the command line, and remembers which were given. A
switch may stand for values of other flags; a value given beside it that contradicts it is refused.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from model.errors import InputError

ConfigType = TypeVar("ConfigType")


def flag(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    unused: str = "",
    implies: Mapping[str, Any] | None = None,
) -> Any:
    """A dataclass field that is a command-line flag.

    Args:
        aliases: further spellings, such as ``--vision-tower``.
        unused: why the flag has no effect any more; it is accepted, and giving it says so once.
        implies: values of other flags that a switch stands for when it is on.
    """
    metadata = {"help": help, "choices": choices, "aliases": aliases, "unused": unused, "implies": implies or {}}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Parsed(Generic[ConfigType]):
    """A configuration and the names of the flags that the user set (file, command line, or a switch that implies)."""

    config: ConfigType
    given: frozenset[str]

    def notices(self) -> list[str]:
        """One line for each given flag that has no effect."""
        return [
            f"--{field.name} has no effect here: {field.metadata['unused']}"
            for field in dataclasses.fields(self.config)
            if field.name in self.given and field.metadata["unused"]
        ]


def build_parser(config_type: type, description: str) -> argparse.ArgumentParser:
    """A parser of the dataclass's flags that reports only what was given; every boolean ``--x`` also has ``--no_x``."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for field in dataclasses.fields(config_type):
        names = (f"--{field.name}", *field.metadata["aliases"])
        effect = f"; no effect: {field.metadata['unused']}" if field.metadata["unused"] else ""
        means = ", ".join(f"--{name}={value}" for name, value in field.metadata["implies"].items())
        effect += f"; means {means}" if means else ""
        help_text = f"{field.metadata['help']} (default: {field.default!r}{effect})".replace("%", "%%")
        if isinstance(field.default, bool):
            parser.add_argument(*names, dest=field.name, action="store_true", help=help_text)
            off = [f"--no_{name.lstrip('-')}" for name in names]
            parser.add_argument(*off, dest=field.name, action="store_false", help=argparse.SUPPRESS)
        else:
            choices = field.metadata["choices"] or None
            parser.add_argument(*names, dest=field.name, type=type(field.default), choices=choices, help=help_text)
    return parser


def parse(config_type: type[ConfigType], argv: Sequence[str], description: str) -> Parsed[ConfigType]:
    """Read a command line into ``config_type``."""
    parser = build_parser(config_type, description)
    parser.add_argument("--config", help="JSON file of flag values; flags on the command line win")
    given = vars(parser.parse_args(argv))
    config_file = given.pop("config", None)
    values = _read_config_file(config_type, Path(config_file)) if config_file else {}
    values |= given
    values |= _implied(config_type, values)
    return Parsed(config_type(**values), frozenset(values))


def parse_command(commands: Mapping[str, type], argv: Sequence[str], description: str) -> tuple[str, Any]:
    """Read ``<command> --flag ...``, for scripts that do several things.

    Args:
        commands: the flags of each command, a dataclass.
    Returns:
        the command and its configuration.
    """
    command = argv[0] if argv else ""
    if command in ("-h", "--help"):
        print(description.strip())
        raise SystemExit(0)
    if command not in commands:
        raise InputError(f"{command!r} is no command; expected {', '.join(commands)} (each has --help)")
    return command, parse(commands[command], argv[1:], commands[command].__doc__).config


def _read_config_file(config_type: type, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise InputError(f"--config {path} cannot be read ({err}); give a JSON object of flag values") from err
    if not isinstance(values, dict):
        raise InputError(f"--config {path} holds a {type(values).__name__}; give a JSON object of flag values")
    known = {field.name: field for field in dataclasses.fields(config_type)}
    for name, value in values.items():
        if name not in known:
            raise InputError(f"--config {path}: unknown key {name!r}; expected flag names such as 'batch_size'")
        default, choices = known[name].default, known[name].metadata["choices"]
        if isinstance(default, float) and type(value) is int:
            values[name] = float(value)
        elif type(value) is not type(default):
            raise InputError(
                f"--config {path}: {name} is {value!r}; expected a {type(default).__name__} such as {default!r}"
            )
        if choices and value not in choices:
            raise InputError(f"--config {path}: {name} is {value!r}; expected one of {', '.join(choices)}")
    return values


def _implied(config_type: type, values: dict[str, Any]) -> dict[str, Any]:
    """What the switches that are on stand for."""
    implied: dict[str, Any] = {}
    for field in dataclasses.fields(config_type):
        if not values.get(field.name):
            continue
        for name, value in field.metadata["implies"].items():
            if values.get(name, value) != value:
                raise InputError(
                    f"--{field.name} means --{name}={value}, but --{name}={values[name]} was given; leave one of the "
                    "two out"
                )
            implied[name] = value
    return implied
