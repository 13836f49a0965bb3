"""What a script's text has in it."""

from __future__ import annotations

import re

import pytest

from taskflow.broker.redis.scripts import Scripts, calls
from taskflow.model.rules import Rules

SCRIPTS = Scripts(Rules())
FUNCTION = re.compile(r"^local function (\w+)", re.MULTILINE)


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_function_of_a_script_is_called(name: str) -> None:
    """And is there once."""
    text = SCRIPTS[name].text.decode()
    functions = FUNCTION.findall(text)
    assert len(functions) == len(set(functions))
    assert [function for function in functions if len(re.findall(rf"\b{function}\b", text)) < 2] == []


@pytest.mark.parametrize(("name", "most"), [("enqueue", 8), ("claim", 24), ("settle", 18)])
def test_a_script_for_plain_jobs_makes_few_functions(name: str, most: int) -> None:
    """Each costs the server a quarter of a command, also when it is not called."""
    at_once = re.sub(r"^local function the_rest.*?^return [\w, ]+\nend$", "", SCRIPTS[name].text.decode(), flags=re.MULTILINE | re.DOTALL)
    assert len(FUNCTION.findall(at_once)) <= most


def test_what_the_server_is_told_is_what_a_user_is_asked_to_be_permitted() -> None:
    assert {call[0] for call in calls(["a", "b", "c"])} == SCRIPTS.told()
