"""`taskflow retry --group`: one cause, in stages, with a worker process beside the command."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import cast

import pytest

import taskflow
from taskflow import Status
from taskflow.broker.admin import Redone
from taskflow.broker.protocol import Broker
from taskflow.broker.sqlite.broker import SqliteAdmin
from taskflow.cli.job_actions import AT_ONCE, MAX_CHECKED, Rollout
from taskflow.cli.parser import a_parser
from tests.cli.inprocess import Cli

MANY = 150

TASKS = """
import pathlib
from taskflow import Backoff, job

@job(max_attempts=2, retry=Backoff(base=0.0))
def work(number: int) -> None:
    mended = pathlib.Path("mended")
    if not mended.exists() or not begin_run(int(mended.read_text())):
        raise ValueError(f"no user {number}")

def begin_run(most: int) -> bool:
    with open("runs", "a") as runs:
        runs.write(".")
        return runs.tell() <= most

@job(max_attempts=1)
def other() -> None:
    raise OSError("disk full")
"""

IDLE = "taskflow: no worker is running: the jobs wait until one starts\n"


@pytest.fixture
def group(cli: Cli) -> str:
    """So many failed jobs of one cause, and one of another."""
    cli.write("tasks.py", TASKS)
    tasks = cli.load("tasks")
    taskflow.enqueue_sync([*(tasks.work.bind(number) for number in range(MANY)), tasks.other.bind()])
    cli("worker", "tasks", "--drain", "--log-level", "error", code=1)
    groups = cli.json("failures")
    assert [group["count"] for group in groups] == [MANY, 1]
    return str(groups[0]["id"])


@pytest.fixture
def worker(cli: Cli, group: str) -> Iterator[None]:
    command = [sys.executable, "-m", "taskflow", "worker", "tasks", "--concurrency", "1", "--grace", "0", "--log-level", "error"]
    with subprocess.Popen(command, cwd=cli.folder, stderr=subprocess.DEVNULL) as process:
        yield
        process.terminate()


def mend(cli: Cli, runs: int = 10_000) -> None:
    """From now on, so many runs succeed."""
    (cli.folder / "mended").write_text(str(runs))


def test_a_mended_group_is_retried_in_stages(cli: Cli, group: str, worker: None) -> None:
    mend(cli)
    said = cli("retry", "--group", group, "--canary", "1", "--then", "10,100,all", "--rate", "500")
    assert [line.split()[1] for line in said.out.splitlines()] == ["1", "11", "111", "150"]
    assert [found["count"] for found in cli.json("failures")] == [1]


def test_a_job_that_fails_again_stops_the_rest(cli: Cli, group: str, worker: None) -> None:
    """The eleventh does: the stage that it is in is the last one."""
    mend(cli, 10)
    said = cli("retry", "--group", group, "--canary", "1", "--then", "10,100,all", code=1)
    assert said.out == f"retried 1 of {MANY}: none has failed again\n"
    assert "failed again: ValueError: no user" in said.err or "failed again: builtins.ValueError: no user" in said.err
    assert said.err.endswith(f"; {MANY - 11} of {MANY} were left alone\n")
    assert sum(found["count"] for found in cli.json("failures")) >= MANY - 11 + 1


def test_without_a_worker_a_stage_is_given_up(cli: Cli, group: str) -> None:
    said = cli("retry", "--group", group, "--canary", "2", "--wait", "300ms", code=1)
    assert said.err.startswith(f"{IDLE}taskflow: stopped: 2 jobs have not ended within 0.3 s, for example ")
    assert len(cli.jobs("--status", "ready")) == 2


class _Idle:
    """A broker that retries every job, and whose workers are busy with others."""

    def __init__(self) -> None:
        self.admin, self.n_read = self, 0

    async def retry(self, ids: Sequence[bytes]) -> list[Redone]:
        return [Redone.OK] * len(ids)

    async def record_action(self, act: object) -> None: ...

    async def read(self, ids: Sequence[bytes]) -> list[object]:
        self.n_read += len(ids)
        return [argparse.Namespace(status=Status.READY, failures=0, crashes=0)] * len(ids)


async def test_jobs_that_wait_are_not_all_read_after_each_portion() -> None:
    broker, number = _Idle(), 10 * MAX_CHECKED
    arguments = a_parser().parse_args(["retry", "--group", "0" * 16, "--wait", "0"])
    stopped = await Rollout(cast("Broker", broker), arguments).run([index.to_bytes(16, "big") for index in range(number)])
    assert stopped is not None
    assert f"{number:,} jobs have not ended" in stopped
    assert broker.n_read <= (number / AT_ONCE + 2) * MAX_CHECKED


def test_ctrl_c_says_how_many_were_retried(cli: Cli, group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(rollout: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("taskflow.cli.job_actions.Rollout._until_ended", interrupted)
    said = cli("retry", "--group", group, "--canary", "3", code=130)
    assert said.err == f"{IDLE}taskflow: interrupted: retried 3; {MANY - 3} of {MANY} were left alone\n"


def test_jobs_that_cannot_be_retried_are_counted(cli: Cli, group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def retry(admin: object, ids: Sequence[bytes]) -> list[Redone]:
        return [Redone.KEY_TAKEN] * len(ids)

    monkeypatch.setattr(SqliteAdmin, "retry", retry)
    said = cli("retry", "--group", group, code=1)
    assert said.err == f"{IDLE}taskflow: {MANY} were not retried: another live job has its key\n"


@pytest.mark.parametrize(
    ("flags", "complaint", "code"),
    [
        (["--group", "0" * 16], "no failed job is in group 0000000000000000: `taskflow failures` lists the groups", 4),
        (["--group", "it"], "'it' is not a group, such as 71efb6587dea8408", 2),
        (["--canary", "1", "--all"], "--canary needs --group", 2),
        (["--group", "0" * 16, "--all"], "retry takes --group, ids or --all: leave out all but one", 2),
        (["--group", "0" * 16, "--status", "cancelled"], "retry --group takes no --status: its jobs have failed", 2),
        (["--group", "0" * 16, "--then", "ten"], "'ten' is not a whole number, 1 or more", 2),
    ],
)
def test_a_mistake_is_named(cli: Cli, flags: list[str], complaint: str, code: int) -> None:
    taskflow.configure(broker="sqlite:///queue.db")
    cli("resume", "default")
    assert complaint in cli("retry", *flags, code=code).err
