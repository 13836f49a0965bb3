"""`taskflow failures | audit`: failed jobs by their cause, and what operators did."""

from __future__ import annotations

import getpass
import json
import re
import signal
import socket
from typing import Any

import pytest

import taskflow
from taskflow.app import bulk_actions
from taskflow.broker.protocol import Broker
from taskflow.broker.sqlite.broker import SqliteAdmin, SqliteBroker
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.record import Status
from taskflow.model.schedule_plan import SchedulePlan
from taskflow.model.timetable import EveryTimes
from taskflow.model.verdict import RunError
from tests.cli.inprocess import Cli, Said
from tests.cli.stock import Stock, failed_with

TASKS = """
from taskflow import Backoff, Discard, job

@job(max_attempts=2, retry=Backoff(base=0.0))
def work(number: int) -> None:
    raise ValueError(f"no user {number}")

@job
def unwanted() -> None:
    raise Discard("not wanted")
"""


@pytest.fixture
def many(cli: Cli) -> None:
    """Add failures of three causes: 40 of one in two jobs, 7 of another, and a job that was poison."""

    async def fail(broker: Broker) -> None:
        for number in range(40):
            deploy = ("a", "b", "c", "d", "")[number % 5]
            error = RunError("app.NoUser", f"no user {number}", "Traceback: line 1")
            await failed_with(broker, error, deploy, job=f"send{number % 2}", tags=("odd",) if number % 2 else ())
        for _ in range(7):
            await failed_with(broker, RunError("builtins.OSError", "disk full"), "a", job="save", queue="files")

    cli.with_broker(fail)


def test_groups_are_listed_with_the_largest_first(cli: Cli, many: None) -> None:
    users, disk = cli.json("failures")
    assert (users["count"], users["jobs"], users["error"]) == (40, {"send0": 20, "send1": 20}, "app.NoUser: no user 39")
    assert (disk["count"], disk["jobs"], disk["deploys"]) == (7, {"save": 7}, {"a": 7})
    assert users["deploys"] == dict.fromkeys("abcd", 8)
    assert users["first"] < users["last"] < disk["last"]
    [sample] = cli.json("jobs", users["sample"])
    assert (sample["reason"], sample["group"], sample["deploy"]) == (users["error"], users["id"], None)
    [sample] = cli.json("jobs", disk["sample"])
    assert (sample["group"], sample["deploy"]) == (disk["id"], "a")
    assert f"group            {disk['id']}\ndeploy           a\n" in cli("jobs", disk["sample"]).out
    lines = cli("failures").out.splitlines()
    assert re.split("  +", lines[0]) == ["GROUP", "COUNT", "FIRST AGO", "LAST AGO", "JOB"]
    group, count, _, _, *jobs = lines[1].split()
    assert (group, count, jobs) == (users["id"], "40", ["send0", "and", "1", "more"])
    assert lines[2] == "    app.NoUser: no user 39"
    assert (lines[4], lines[8]) == ("    deploys: a (8), b (8), c (8) and 1 more", "    deploys: a (7)")


def test_filters_choose(cli: Cli, many: None) -> None:
    assert [group["count"] for group in cli.json("failures", "--deploy", "a")] == [40, 7]
    assert [group["count"] for group in cli.json("failures", "--deploy", "b", "--tag", "odd")] == [20]
    assert cli.json("failures", "--deploy", "z") == []
    assert [group["count"] for group in cli.json("failures", "--queue", "files")] == [7]
    assert [group["count"] for group in cli.json("failures", "--job", "send1")] == [20]
    assert [group["count"] for group in cli.json("failures", "--tag", "odd")] == [20]
    assert [group["count"] for group in cli.json("failures", "--ended-before", "0")] == [40, 7]
    assert cli("failures", "--ended-before", "1h") == Said(0, "", "no failed jobs match\n")
    assert "queue 'flies' has never had a job" in cli("failures", "--queue", "flies", code=4).err


def test_a_worker_stores_the_cause_and_its_deploy(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so for jobs that fail for good, and not for those that run again."""
    cli.write("tasks.py", TASKS)
    tasks = cli.load("tasks")
    taskflow.enqueue_sync([*(tasks.work.bind(number) for number in range(3)), tasks.unwanted.bind()])
    monkeypatch.setenv("TASKFLOW_DEPLOY", "2026-11-28")
    cli("worker", "tasks", "--drain", "--log-level", "error", code=1)
    work, unwanted = cli.json("failures")
    assert (work["count"], work["deploys"], work["frame"].rpartition("/")[2]) == (3, {"2026-11-28": 3}, "tasks.py:work")
    assert (unwanted["error"], unwanted["deploys"], unwanted["frame"]) == ("not wanted", {"2026-11-28": 1}, "")


def test_a_filter_without_an_index_looks_at_the_newest_jobs(cli: Cli, many: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskflow.broker.paging.EXAMINED", 10)
    said = cli("failures", "--ended-before", "0", "--json")
    assert [group["count"] for group in json.loads(said.out)] == [7, 3]
    assert said.err == "taskflow: only the newest 10 failed jobs that match were counted\n"


def test_only_the_largest_groups_are_listed(cli: Cli, many: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskflow.cli.reports.MAX_GROUPS", 1)
    said = cli("failures", "--json")
    assert [group["count"] for group in json.loads(said.out)] == [40]
    assert said.err == "taskflow: only the 1 largest groups are listed\n"


# --- audit: each command that acts adds one entry -----------------------------------------------------------------------


ME = f"{getpass.getuser()}@{socket.gethostname()}"


def actions(cli: Cli) -> list[list[Any]]:
    """Return each action with its target, number and reason: the oldest first."""
    found = cli.json("audit")
    return [[act["action"], act["names"] or act["selection"], act["affected"], act["reason"]] for act in reversed(found)]


def test_each_act_is_recorded_with_its_target_its_count_and_its_reason(cli: Cli, stock: Stock) -> None:
    cli("retry", stock.failed, stock.poison, "--reason", "fixed in 1.2")
    cli("cancel", "--queue", "mail", "--status", "ready", "--by", "ada")
    cli("purge", "--all", "--yes")
    cli("pause", "mail", "default")
    cli("resume", "mail")

    assert actions(cli) == [
        ["retry", [stock.failed, stock.poison], 2, "fixed in 1.2"],
        ["cancel", {"queue": "mail", "status": "ready"}, 2, ""],
        ["purge", {"status": "cancelled, failed, succeeded"}, 4, ""],
        ["pause", ["mail", "default"], 2, ""],
        ["resume", ["mail"], 1, ""],
    ]
    assert [act["by"] for act in cli.json("audit")] == [ME, ME, ME, "ada", ME]
    assert [act["number"] for act in cli.json("audit", "--limit", "2", "--before", "3")] == [2, 1]
    assert cli.json("audit", "--before", str(10**30))[0]["number"] == 5


def test_commands_that_change_nothing_are_not_recorded(cli: Cli, stock: Stock) -> None:
    cli("retry", "--all", "--dry-run")
    cli("cancel", stock.failed, code=1)
    cli("purge", "--ended-before", "1d")
    cli("schedules", "pause", "nothing", code=4)
    cli("jobs", "--status", "failed")

    said = cli("audit")
    assert (said.out, said.err) == ("", "no operator has done anything yet\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_action_is_recorded_with_its_progress(
    cli: Cli, stock: Stock, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """It is interrupted by Ctrl-C, the end of a container or a closed terminal during the third batch of four."""
    cancelled = SqliteBroker.cancel
    batches: list[int] = []

    async def cancel(broker: SqliteBroker, ids: list[bytes]) -> list[Status | None]:
        batches.append(len(ids))
        if len(batches) == 3:
            signal.raise_signal(number)
        return await cancelled(broker, ids)

    monkeypatch.setattr(bulk_actions, "PAGE", 1)
    monkeypatch.setattr(SqliteBroker, "cancel", cancel)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    said = cli("cancel", "--all", "--reason", "too many", code=128 + number)
    assert said.err == "taskflow: interrupted: cancelled 2 of 4 or a few more\n"

    [act] = cli.json("audit")
    assert (act["affected"], act["stopped"], act["reason"]) == (2, "interrupted", "too many")


def test_an_action_aborted_by_the_store_is_recorded_with_its_progress(cli: Cli, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = SqliteAdmin.drop
    calls: list[int] = []

    async def drop(admin: SqliteAdmin, ids: list[bytes]) -> list[Status | None]:
        calls.append(1)
        if len(calls) == 3:
            raise BrokerUnavailable("the disk is away")
        return await dropped(admin, ids)

    monkeypatch.setattr(bulk_actions, "PAGE", 1)
    monkeypatch.setattr(SqliteAdmin, "drop", drop)
    said = cli("purge", "--all", code=3)

    [act] = cli.json("audit")
    assert said.err.startswith("taskflow: interrupted: purged 2 of 4 or a few more\n")
    assert (act["action"], act["affected"], act["stopped"]) == ("purge", 2, "BrokerUnavailable: the disk is away")


def test_a_person_confirms_the_removal_of_a_schedule(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script is not asked. A declined removal is not recorded."""
    template = Envelope(id=bytes(16), job="tick", payload=b"\x01")
    definition = SchedulePlan(times=EveryTimes(3600.0), template=template).to_definition("ticks")
    cli.with_broker(lambda broker: broker.define([definition]))
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setattr("sys.stdin.readline", lambda: "n\n")
    said = cli("schedules", "remove", "ticks", code=1)
    assert said.err == "remove ticks? [y/N] taskflow: nothing was changed\n"
    assert cli.json("audit") == []
    assert cli("schedules", "remove", "ticks", "--yes").out == "removed ticks\n"


# --- metrics -----------------------------------------------------------------------------------------------------------


def test_the_metrics_of_the_store_are_printed_as_prometheus_reads_them(cli: Cli) -> None:
    cli.with_broker(lambda broker: broker.enqueue([Envelope(id=bytes([n]) * 16, job="send", payload=b"", queue="mail") for n in (1, 2)]))
    lines = cli("metrics", "--prometheus").out.splitlines()
    assert 'taskflow_queue_jobs{queue="mail",status="ready"} 2.0' in lines
    assert 'taskflow_jobs_total{event="enqueue",queue="mail"} 2.0' in lines
    assert "taskflow_workers 0.0" in lines


def test_prometheus_and_json_exclude_each_other(cli: Cli) -> None:
    cli.with_broker(lambda broker: broker.enqueue([Envelope(id=bytes([1]) * 16, job="send", payload=b"")]))
    assert "--prometheus and --json cannot be combined" in cli("metrics", "--prometheus", "--json", code=2).err
