"""The parser class of the command line: its help, its width, and its messages about wrong arguments."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


class Formatter(argparse.HelpFormatter):
    """Formats help for the terminal's width. argparse's own formatter would load
    shutil, and archive modules with it, as soon as a flag is declared."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=columns() - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wrap each line of a description, except indented ones, such as commands."""
        fill = super()._fill_text
        return "\n".join(fill(line, width, indent) if line and line[0] != " " else line for line in text.split("\n"))


def columns() -> int:
    """Return the width of the terminal in characters, like `shutil.get_terminal_size`."""
    with contextlib.suppress(KeyError, ValueError):
        if (told := int(os.environ["COLUMNS"])) > 0:
            return told
    with contextlib.suppress(AttributeError, ValueError, OSError):  # no output, or no terminal
        if (seen := os.get_terminal_size(sys.__stdout__.fileno()).columns) > 0:  # type: ignore[union-attr]
            return seen
    return 80


class Parser(argparse.ArgumentParser):
    """An argument parser that suggests the intended command or flag for an unknown one.

    Flags cannot be abbreviated, because a flag added in a later version could change the meaning of an abbreviation.
    """

    commands: Mapping[str, Parser] = {}
    otherwise = ""
    """The hint for an unknown command that resembles no known one."""

    def __init__(self, **given: Any) -> None:
        super().__init__(allow_abbrev=False, **{"formatter_class": Formatter, **given})
        self._positionals.title = "arguments"

    def branch(self, name: str, *, required: bool) -> argparse._SubParsersAction[Parser]:
        """Make an argument choose one of `commands`, each with its own parser."""
        branches = self.add_subparsers(dest=name, required=required, metavar=name.upper(), parser_class=Parser)
        self.commands, self._chosen_by = branches.choices, name
        self._positionals._group_actions.remove(branches)  # `list_commands` shows them without the heading of arguments
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
        """Print the help. If it cannot be written, this raises an error, which argparse's own method would ignore."""
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
        """Print the message to stderr and exit with 2. Unlike argparse, leave out the usage, which would hide the message."""
        message = re.sub(r"://\S*", "://***", message)  # hides the password of a broker URL in the wrong place
        if slip := re.search(r"argument (\S+): invalid choice: (.+?) \(choose from (.+)\)", message):
            name, value, known = slip[1], slip[2].strip("'\""), re.findall(r"[\w-]+", slip[3])
            hint = _hint(value, known)
            if name in ("COMMAND", "ACTION"):
                message = f"unknown {name.lower()} '{value}'{hint or self.otherwise}"
            else:
                message = f"{name} '{value}' is not allowed" + (hint or f"; use {', '.join(known[:-1])} or {known[-1]}")
        self.exit(2, f"{self.prog}: {message}\nsee {self.prog} --help\n")


def _hint(slip: str, known: Iterable[str], prefix: str = "") -> str:
    from taskflow.model.printable import nearest

    near = nearest(slip, sorted(known))
    return f"; did you mean {prefix}{near}?" if near else ""
