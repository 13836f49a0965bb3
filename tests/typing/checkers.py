"""mypy and pyright as a user has them: what they report of which line, and what the lines say that they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Error(NamedTuple):
    file: str
    line: int
    code: str


# --- the files that are checked -------------------------------------------------------------------------------------


POSITIVE = "tests/typing/positive.py"
NEGATIVE = "tests/typing/negative.py"
CONNECTIONS = "tests/typing/connections.py"
FILES = (POSITIVE, NEGATIVE, CONNECTIONS)


def plant(tree: Path) -> Path:
    """A folder of its own with a copy of the package and of what is checked against it, so that both may be spoilt."""
    shutil.copytree(ROOT / "taskflow", tree / "taskflow", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tree / "tests" / "typing"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").touch()
    for file in (POSITIVE, NEGATIVE, CONNECTIONS):
        shutil.copy(ROOT / file, folder)
    return tree


_MARK = re.compile(r"# E:((?: \w+\[[\w-]+\])+)")
_ERROR = re.compile(r"(\w+)\[([\w-]+)\]")


def expected(tree: Path, checker: str) -> set[Error]:
    """What the comments say: ``# E: mypy[arg-type] pyright[reportArgumentType]``."""
    found = set[Error]()
    for file in FILES:
        if not (tree / file).exists():
            continue
        for number, line in enumerate((tree / file).read_text().splitlines(), start=1):
            if mark := _MARK.search(line):
                found |= {Error(file, number, code) for name, code in _ERROR.findall(mark[1]) if name == checker}
    return found


DRIVERS = ("aiosqlite", "asyncpg", "django", "psycopg", "sqlalchemy", "sqlmodel")


def python_without_drivers(folder: Path) -> str:
    """Make an environment with everything that is installed here but the drivers, and return its interpreter."""
    venv.create(folder, symlinks=True)
    [theirs] = folder.glob("lib/python*/site-packages")
    for each in Path(sysconfig.get_path("purelib")).iterdir():
        if not each.name.lower().startswith(DRIVERS):
            (theirs / each.name).symlink_to(each)
    return str(folder / "bin/python")


# --- the checkers ---------------------------------------------------------------------------------------------------


def mypy(tree: Path, cache: Path, python: str = sys.executable) -> set[Error]:
    """A later run with the same cache, of a tree in the same place, takes up what has not changed."""
    config = ROOT / "pyproject.toml"
    options = ["--config-file", str(config), "--cache-dir", str(cache), "--follow-imports", "silent", "--output", "json"]
    options += ["--python-executable", python, "--disable-error-code", "import-not-found"]
    ran = subprocess.run([sys.executable, "-m", "mypy", *options, *FILES], cwd=tree, capture_output=True, text=True, check=False)
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    reported = (json.loads(line) for line in ran.stdout.splitlines())
    return {Error(each["file"], each["line"], each["code"]) for each in reported if each["severity"] == "error"}


def pyright(trees: Iterable[Path], folder: Path, python: str = sys.executable) -> dict[Path, set[Error]]:
    """One run for all: every tree is an execution environment with its own copy of the package."""
    found: dict[Path, set[Error]] = {tree.resolve(): set() for tree in trees}
    config = {
        "include": [f"{tree.relative_to(folder.resolve())}/{file}" for tree in found for file in FILES if (tree / file).exists()],
        "executionEnvironments": [{"root": str(tree.relative_to(folder.resolve()))} for tree in found],
        "typeCheckingMode": "standard",
        "pythonVersion": "3.11",
        "reportMissingImports": False,
    }
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "pyright", "--project", str(folder), "--pythonpath", python, "--outputjson"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    for each in json.loads(ran.stdout)["generalDiagnostics"]:
        if each["severity"] == "error":
            file = Path(each["file"])
            tree = next(tree for tree in found if file.is_relative_to(tree))
            found[tree].add(Error(str(file.relative_to(tree)), each["range"]["start"]["line"] + 1, each.get("rule", "syntax")))
    return found
