"""The contract's clauses, the tests that claim them, and a way to run those tests on any world without pytest."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import itertools
import re
from collections.abc import Awaitable, Callable, Container, Iterator
from functools import cache
from typing import Any, Final, NamedTuple

import pytest

from taskflow.broker import admin, protocol, transactional
from tests.support.harnesses import StoreHarness
from tests.support.world import World

MODULES: Final = (
    *(
        "enqueue",
        "keys",
        "joins",
        "flows",
        "flow_troubles",
        "gates",
        "gate_troubles",
        "fair",
        "sessions",
        "claim",
        "beat",
        "settle",
        "turns",
        "ends",
    ),
    *("cancel_read", "upkeep", "poison_follow_up", "listen", "nudges", "schedules"),
    *("admin", "pages", "admin_acts", "admin_failures", "history"),
    *("tags", "spoilt_rows", "job_pauses"),
    "transactional",
)
"""The modules that claim clauses: `test_<module>.py` each."""

_BRACKETED: Final = re.compile(r"\[([a-z]+(?:_[a-z]+)*)\]")


def clauses() -> frozenset[str]:
    """Return the names in brackets in the contract's text."""
    texts = [
        protocol.__doc__,
        transactional.__doc__,
        *(method.__doc__ for _, method in inspect.getmembers(admin.Admin, inspect.isfunction)),
    ]
    return frozenset(name for text in texts for name in _BRACKETED.findall(text or ""))


class ClauseTest(NamedTuple):
    """One test with one set of parameters. `name` is pytest's, without the broker."""

    name: str
    clause: str
    claim: str
    call: Callable[[World], Awaitable[None]]


@cache
def clause_tests() -> tuple[ClauseTest, ...]:
    """Return every test of a clause, once for each set of its parameters. Each mutant calls this."""
    return tuple(test for module in MODULES for test in _tests_in(f"tests.conformance.test_{module}"))


def _tests_in(module: str) -> Iterator[ClauseTest]:
    for name, function in inspect.getmembers(importlib.import_module(module), inspect.iscoroutinefunction):
        if name.startswith("test_") and function.__module__ == module:
            clause = name.removeprefix("test_").split("__")[0]
            for label, arguments in _parameters(function):
                yield ClauseTest(name + label, clause, function.__doc__ or "", _bound(function, arguments))


def _bound(function: Callable[..., Awaitable[None]], arguments: dict[str, Any]) -> Callable[[World], Awaitable[None]]:
    return lambda world: function(world, **arguments)


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield all that `pytest.mark.parametrize` requests; these tests use nothing else of pytest."""
    marks = [mark for mark in getattr(function, "pytestmark", ()) if mark.name == "parametrize"]
    for chosen in itertools.product(*(_rows(*mark.args) for mark in marks)):
        arguments = {name: value for row in chosen for name, value in row.items()}
        yield "".join(f"[{_label(value)}]" for value in arguments.values()), arguments


def _rows(names: str | tuple[str, ...], values: Any) -> list[dict[str, Any]]:
    if isinstance(names, str):
        return [{names: value} for value in values]
    return [dict(zip(names, value, strict=True)) for value in values]


def _label(value: Any) -> str:
    return getattr(value, "__name__", None) or str(value)


def failing(harness: type[StoreHarness], *, of: Container[str] | None = None) -> dict[str, list[str]]:
    """Run each test, or those of some clauses, each in a fresh world of that kind. Return the failing clauses, with their failing tests."""
    noticed = dict[str, list[str]]()
    with asyncio.Runner() as runner:
        for test in clause_tests():
            if (of is None or test.clause in of) and runner.run(_fails(test, harness)):
                noticed.setdefault(test.clause, []).append(test.name)
    return noticed


async def _fails(test: ClauseTest, harness: type[StoreHarness]) -> bool:
    try:
        async with World(harness) as world:
            await test.call(world)
    except pytest.skip.Exception:
        return False
    except (Exception, pytest.fail.Exception):
        return True
    return False
