"""Commands that must succeed, virtual environments, and folders in which programs run separately from these tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
TIMEOUT: Final = 60.0


def run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    ran = subprocess.run(list(map(str, command)), cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{command}: {ran.stdout[-20_000:]}{ran.stderr[-5_000:]}"
    return ran.stdout


def environment(folder: Path, *packages: object, python: object = sys.executable) -> Path:
    """Create a virtual environment of this Python with these packages, and return the path of its Python."""
    run(python, "-m", "venv", folder)
    run(folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", *packages)
    return folder / "bin/python"


@dataclass(frozen=True)
class Place:
    """A folder in which commands run, with the programs of an environment and these variables."""

    folder: Path
    python: Path
    variables: Mapping[str, str]

    def run(self, command: str) -> str:
        """Run a shell command, and return its output."""
        return run("bash", "-c", command, cwd=self.folder, **self._environment)

    @contextmanager
    def running(self, command: str) -> Iterator[Path]:
        """Run a command inside the block. Yield the file with its output. The command and its children end with the block."""
        said = self.folder / f"{command.split()[0]}.log"
        everything = {**os.environ, **self._environment}
        with said.open("w") as log:
            arguments = ["bash", "-c", f"exec {command}"]
            process = subprocess.Popen(arguments, cwd=self.folder, env=everything, stdout=log, stderr=log, start_new_session=True)
        try:
            yield said
            assert process.poll() is None, said.read_text()
        finally:
            process.terminate()
            try:
                process.wait(TIMEOUT)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    @property
    def _environment(self) -> dict[str, str]:
        return {"PATH": f"{self.python.parent}:{os.environ['PATH']}", "PYTHONPATH": ".", "PYTHONUNBUFFERED": "1", **self.variables}
