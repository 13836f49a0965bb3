"""`taskflow failures`: failed jobs by their cause."""

from __future__ import annotations

import json
import re

import pytest

import taskflow
from taskflow.broker.protocol import Broker
from taskflow.model.verdict import RunError
from tests.cli.inprocess import Cli, Said
from tests.cli.stock import failed_with

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
    """Three causes: 40 of one in two jobs, 7 of another, and a job that was poison."""

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
    assert [group["count"] for group in cli.json("failures", "--queue", "files")] == [7]
    assert [group["count"] for group in cli.json("failures", "--job", "send1")] == [20]
    assert [group["count"] for group in cli.json("failures", "--tag", "odd")] == [20]
    assert [group["count"] for group in cli.json("failures", "--ended-before", "0")] == [40, 7]
    assert cli("failures", "--ended-before", "1h") == Said(0, "", "no failed jobs match\n")
    assert "no job has ever been in queue 'flies'" in cli("failures", "--queue", "flies", code=4).err


def test_a_worker_stores_the_cause_and_its_deploy(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of jobs that fail for good, and not of those that run again."""
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
