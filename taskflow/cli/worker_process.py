"""Starts a worker in another process, for commands that need one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from taskflow.cli.worker_options import PREFIX

# Appends the package's folder to sys.path, so that the package is found in a clone that is not installed.
_START: Final = "import sys; sys.path.append(sys.argv.pop(1)); from taskflow.cli.main import program; raise SystemExit(program())"


@contextmanager
def worker_process(url: str, *options: str, say: Callable[[str], object]) -> Iterator[subprocess.Popen[str]]:
    """Start a real worker process in an empty folder, so that a `queue.py` in the user's folder does not hide Python's own.

    `say` is called with each line that it logs, in another thread. The worker gets the URL by its environment, because other users can
    read command lines.
    """
    command = [sys.executable, "-P", "-c", _START, str(Path(__file__).parents[2]), "worker", "--log-level", "warning", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)} | {"TASKFLOW_BROKER": url}
    with (
        tempfile.TemporaryDirectory() as empty,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=empty, env=environment, text=True) as process,
    ):
        (reading := threading.Thread(target=_read, args=(process, say), daemon=True)).start()
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            reading.join(1)


def _read(process: subprocess.Popen[str], say: Callable[[str], object]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        say(line.rstrip("\n"))
