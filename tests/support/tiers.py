"""The tiers of the suite: `pytest -m fast` for the loop of a person at work, `pytest -m conformance`, and everything."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parents[1]

_FAST: Final = frozenset({"app", "architecture", "codec", "conformance", "model", "readme", "sqlite", "test_url.py"})
"""Folders whose tests are fast, but for modules marked `slow` and for those on a server."""

_SERVERS: Final = frozenset({"redis", "postgres"})
"""Parameters of tests that need one."""


def mark(item: pytest.Item) -> None:
    """Mark the test `fast` where it is, and `conformance`."""
    folder = item.path.relative_to(TESTS).parts[0]
    if folder == "conformance":
        item.add_marker("conformance")
    if folder in _FAST and item.get_closest_marker("slow") is None and not _parameters(item) & _SERVERS:
        item.add_marker("fast")


def is_slow_folder(path: Path) -> bool:
    return path.is_dir() and path.parent == TESTS and path.name not in _FAST


def is_fast(item: pytest.Item) -> bool:
    return item.get_closest_marker("fast") is not None


def _parameters(item: pytest.Item) -> set[str]:
    """Return the parts of the test's parameters as its name shows them, among them the kind of store."""
    return set(item.callspec.id.split("-")) if isinstance(item, pytest.Function) and hasattr(item, "callspec") else set()
