"""The typing tests notice mistakes: each is made in a copy of the package, and each checker that can see it must report something else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.typing import checkers
from tests.typing.checkers import Error
from tests.typing.mistakes import MISTAKES, OF_THE_DECORATOR, Mistake

Found = dict[str, set[Error]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("typing").resolve()


@pytest.fixture(scope="module")
def tree(folder: Path) -> Path:
    return checkers.plant(folder / "right")


@pytest.fixture(scope="module")
def cache(folder: Path) -> Path:
    return folder / "cache"


@pytest.fixture(scope="module")
def of_pyright(folder: Path, tree: Path) -> Iterator[Future[Found]]:
    """What pyright says of the right tree and of each mistake's, in one run, which takes its time while mypy is asked."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(_ask_pyright, folder, tree)


@pytest.fixture(scope="module")
def of_mypy(tree: Path, cache: Path, of_pyright: Future[Found]) -> set[Error]:
    """What mypy says of the right tree; its cache is filled, and pyright at work."""
    return checkers.mypy(tree, cache)


@pytest.mark.parametrize("mistake", [each for each in MISTAKES if "mypy" in each.seen_by], ids=lambda mistake: mistake.name)
def test_mypy_notices_a_mistake(mistake: Mistake, tree: Path, cache: Path, of_mypy: set[Error], tmp_path: Path) -> None:
    with mistake.made(tree):
        assert checkers.mypy(tree, _copied(cache, tmp_path)) != of_mypy


@pytest.mark.parametrize("file", sorted({mistake.file for mistake in MISTAKES}))
def test_mypy_notices_nothing_where_there_is_no_mistake(file: str, tree: Path, cache: Path, of_mypy: set[Error], tmp_path: Path) -> None:
    """Else the tests above would not mean anything: an answer that takes up from a cache is that of a whole run."""
    innocent = Mistake("none", file, "from __future__ import annotations\n", "from __future__ import annotations\n\nINNOCENT = 1\n")
    with innocent.made(tree):
        assert checkers.mypy(tree, _copied(cache, tmp_path)) == of_mypy


@pytest.mark.parametrize("mistake", [each for each in MISTAKES if "pyright" in each.seen_by], ids=lambda mistake: mistake.name)
def test_pyright_notices_a_mistake(mistake: Mistake, folder: Path, of_pyright: Future[Found]) -> None:
    assert of_pyright.result()[mistake.name] != checkers.expected(_tree_of(mistake, folder), "pyright")


def _copied(cache: Path, folder: Path) -> Path:
    """Of the right tree's run. A cache that went through several changes is not to be trusted."""
    return Path(shutil.copytree(cache, folder / "cache"))


# --- pyright, once for all ------------------------------------------------------------------------------------------


def _ask_pyright(folder: Path, tree: Path) -> Found:
    pristine = checkers.plant(folder / "pristine")  # the other tree is mypy's, and changes
    trees = {"right": pristine}
    for mistake in MISTAKES:
        if "pyright" in mistake.seen_by:
            trees[mistake.name] = _spoilt(mistake, pristine, _tree_of(mistake, folder))
    found = checkers.pyright(trees.values(), folder)
    return {name: found[tree] for name, tree in trees.items()}


def _tree_of(mistake: Mistake, folder: Path) -> Path:
    return folder / f"mistake_{MISTAKES.index(mistake)}"


def _spoilt(mistake: Mistake, right: Path, tree: Path) -> Path:
    shutil.copytree(right, tree)
    mistake.make(tree)
    if mistake not in OF_THE_DECORATOR:
        (tree / checkers.ODD).unlink()  # it takes most of the time, and says no more of a method than the other files do
    return tree
