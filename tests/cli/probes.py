"""A worker with a health port, and its answers."""

from __future__ import annotations

import http.client
import json
import re
import time
from typing import Any, NamedTuple

from tests.cli.processes import JOBS, TIMEOUT, Running, Shell


class Interrupted(NamedTuple):
    status: int
    body: Any
    headers: dict[str, str]


def ask(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> Interrupted:
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
        return Interrupted(answer.status, json.loads(body) if body else None, {name.lower(): value for name, value in answer.getheaders()})
    finally:
        connection.close()


def ask_until(port: int, path: str, status: int) -> Interrupted:
    give_up_at = time.monotonic() + TIMEOUT
    while (told := ask(port, path)).status != status:
        assert time.monotonic() < give_up_at, told
        time.sleep(0.05)
    return told


def a_worker(shell: Shell, *arguments: str) -> tuple[Running, int]:
    """Return the worker, and the port of its health checks."""
    shell.write("tasks.py", JOBS)
    worker = shell.worker("--health-port", "0", *arguments)
    found = re.search(r"health: http://127\.0\.0\.1:(\d+)/live and /ready", worker.said)
    assert found, worker.said
    return worker, int(found[1])
