"""The tiers of the suite: `pytest -m fast` during development, `pytest -m conformance`, `-m browser`, and everything else."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Sequence, Set
from functools import cache
from pathlib import Path
from typing import Final
from zlib import crc32

import pytest

TESTS: Final = Path(__file__).parents[1]

_FAST: Final = frozenset[Path](
    {
        *(TESTS / folder for folder in ("unit", "architecture", "conformance", "seam", "docs", "prose", "stores/sqlite", "long/chaos")),
        *(TESTS / "stores" / module for module in ("test_migrations.py", "test_spoilt.py")),
    }
)
"""Places whose tests are fast, except modules marked `slow` and tests on a server."""

_PROCESSES: Final = frozenset([TESTS / "stores/sqlite/test_commit_watch.py"])
"""Modules in these places whose tests start processes."""

_SERVERS: Final = frozenset({"redis", "postgres"})
"""Parameters of tests that need a server."""

_IN_FAST_PLACES: Final = ("fast", "fast or conformance and not slow")
"""Expressions of `-m`, the second in .ci/run, that match only tests in fast places."""

ALL: Final = "ALL_TESTS"
"""If this environment variable is set, every test runs with all its cases, on every broker that it takes, as in the nightly run."""

_STORES: Final = frozenset({"sqlite", "redis", "postgres"})

IN_TURN: Final = frozenset(TESTS / folder for folder in ("unit/app", "api", "cli", "dashboard", "django", "faults", "worker"))
"""Folders whose tests are about what is above a broker. Each runs on memory, where it takes memory, and in turn on one of its stores: on
another one with the next version of Python."""

_BROWSER: Final = TESTS / "browser"
"""Tests that need Chromium and the extra `browser`. A full run does not include them."""


def mark(item: pytest.Item) -> None:
    """Mark the test `fast`, `conformance` or `browser`, if it belongs to that tier."""
    is_conformance, is_in_fast_place, is_browser = _tiers_of(item.path)
    if is_conformance:
        item.add_marker("conformance")
    if is_in_fast_place and item.get_closest_marker("slow") is None and not _parameters(item) & _SERVERS:
        item.add_marker("fast")
    if is_browser:
        item.add_marker("browser")


@cache
def _tiers_of(module: Path) -> tuple[bool, bool, bool]:
    """Return whether this module is in the conformance suite, in a fast place, and about pages in a browser.

    The result is cached: each worker of pytest-xdist asks for ten thousand tests, which would take a second and a half.
    """
    is_fast = module not in _PROCESSES and _is_in(module, _FAST)
    return _is_in(module, {TESTS / "conformance"}), is_fast, _is_in(module, {_BROWSER})


def _is_in(path: Path, places: Set[Path]) -> bool:
    """Return True if the path is one of these places or in one. Asking each place whether the path is relative to it takes six times as
    long, and each worker asks for 300 modules."""
    return not places.isdisjoint([path, *path.parents])


def left_to_others(items: Sequence[pytest.Item]) -> set[pytest.Item]:
    """Return the cases of tests that run on one store in turn, where it is another store's turn, and the other cases of sampled tests."""
    return other_stores_turns([item for item in items if _runs_in_turn(item.path)]) | _not_sampled(items)


def _not_sampled(items: Sequence[pytest.Item]) -> set[pytest.Item]:
    """Return all but every n-th case of each test that is marked `sampled(n)`. The next version of Python takes the next ones."""
    cases = defaultdict[tuple[Path, str, int], list[pytest.Item]](list)
    for item in items:
        if isinstance(item, pytest.Function) and (marker := item.get_closest_marker("sampled")) is not None:
            cases[item.path, item.originalname, marker.args[0]].append(item)
    left = set[pytest.Item]()
    for (_, _, step), of_test in cases.items():
        step = min(step, len(of_test))
        left.update(of_test[at] for at in range(len(of_test)) if (at + sys.version_info.minor) % step)
    return set() if os.environ.get(ALL) else left


@cache
def _runs_in_turn(module: Path) -> bool:
    return _is_in(module, IN_TURN)


def other_stores_turns(items: Sequence[pytest.Item]) -> set[pytest.Item]:
    """Return the cases on stores other than memory and the one whose turn it is, which differs by the version of Python.

    It is always the turn of a store that the test takes. A case that is chosen by its name runs."""
    cases = defaultdict[tuple[Path, str], dict[str, pytest.Item]](dict)
    for item in items:
        if (store := _store_of(item)) is not None:
            cases[item.path, item.name.replace(store, "")][store] = item
    left = set[pytest.Item]()
    for (_, name), of_stores in cases.items():
        mine = sorted(of_stores)[(crc32(name.encode()) + sys.version_info.minor) % len(of_stores)]
        left.update(item for store, item in of_stores.items() if store != mine)
    return set() if os.environ.get(ALL) else left


def _store_of(item: pytest.Item) -> str | None:
    """Return the store that the test's parameters name, or None if it isn't one of those that take turns."""
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return None
    named = (getattr(value, "name", value) for value in item.callspec.params.values())
    return next((name for name in named if isinstance(name, str) and name in _STORES), None)


def is_slow_folder(path: Path) -> bool:
    """Return True if neither this folder of tests nor a folder in it is fast."""
    return path.is_dir() and _is_in(path, {TESTS}) and not (_is_in(path, _FAST) or any(_is_in(folder, {path}) for folder in _FAST))


def is_left_out(path: Path, expression: str) -> bool:
    """Return True if no test in this folder can match the expression of `-m`, so that the folder need not be loaded."""
    if "browser" in expression:
        return path.is_dir() and path.parent == TESTS and path != _BROWSER
    return path == _BROWSER or (expression in _IN_FAST_PLACES and is_slow_folder(path))


def is_fast(item: pytest.Item) -> bool:
    return item.get_closest_marker("fast") is not None


def _parameters(item: pytest.Item) -> set[str]:
    """Return the parts of the test's parameters as its name shows them, including the kind of store."""
    return set(item.callspec.id.split("-")) if isinstance(item, pytest.Function) and hasattr(item, "callspec") else set()
