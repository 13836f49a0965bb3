"""Runs programs that need no separate interpreter in a fork of a process that has loaded taskflow, which takes a tenth of the time."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, Any, Final

ROOT: Final = Path(__file__).parents[2]

_one_at_a_time: Final = threading.Lock()
"""Some tests run programs from several threads, but one process answers all of them."""


def run_in_fork(program: str, folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run a program as `python -c` would in that folder. Return its exit code and its output."""
    with _one_at_a_time:
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps([program, str(folder), dict(environment)]) + "\n")
        server.stdin.flush()
        code, said = json.loads(server.stdout.readline())
    return int(code), str(said)


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.forks"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.communicate)
    return server


def main() -> None:
    """Answer requests, one per line, until there are no more."""
    import taskflow.app.sending
    import taskflow.broker.postgres
    import taskflow.broker.redis
    import taskflow.broker.sqlite  # noqa: F401 - loaded for the forks

    for line in sys.stdin:
        with tempfile.TemporaryFile() as said:
            if (pid := os.fork()) == 0:
                _become(said, *json.loads(line))
            _, status = os.waitpid(pid, 0)
            said.seek(0)
            print(json.dumps([os.waitstatus_to_exitcode(status), said.read().decode(errors="replace")]), flush=True)


def _become(said: IO[Any], program: str, folder: str, environment: dict[str, str]) -> None:
    """Run the program in this process, which then exits normally: it waits for threads and calls exit handlers."""
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for stream in (1, 2):
        os.dup2(said.fileno(), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = folder
    try:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    raise SystemExit(0)


if __name__ == "__main__":
    main()
