"""The Python of each page runs as the reader would run it: from top to bottom, in a folder of its own.

Jobs wait in memory: a busy disk would make them late.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.docs.pages import PAGES, README, ROOT, SCRIPT, Block, blocks, files_of, name_of, write
from tests.support.forks import run_in_fork

pytestmark = pytest.mark.slow

BY_ITSELF: Final = [
    ROOT / "docs" / page for page in ("how-to/send-in-a-transaction.md", "how-to/use-with-django.md", "migrate/django-with-celery.md")
]
"""One needs servers, and two a project: see test_transactions_page.py, and tests/django/test_manage.py."""

WITH_PYTHON: Final = [page for page in PAGES if blocks(page, "python") and page not in BY_ITSELF]


@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page != README], ids=name_of)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    files = files_of(blocks(page, "python"))
    write(files, tmp_path)
    if imports := [f"import {_module(name)}" for name in files if name != SCRIPT and not _is_test(name)]:
        _run(tmp_path, "\n".join(imports))
    if SCRIPT in files:
        _run(tmp_path, _AS_SCRIPT.format(SCRIPT))
    if tests := [name for name in files if _is_test(name)]:
        _test(tmp_path, tests)


@pytest.mark.parametrize("block", blocks(README, "python"), ids=lambda block: block.place)
def test_each_python_block_of_the_readme_runs_by_itself(block: Block, tmp_path: Path) -> None:
    write({"block.py": block.text}, tmp_path)
    _run(tmp_path, _AS_SCRIPT.format("block.py"))


def _module(file: str) -> str:
    return file.removesuffix(".py").replace("/", ".")


def _is_test(file: str) -> bool:
    return Path(file).name.startswith("test_")


_AS_SCRIPT: Final = "import runpy\nrunpy.run_path({!r}, run_name='__main__')"


def _run(folder: Path, program: str) -> None:
    """Run the program in a fork that has loaded taskflow, which takes half the time. Any warning is an error."""
    code, said = run_in_fork(f"import warnings\nwarnings.simplefilter('error')\n{program}", folder, _environment())
    assert code == 0, said


def _test(folder: Path, files: list[str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    ran = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def _environment() -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("TASKFLOW_")}
    return ours | {"PYTHONPATH": ".", "TASKFLOW_BROKER": "memory://"}
