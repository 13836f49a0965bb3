"""The Python of each page runs as the reader would run it: from top to bottom, in a folder of its own.

Jobs wait in memory: a busy disk would make them late.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.docs.pages import PAGES, README, ROOT, Block, blocks, name_of

pytestmark = pytest.mark.slow

_FILE: Final = re.compile(r"# ((?:\w+/)*\w+\.py)\n")
"""The first line of a block that is a file by itself. Later blocks of the page can import it."""

BY_ITSELF: Final = [ROOT / "docs/how-to" / page for page in ("send-in-a-transaction.md", "use-with-django.md")]
"""One needs servers, and one a project: see test_transactions_page.py, and tests/django/test_manage.py."""

WITH_PYTHON: Final = [page for page in PAGES if blocks(page, "python") and page not in BY_ITSELF]


@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page != README], ids=name_of)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    files = [(found[1], block) for block in blocks(page, "python") if (found := _FILE.match(block.text))]
    for name, block in files:
        _write(tmp_path / name, block.text)
    script = [block for block in blocks(page, "python") if not _FILE.match(block.text)]
    if imports := [f"import {_module(name)}" for name, _ in files if not _is_test(name)]:
        _run(tmp_path, ["-W", "error", "-c", "\n".join(imports)])
    if script:
        _write(tmp_path / "page.py", _at_their_lines(script))
        _run(tmp_path, ["-W", "error", "page.py"])
    if tests := [name for name, _ in files if _is_test(name)]:
        _run(tmp_path, ["-m", "pytest", "-q", "-p", "no:cacheprovider", *tests])


@pytest.mark.parametrize("block", blocks(README, "python"), ids=lambda block: block.place)
def test_each_python_block_of_the_readme_runs_by_itself(block: Block, tmp_path: Path) -> None:
    _write(tmp_path / "block.py", block.text)
    _run(tmp_path, ["-W", "error", "block.py"])


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _at_their_lines(script: list[Block]) -> str:
    """Return the blocks as one file, in which each line has the number that it has in the page: a traceback leads there."""
    text = ""
    for block in script:
        text += "\n" * (block.line - 1 - text.count("\n")) + block.text
    return text


def _module(file: str) -> str:
    return file.removesuffix(".py").replace("/", ".")


def _is_test(file: str) -> bool:
    return Path(file).name.startswith("test_")


def _run(folder: Path, *commands: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TASKFLOW_")}
    environment |= {"PYTHONPATH": ".", "TASKFLOW_BROKER": "memory://"}
    for command in commands:
        ran = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
