"""A module that sends jobs while a worker imports it sends them again with every worker: the log says so."""

from __future__ import annotations

import pytest

from tests.cli.inprocess import Cli

JOBS = """
import asyncio
from taskflow import enqueue_sync, job

ran = []

@job
def note(n: int) -> None:
    ran.append(n)

@job
async def other(n: int) -> None:
    ran.append(n)
"""


@pytest.mark.parametrize(
    "sends",
    [
        "note.delay_sync(1)",
        "enqueue_sync(note.bind(n) for n in range(3))",
        "asyncio.run(note.delay(1))",
        "note.delay_sync(1); other.delay_sync(2)",
    ],
)
def test_a_module_that_sends_while_it_is_imported_is_warned_of_once(cli: Cli, sends: str) -> None:
    cli.write("tasks.py", f"{JOBS}\n{sends}\n")
    said = cli("worker", "tasks", "--drain")
    assert said.err.count("tasks sends tasks.note when it is imported, so every worker that imports the module sends the job again") == 1
    assert said.err.count("when it is imported") == 1


def test_a_module_that_only_binds_or_sends_when_asked_is_not_warned_of(cli: Cli) -> None:
    cli.write(
        "tasks.py",
        f"{JOBS}\ncall = note.bind(1)\nif __name__ == '__main__':\n    note.delay_sync(1)\n\ndef go() -> None:\n    note.delay_sync(1)\n",
    )
    cli.load("tasks").go()
    assert "when it is imported" not in cli("worker", "tasks", "--drain").err
