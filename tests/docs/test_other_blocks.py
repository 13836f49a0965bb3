"""Commands and files on the pages are parsed: commands of ours by our own parser, others by the shell, files by their format."""

from __future__ import annotations

import ast
import configparser
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from typing import Final

import pytest
import yaml

from taskflow.cli.parser import a_parser
from tests.docs.pages import Block, all_blocks

SHELL: Final = ("bash", "sh", "console")
CHECKED: Final = {*SHELL, "python", "dockerfile", "yaml", "ini", "toml", "json", "sql", "postgresql", "py"}
FREE: Final = {"text", "{toctree}", "{eval-rst}"}
"""Output of programs, and directives, which the build of the pages checks."""

_INSTRUCTIONS: Final = {"FROM", "RUN", "CMD", "COPY", "WORKDIR", "ENV", "USER", "EXPOSE", "ENTRYPOINT", "ARG", "HEALTHCHECK", "STOPSIGNAL"}
_COMMANDS: Final = frozenset(a_parser().commands)


def by_place(block: Block) -> str:
    return block.place


def test_every_block_names_a_language_that_is_checked() -> None:
    """A block without a language would be neither run nor parsed."""
    assert [(block.place, block.language) for block in all_blocks() if block.language not in CHECKED | FREE] == []


@pytest.mark.slow
@pytest.mark.parametrize("block", all_blocks(*SHELL), ids=by_place)
def test_a_block_for_the_shell_parses(block: Block) -> None:
    subprocess.run(["bash", "-n"], input=_script(block), text=True, check=True)
    for arguments in _our_commands(_script(block)):
        a_parser().parse_args(arguments)


@pytest.mark.parametrize("block", all_blocks("dockerfile"), ids=by_place)
def test_a_dockerfile_parses(block: Block) -> None:
    lines = [line.split(maxsplit=1) for line in block.text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert lines[0][0] == "FROM"
    assert {instruction for instruction, _ in lines} <= _INSTRUCTIONS
    for _, rest in lines:
        if rest.startswith("["):
            _parse_ours(json.loads(rest))


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=by_place)
def test_a_yaml_file_parses(block: Block) -> None:
    documents = list(yaml.safe_load_all(block.text))
    assert all(isinstance(document, dict) for document in documents)
    for document in documents:
        for command in _commands_in(document):
            _parse_ours(command)


@pytest.mark.parametrize("block", all_blocks("ini"), ids=by_place)
def test_a_unit_file_parses(block: Block) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(block.text)
    assert unit.sections()
    for section in unit.sections():
        for key, value in unit[section].items():
            if key.startswith("Exec"):
                _parse_ours(shlex.split(value))


@pytest.mark.parametrize("block", all_blocks("toml", "json"), ids=by_place)
def test_a_settings_file_parses(block: Block) -> None:
    (tomllib.loads if block.language == "toml" else json.loads)(block.text)


@pytest.mark.parametrize("block", all_blocks("py"), ids=by_place)
def test_the_python_of_another_library_parses(block: Block) -> None:
    """It does not run here: its library is not installed. An `await` at the top level is allowed."""
    compile(block.text, block.place, "exec", flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def _script(block: Block) -> str:
    """Return the commands of a block. In a `console` block, lines that begin with a dollar sign are commands, and the others are output."""
    if block.language != "console":
        return block.text
    return "\n".join(re.findall(r"^\$ (.*)$", block.text, re.MULTILINE))


def _our_commands(script: str) -> Iterator[list[str]]:
    """Yield the arguments of each `taskflow` that a script calls."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for token in [*lexer, ";"]:
            if set(token) <= set(";&|<>()"):
                yield from _ours(command)
                command = []
            else:
                command.append(token)


def _ours(command: list[str]) -> Iterator[list[str]]:
    """Yield what follows on `taskflow`, if it is the program or if one of our commands follows on it, as after `docker compose run`."""
    while command and re.fullmatch(r"\w+=.*", command[0]):
        command = command[1:]
    for index, word in enumerate(command):
        if re.fullmatch(r"(.*/)?taskflow", word) and (index == 0 or (command[index + 1 :][:1] and command[index + 1] in _COMMANDS)):
            yield command[index + 1 :]


def _parse_ours(command: list[str]) -> None:
    for arguments in _ours(command):
        a_parser().parse_args(arguments)


def _commands_in(value: object) -> Iterator[list[str]]:
    """Yield each command of a Compose file or a manifest, wherever it stands."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("command", "args", "entrypoint", "test") and isinstance(inner, list | str):
                yield shlex.split(inner) if isinstance(inner, str) else [str(word) for word in inner]
            else:
                yield from _commands_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _commands_in(inner)
