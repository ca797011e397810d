"""Command lines from dataclasses: one field is one flag, with its released name and default.

``parse`` merges defaults < ``--config`` files, a later one over an earlier one < flags given on the command line, and
remembers which were given. A switch may stand for values of other flags; a value given beside it that contradicts it is
refused. A field's annotation says what is allowed (``Literal`` for choices, the types below for ranges), and pydantic
holds every value to it.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Any,
    Generic,
    Literal,
    NoReturn,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from model.errors import InputError
from model.files import read_json
from model.values import checked_dataclass, shorten

ConfigType = TypeVar("ConfigType")


class BadValue(InputError):
    """The value of a flag is of another type than the flag's, or out of its range."""


@dataclass_transform(frozen_default=True)
def settings(cls: type[ConfigType]) -> type[ConfigType]:
    """Make a frozen dataclass of flags that holds values to their annotations, however it is made.

    Raises:
        BadValue: by its constructor, for a value of another type or out of range.
    """
    return checked_dataclass(cls, lambda name, problem: BadValue(f"--{name} {problem}"))


def flag(
    default: Any,
    help: str,
    *,
    aliases: tuple[str, ...] = (),
    unused: str = "",
    implies: Mapping[str, Any] | None = None,
    fixed: Literal["", "checkpoint", "samples"] = "",
    positional: bool = False,
) -> Any:
    """A dataclass field that is a command-line flag.

    Args:
        aliases: further spellings, such as ``--vision-tower``.
        unused: why the flag has no effect any more; it is accepted, and giving it says so once.
        implies: values of other flags that a switch stands for when it is on.
        fixed: what depends on the flag, so that a resumed run must keep it: what its checkpoint holds, or the samples
            that it sees.
        positional: it takes what stands on the command line without a flag; a tuple of texts. Other flags whose default
            is a tuple take one text or more, and add up when they are given again.
    """
    metadata = {
        "help": help, "aliases": aliases, "unused": unused, "implies": implies or {}, "fixed": fixed,
        "positional": positional,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


class _Parser(argparse.ArgumentParser):
    """Tells a wrong command line like any other bad input: in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help lists what there is")


@dataclass(frozen=True)
class Parsed(Generic[ConfigType]):
    """A configuration, and where its values come from.

    Attributes:
        given: flags that the user set (file, command line, or a switch that implies).
        typed: those of them that stood on the command line.
    """

    config: ConfigType
    given: frozenset[str]
    typed: frozenset[str] = frozenset()

    def notices(self) -> list[str]:
        """One line for each given flag that has no effect in this command."""
        reasons = {field.name: field.metadata["unused"] for field in _fields(type(self.config))}
        lines = [
            f"--{name} has no effect here: {reason}"
            for name, reason in reasons.items()
            if name in self.given and reason
        ]
        # Of a shared --config file, every command takes its part in silence.
        ignored, why = getattr(self.config, "ignored", ((), ""))
        for group in ignored:
            names = [field.name for field in _fields(group) if field.name in self.typed and not reasons[field.name]]
            lines += [f"--{name} has no effect here: {why}" for name in names]
        return lines


def build_parser(config_type: type, description: str) -> argparse.ArgumentParser:
    """A parser of the dataclass's flags that reports only what was given; every boolean ``--x`` also has ``--no_x``,
    and ``--no_x`` has ``--x``.

    ``--help`` shows the flags under the first line of the docstring of the class that declares them.
    """
    places = [f"{field.name.upper()} ..." for field in _fields(config_type) if field.metadata["positional"]]
    parser = _Parser(
        usage=" ".join(["%(prog)s", *places, "[--FLAG VALUE ...]"]),
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_flags(parser, config_type)
    return parser


def parse(config_type: type[ConfigType], argv: Sequence[str] | None, description: str) -> Parsed[ConfigType]:
    """Read a command line into ``config_type``.

    Args:
        argv: default is this process's.
    Raises:
        InputError: for a bad file, a value out of range, or flags that contradict one another.
    """
    return _merge(config_type, vars(build_parser(config_type, description).parse_args(argv)))


def parse_command(
    commands: Mapping[str, type], argv: Sequence[str] | None, description: str
) -> tuple[str, Parsed[Any]]:
    """Read ``<command> --flag ...``, for scripts that do several things.

    Args:
        commands: the flags of each command, a dataclass whose docstring says what the command does.
    Returns:
        the command and what was parsed.
    Raises:
        InputError: as ``parse``.
    """
    parser = _Parser(description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = parser.add_subparsers(dest="command", required=True, metavar="|".join(commands))
    for name, config_type in commands.items():
        of_command = choices.add_parser(
            name,
            usage=f"%(prog)s {name} [--FLAG VALUE ...]",
            help=_title(config_type),
            description=config_type.__doc__,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        _add_flags(of_command, config_type)
    given = vars(parser.parse_args(argv))
    command = given.pop("command")
    return command, _merge(commands[command], given)


def _fields(config_type: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(config_type)


def _title(config_type: type) -> str:
    return (config_type.__doc__ or "").strip().splitlines()[0].rstrip(".")


def _add_flags(parser: argparse.ArgumentParser, config_type: type) -> None:
    hints = get_type_hints(config_type, include_extras=True)
    titles: dict[str, Any] = {}
    for field in _fields(config_type):
        title = _title(_owner(config_type, field.name))
        group = titles[title] if title in titles else titles.setdefault(title, parser.add_argument_group(title))
        _add_flag(group, field, hints[field.name])
    if titles:
        parser.add_argument(
            "--config",
            action="append",
            help="JSON file of flag values; of several, the later one wins, and flags on the command line do",
        )


def _owner(config_type: type, name: str) -> type:
    """The class that first declared a flag; one that only changes the default does not take it over."""
    return [cls for cls in config_type.__mro__ if name in inspect.get_annotations(cls)][-1]


def _add_flag(group: Any, field: dataclasses.Field[Any], hint: Any) -> None:
    if field.metadata["positional"]:
        group.add_argument(field.name, nargs="*", metavar=field.name.upper(), help=field.metadata["help"])
        return
    names = (f"--{field.name}", *field.metadata["aliases"])
    effect = f"; no effect: {field.metadata['unused']}" if field.metadata["unused"] else ""
    means = ", ".join(f"--{name}={value}" for name, value in field.metadata["implies"].items())
    effect += f"; means {means}" if means else ""
    help_text = f"{field.metadata['help']} (default: {field.default!r}{effect})".replace("%", "%%")
    if isinstance(field.default, bool):
        group.add_argument(*names, dest=field.name, action="store_true", help=help_text)
        off = [f"--no_{name.lstrip('-')}" for name in names]
        off += [f"--{name.removeprefix('--no_')}" for name in names if name.startswith("--no_")]
        group.add_argument(*off, dest=field.name, action="store_false", help=argparse.SUPPRESS)
    elif isinstance(field.default, tuple):
        group.add_argument(*names, dest=field.name, nargs="+", action="extend", help=help_text)
    else:
        choices = get_args(hint) if get_origin(hint) is Literal else None
        group.add_argument(*names, dest=field.name, type=type(field.default), choices=choices, help=help_text)


def _merge(config_type: type[ConfigType], given: dict[str, Any]) -> Parsed[ConfigType]:
    values: dict[str, Any] = {}
    sources: dict[str, Path] = {}
    for path in map(Path, given.pop("config", [])):
        of_file = _read_config_file(config_type, path)
        values |= of_file
        sources |= dict.fromkeys(of_file, path)
    values |= given
    try:
        values |= _implied(config_type, values)
        for name, value in values.items():
            if isinstance(value, str) and "\0" in value:
                raise BadValue(f"--{name} is {shorten(value)}; expected text without a zero byte")
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        config = config_type(**values)
    except InputError as err:
        said = _said_in({name: path for name, path in sources.items() if name not in given}, str(err))
        if not said:
            raise
        raise type(err)(f"{err} ({said})", reason=err.reason) from err
    return Parsed(config, frozenset(values), frozenset(given))


def _said_in(sources: Mapping[str, Path], problem: str) -> str:
    """Which of the flags that a message names stand in which file."""
    named = set(re.findall(r"--(?:no_)?(\w+)", problem))
    return ", ".join(f"--{name} stands in {path}" for name, path in sources.items() if name in named)


def _read_config_file(config_type: type, path: Path) -> dict[str, Any]:
    try:
        values = read_json(path, remedy="give a JSON object of flag values")
    except InputError as err:
        raise InputError(f"--config {err}") from err
    if not isinstance(values, dict):
        raise InputError(f"--config {path} holds a {type(values).__name__}; give a JSON object of flag values")
    known = {field.name for field in _fields(config_type)}
    for name, value in values.items():
        if name not in known:
            raise InputError(f"--config {path}: unknown key {name!r}; expected flag names such as 'batch_size'")
        try:
            config_type(**{name: tuple(value) if isinstance(value, list) else value})
        except BadValue as err:
            raise InputError(f"--config {path}: {err}") from err
        except InputError:
            pass  # it contradicts the default of another flag, which the command line may still change
    return values


def _implied(config_type: type, values: dict[str, Any]) -> dict[str, Any]:
    """What the switches that are on stand for."""
    implied: dict[str, Any] = {}
    for field in _fields(config_type):
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
