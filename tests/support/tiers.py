"""The tiers of the suite: `pytest -m fast` during development, `pytest -m conformance`, `-m browser`, and everything else."""

from __future__ import annotations

import os
import sys
from collections.abc import Set
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

ON_ALL: Final = "CONFORMANCE_ON_ALL"
"""If this environment variable is set, every test runs on every broker that it takes."""

_STORES: Final = ("sqlite", "redis", "postgres")

_IN_TURN: Final = frozenset(TESTS / folder for folder in ("unit/app", "dashboard"))
"""Folders whose tests are about what is above a broker. They run on memory and, in turn, on one store: on another one with the next version
of Python."""

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


def is_left_to_others(item: pytest.Item) -> bool:
    """Return True if the test runs on one store in turn, and this is another store's case."""
    return _runs_in_turn(item.path) and is_another_stores_turn(item)


@cache
def _runs_in_turn(module: Path) -> bool:
    return _is_in(module, _IN_TURN)


def is_another_stores_turn(item: pytest.Item) -> bool:
    """Return True if this is the case of a store other than memory and the one whose turn it is, which differs by the version of Python."""
    if os.environ.get(ON_ALL) or not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return False
    kinds = (getattr(value, "name", None) for value in item.callspec.params.values())
    mine = next((kind for kind in kinds if kind in _STORES), None)
    return mine is not None and mine != _STORES[(crc32(item.name.replace(mine, "").encode()) + sys.version_info.minor) % len(_STORES)]


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
