"""What a script's text has in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from taskflow.broker.redis import scripts
from taskflow.broker.redis.scripts import Scripts, smallest_calls
from taskflow.model.rules import Rules
from tests.stores.redis.scene import commands

SCRIPTS = Scripts(Rules())
TEXTS = {name: script.text.decode() for name, script in SCRIPTS.items()}
FUNCTION = re.compile(r"^ *local function (\w+)", re.MULTILINE)
CALL = re.compile(r"(?<![.\w])(\w+)\(")
ALL = {function for text in TEXTS.values() for function in FUNCTION.findall(text)} - {"load_rest"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_function_that_a_script_calls_is_in_it_once(name: str) -> None:
    functions = FUNCTION.findall(TEXTS[name])
    assert len(functions) == len(set(functions))
    assert ALL & set(CALL.findall(TEXTS[name])) <= set(functions)


def test_each_function_of_the_lua_files_is_used_by_a_script() -> None:
    assert {function for function in ALL if not any(len(re.findall(rf"\b{function}\b", text)) > 1 for text in TEXTS.values())} == set()


def test_each_section_of_the_lua_files_is_in_a_script() -> None:
    folder = Path(scripts.__file__).parent
    written = {function for file in folder.glob("*.lua") for function in FUNCTION.findall(file.read_text())}
    assert written == ALL


@pytest.mark.parametrize(("name", "most"), [("add", 17), ("claim", 24), ("succeed", 14)])
def test_a_script_for_plain_jobs_makes_few_functions(name: str, most: int) -> None:
    """Each costs the server a quarter of a command, also when it is not called."""
    at_once = re.sub(r"^local function load_rest.*?^return [\w, ]+\nend$", "", TEXTS[name], flags=re.MULTILINE | re.DOTALL)
    assert len(FUNCTION.findall(at_once)) <= most


def test_what_the_server_is_told_is_what_a_user_is_asked_to_be_permitted() -> None:
    assert {call[0] for call in smallest_calls(["a", "b", "c"])} == commands()
