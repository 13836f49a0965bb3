"""Commands that must succeed, and virtual environments of programs that run apart from these tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]


def run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    ran = subprocess.run(list(map(str, command)), cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{command}: {ran.stdout[-20_000:]}{ran.stderr[-5_000:]}"
    return ran.stdout


def environment(folder: Path, *packages: object, python: object = sys.executable) -> Path:
    """Make a virtual environment of this Python with these packages, and return the path of its Python."""
    run(python, "-m", "venv", folder)
    run(folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", *packages)
    return folder / "bin/python"
