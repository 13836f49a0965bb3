"""`taskflow status | queues | workers`: the queues and workers of a store."""

from __future__ import annotations

import json
import re
import time

import pytest

from taskflow.broker.protocol import Broker
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory
from taskflow.model.session import Session
from tests.cli.inprocess import Cli
from tests.cli.stock import Stock
from tests.support.verdicts import parked

COUNTS_OF_DEFAULT = {"held": 0, "scheduled": 1, "ready": 0, "running": 1, "succeeded": 1, "failed": 2, "cancelled": 1}
COUNTS_OF_MAIL = {"held": 0, "scheduled": 0, "ready": 2, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 0}


def test_queues_tells_every_count(cli: Cli, stock: Stock) -> None:
    queues = {queue["name"]: queue for queue in cli.json("queues")}
    assert {name: queue["counts"] for name, queue in queues.items()} == {"default": COUNTS_OF_DEFAULT, "mail": COUNTS_OF_MAIL}
    assert queues["mail"]["oldest_ready_for"] >= 0
    assert 0 < queues["default"]["next_due_in"] <= 3600
    heading, *rows = cli("queues").out.splitlines()
    assert heading.split() == ["QUEUE", *(status.upper() for status in COUNTS_OF_DEFAULT), "OLDEST"]
    assert rows[0].split() == ["default", *map(str, COUNTS_OF_DEFAULT.values())]
    *cells, oldest = rows[1].split()
    assert cells == ["mail", *map(str, COUNTS_OF_MAIL.values())]
    assert re.fullmatch(r"\d+s", oldest)


def test_status_tells_broker_workers_queues_and_totals(cli: Cli, stock: Stock) -> None:
    told = cli.json("status")
    assert told["broker"] == "sqlite:///queue.db"
    assert [queue["name"] for queue in told["queues"]] == ["default", "mail"]
    [worker] = told["workers"]
    assert (worker["name"], worker["queues"], worker["concurrency"], worker["leases"], worker["dying"]) == (
        "somewhere:1",
        ["default"],
        7,
        1,
        False,
    )
    assert told["totals"]["mail"]["enqueue"] == 2
    text = cli("status").out
    assert "broker     sqlite:///queue.db" in text
    assert re.search(r"^workers    1\n  somewhere:1: 1/7 busy, heartbeat \ds ago$", text, re.MULTILINE)
    assert "mail" in text


def test_status_names_queues_that_no_worker_takes(cli: Cli, stock: Stock) -> None:
    """The only worker takes jobs from "default" alone."""
    assert cli("status").out.endswith("no running worker takes jobs from mail: start one with `taskflow worker MODULE`\n")
    cli("pause", "mail", "empty")
    assert "empty (paused)" in cli("status").out
    assert cli("status").out.endswith("mail is paused: `taskflow resume mail` ends the pause\n")


def test_status_gives_few_hints(cli: Cli) -> None:
    async def fill(broker: Broker) -> None:
        fresh = IdFactory()
        await broker.enqueue([Envelope(id=fresh(), job="j", queue=f"queue{number}", payload=b"") for number in range(8)])

    cli.with_broker(fill)
    *_, table, first, second, third, fourth, fifth, last = cli("status").out.splitlines()
    assert table.startswith("queue7")
    assert all(hint.startswith("no running worker takes jobs from queue") for hint in (first, second, third, fourth, fifth))
    assert last == "and 3 more hints about other queues and jobs"


def test_a_killed_worker_takes_no_jobs(cli: Cli) -> None:
    """As the only one, it is never declared dead. The queues stand in aligned columns."""

    async def fill(broker: Broker) -> None:
        fresh = IdFactory()
        await broker.enqueue([Envelope(id=fresh(), job="j", queue=queue, payload=b"") for queue in ("mail", "m" * 60)])
        await broker.register(Session(id=bytes(16), name="killed:1", ttl=1.0))

    cli.with_broker(fill)
    time.sleep(1.1)
    *_, heading, short, long, hint, _ = cli("status").out.splitlines()
    assert hint == "no running worker takes jobs from mail: start one with `taskflow worker MODULE`"
    assert re.split(" +", heading)[3] == "READY"
    assert {line.index(" 1 ") + 1 for line in (short, long)} == {heading.index("READY") + 4}


def test_parked_jobs_that_no_worker_knows_are_named(cli: Cli) -> None:
    """Only if each running worker has told which jobs it knows."""

    async def fill(broker: Broker) -> None:
        fresh = IdFactory()
        worker = Session(id=bytes(16), name="here:1", ttl=60.0, jobs=("known",))
        await broker.register(worker)
        await broker.enqueue([Envelope(id=fresh(), job=name, payload=b"") for name in ("gone", "gone", "known")])
        leases = await broker.claim(worker.id, 1, [], 3)
        await broker.settle([parked(lease, 30.0) for lease in leases])
        await broker.enqueue([Envelope(id=fresh(), job="later", payload=b"", after=60.0)])

    cli.with_broker(fill)
    assert cli.json("status")["unknown_jobs"] == {"gone": 2}
    assert cli("status").out.splitlines()[-1].endswith("deploy the code that sent it, or `taskflow cancel --job gone`")

    async def register_another(broker: Broker) -> None:
        await broker.register(Session(id=b"x" * 16, name="there:1", ttl=60.0))

    cli.with_broker(register_another)
    assert cli.json("status")["unknown_jobs"] == {}


def test_workers_are_listed(cli: Cli, stock: Stock) -> None:
    heading, line = cli("workers").out.splitlines()
    assert heading.split() == ["NAME", "BUSY", "HEARTBEAT", "UP", "JOBS", "DEPLOY", "QUEUES"]
    assert re.fullmatch(r"somewhere:1 +1/7 +\d+s ago +\d+s +\? +- +default", line)
    assert [worker["jobs"] for worker in cli.json("workers")] == [[]]


def test_a_running_worker_says_what_it_knows(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while it runs a job that looks."""
    monkeypatch.setenv("TASKFLOW_DEPLOY", "v17")
    cli.write("tasks.py", LOOKING)
    cli.load("tasks").look.delay_sync()
    cli("worker", "tasks", "--drain")
    [told] = json.loads((cli.folder / "told").read_text())
    assert (told["jobs"], told["deploy"], told["leases"]) == (["old.look", "tasks.look"], "v17", 1)


LOOKING = """
import subprocess, sys
from taskflow import job

@job(aliases=("old.look",))
def look() -> None:
    with open("told", "w") as told:
        subprocess.run([sys.executable, "-m", "taskflow", "workers", "--json"], stdout=told, check=True)
"""
