"""The public types, in both checkers: what is right is taken and typed, and what is wrong is refused."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.typing import checkers
from tests.typing.checkers import Error

pytestmark = [pytest.mark.xdist_group("typing"), pytest.mark.unmeasured]  # each of the checkers takes much memory


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkers.plant(tmp_path_factory.mktemp("typing").resolve() / "right")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run of mypy has found out of a module, the next one takes up."""
    return tmp_path_factory.mktemp("mypy")


def test_mypy_reports_exactly_the_expected_errors(tree: Path, cache: Path) -> None:
    assert checkers.mypy(tree, cache) == checkers.expected(tree, "mypy")


def test_pyright_reports_exactly_the_expected_errors(tree: Path) -> None:
    assert checkers.pyright([tree], tree.parent)[tree] == checkers.expected(tree, "pyright")


@pytest.mark.parametrize("checker", ["pyright", "mypy"])
@pytest.mark.sampled(2)
def test_a_connection_is_checked_without_any_driver(checker: str, tree: Path, cache: Path, tmp_path: Path) -> None:
    """A driver that is not installed is Any, which must not make Any of everything that `connection=` takes."""
    python = checkers.python_without_drivers(tmp_path / "environment")
    found = checkers.mypy(tree, cache, python) if checker == "mypy" else checkers.pyright([tree], tree.parent, python)[tree]
    assert found == {error for error in checkers.expected(tree, checker) if error.file != checkers.CONNECTIONS}


def test_a_comment_names_the_error_of_each_checker(tree: Path) -> None:
    line = next(number for number, text in enumerate((tree / checkers.NEGATIVE).read_text().splitlines(), start=1) if "# E:" in text)
    assert Error(checkers.NEGATIVE, line, "arg-type") in checkers.expected(tree, "mypy")
    assert Error(checkers.NEGATIVE, line, "reportArgumentType") in checkers.expected(tree, "pyright")


def test_the_typed_examples_can_be_imported() -> None:
    """Importing the examples declares their jobs."""
    importlib.import_module("tests.typing.positive")
