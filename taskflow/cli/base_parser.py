"""The command line's parser class, with its help, its messages about wrong arguments, and the types of its options."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from datetime import datetime

    from _typeshed import SupportsWrite

MAX_PROCESSES: Final = 1_000
MAX_POSITIVE: Final = 1_000_000_000_000
MAX_SECONDS: Final = 36_525 * 86_400.0  # a hundred years: stores cannot compute with much longer times
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


class RawFormatter(argparse.HelpFormatter):
    """Formats help for the terminal's width. argparse's own formatter would load shutil, which loads archive modules."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=columns() - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wrap each line of a description, except indented ones, such as commands."""
        fill = super()._fill_text
        return "\n".join(fill(line, width, indent) if line and line[0] != " " else line for line in text.split("\n"))


def columns() -> int:
    """Return the width of the terminal in characters, like `shutil.get_terminal_size`."""
    with contextlib.suppress(KeyError, ValueError):
        if (given := int(os.environ["COLUMNS"])) > 0:
            return given
    with contextlib.suppress(AttributeError, ValueError, OSError):  # there is no output, or it isn't a terminal
        if (seen := os.get_terminal_size(sys.__stdout__.fileno()).columns) > 0:  # type: ignore[union-attr]
            return seen
    return 80


class Parser(argparse.ArgumentParser):
    """Suggests the command or flag that a typo resembles. Flags can't be abbreviated, because a future flag could change the meaning of an
    abbreviation."""

    commands: Mapping[str, Parser] = {}
    otherwise = ""  # the hint for an unknown command that resembles no known one

    def __init__(self, **given: Any) -> None:
        super().__init__(allow_abbrev=False, **{"formatter_class": RawFormatter, **given})
        self._positionals.title = "arguments"

    def branch(self, name: str, *, required: bool) -> argparse._SubParsersAction[Parser]:
        """Add an argument that chooses one of `commands`, each of which has a separate parser."""
        branches = self.add_subparsers(dest=name, required=required, metavar=name.upper(), parser_class=Parser)
        self.commands, self._chosen_by = branches.choices, name
        self._positionals._group_actions.remove(branches)  # `list_commands` lists them under other headings
        self._branches = branches
        return branches

    def list_commands(self, groups: Mapping[str, Iterable[str]]) -> None:
        """List the commands in the help under the titles of these groups, before the options."""
        listed = {action.dest: action for action in self._branches._choices_actions}
        for title, names in groups.items():
            self.add_argument_group(title)._group_actions.extend(listed[name] for name in names)
        self._action_groups.remove(self._optionals)
        self._action_groups.append(self._optionals)

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help. If it cannot be written, raise the error, which argparse's own method would ignore."""
        print(self.format_help(), end="", file=file)
        if file is None:
            sys.stdout.flush()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # of overloads
        known, unknown = super().parse_known_args(args, namespace)
        if unknown and self.commands:
            command = self.commands[getattr(known, self._chosen_by)]
            flags = [flag[2:] for action in command._actions for flag in action.option_strings]  # the dashes would make all of them similar
            hint = _hint(unknown[0].removeprefix("--"), flags, "--")
            command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        """Print the message to stderr, with a hint about a typo, and exit with 2. Leave out the usage, which would hide the message."""
        message = re.sub(r"://\S*", "://***", message)  # hides the password of a misplaced broker URL
        if typo := re.search(r"argument (\S+): invalid choice: (.+?) \(choose from (.+)\)", message):
            name, value, known = typo[1], typo[2].strip("'\""), re.findall(r"[\w-]+", typo[3])
            hint = _hint(value, known)
            if name in ("COMMAND", "ACTION"):
                message = f"unknown {name.lower()} '{value}'{hint or self.otherwise}"
            else:
                message = f"{name} '{value}' is not allowed" + (hint or f"; use {', '.join(known[:-1])} or {known[-1]}")
        self.exit(2, f"{self.prog}: {message}\nsee {self.prog} --help\n")


def _hint(typo: str, known: Iterable[str], prefix: str = "") -> str:
    from taskflow.model.printable import nearest

    near = nearest(typo, sorted(known))
    return f"; did you mean {prefix}{near}?" if near else ""


def positive(text: str, most: int = MAX_POSITIVE, why: str = "") -> int:
    from taskflow.model.printable import shown, whole

    if not (number := whole(text)):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number, 1 or more")
    if number > most:
        raise argparse.ArgumentTypeError(f"{shown(text)} is more than the maximum of {most}{why}")
    return number


def filled(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the value is empty, perhaps because a shell variable is not set")
    return text


action_number: Final = partial(positive, most=10**18)
processes: Final = partial(positive, most=MAX_PROCESSES, why="; more would overload the machine")
count: Final = partial(positive, most=10_000)


def port(text: str) -> int:
    from taskflow.model.printable import shown, whole

    if (number := whole(text)) is None or number > 65_535:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a port number from 0 to 65535")
    return number


def stages(text: str) -> tuple[int | None, ...]:
    """Parse the sizes of stages, as in 10,100,all. None means all remaining jobs."""
    return tuple(None if part == "all" else positive(part) for part in text.lower().split(","))


def fingerprint(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{16}", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid group, such as 71efb6587dea8408: `taskflow failures` lists the groups")
    return text.lower()


def size(text: str) -> int:
    """Parse a number of bytes. The suffixes K, M and G mean powers of 1,024. Raises ArgumentTypeError."""
    written = re.fullmatch(r"([1-9][0-9]{0,18})([KMG]?)", text, re.IGNORECASE | re.ASCII)
    if written is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes, such as 536870912, 512M or 1G")
    return int(written[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[written[2].upper()]


def seconds(text: str, least: float = 0.0, why: str = "") -> float:
    """Parse a duration, given in seconds or with units, as in 90m or 1h30m. Return seconds, or raise ArgumentTypeError."""
    parts = re.findall(r"([0-9.]+)(ms|[smhdw])", text, re.ASCII)
    has_units = bool(parts) and "".join(map("".join, parts)) == text
    with contextlib.suppress(ValueError):
        value = sum(float(number) * _UNITS[unit] for number, unit in parts) if has_units else float(text)
        if MAX_SECONDS < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is longer than a hundred years")
        if 0 <= value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is too short: {why}use {least:g} or more")
        if 0 <= value <= MAX_SECONDS:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds (0 or more) or a duration such as 90m, 12h or 7d")


interval: Final = partial(seconds, least=0.1)
ttl: Final = partial(seconds, least=1.0, why="a busy worker would be declared dead; ")


def time(text: str) -> datetime:
    from datetime import datetime

    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-01-31T09:00, or 2026-01-31T09:00+01:00") from None
    if not 1970 <= value.year < 3000:
        raise argparse.ArgumentTypeError(f"{text!r} is not between the years 1970 and 2999")
    return value
