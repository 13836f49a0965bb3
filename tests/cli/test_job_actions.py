"""`taskflow retry | cancel | purge | pause | resume`: an operator's actions on a store."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

import taskflow
from taskflow.app import bulk_actions
from taskflow.app.bulk_actions import POSSIBLE
from taskflow.broker.protocol import Broker
from taskflow.cli.parser import STATUSES_FOR
from taskflow.model.envelope import Envelope, OnConflict
from taskflow.model.ids import IdFactory, id_text, key_digest
from taskflow.model.record import Status
from taskflow.model.session import Session
from tests.cli.inprocess import Cli
from tests.cli.stock import Stock
from tests.support.verdicts import failed

NOBODY = id_text(bytes(16))


def statuses(cli: Cli, *ids: str) -> list[Any]:
    records = cli.json("jobs", *ids) if all(ids) else []
    return [record and record["status"] for record in records]


def everything(cli: Cli) -> dict[str, str]:
    return {job["id"]: job["status"] for job in cli.jobs()}


# --- retry -----------------------------------------------------------------------------------------------------------


def test_retry_by_id_reports_each_job_that_it_cannot_retry(cli: Cli, stock: Stock) -> None:
    said = cli("retry", stock.failed, stock.succeeded, stock.running, code=1)
    assert said.out == "retried 1\n"
    assert said.err.splitlines() == [
        f"taskflow: {stock.succeeded} was not retried: it has succeeded",
        f"taskflow: {stock.running} was not retried: it has not ended yet",
    ]
    said = cli("retry", stock.poison, NOBODY, code=4)
    assert said.out == "retried 1\n"
    assert f"{NOBODY} was not retried: it is unknown" in said.err
    assert cli("retry", stock.cancelled, stock.cancelled).out == "retried 1\n"


def test_retry_reports_a_key_that_is_taken(cli: Cli) -> None:
    """In bulk too, the exit code is 1, since not everything requested is done."""
    job_id = cli.with_broker(_failed_with_its_key_taken)
    said = cli("retry", "--all", code=1)
    assert said.out.splitlines()[-1] == "retried 0"
    assert said.err == "taskflow: 1 were not retried: another live job has its key\n"
    assert re.search(r"another live job has its key: [0-9a-f-]{36} has k$", cli("retry", job_id, code=1).err, re.MULTILINE)


async def _failed_with_its_key_taken(broker: Broker) -> str:
    new_id, session = IdFactory(), Session(id=bytes(16), name="a worker")
    first, second = (Envelope(id=new_id(), job="work", payload=b"", key=key_digest("default", "work", "k"), key_text="k") for _ in range(2))
    await broker.register(session)
    await broker.enqueue([first])
    [lease] = await broker.claim(session.id, 1, [], 1)
    await broker.settle([failed(lease)])
    await broker.enqueue([second])
    return id_text(first.id)


# --- run-now ---------------------------------------------------------------------------------------------------------


def test_run_now_by_id_reports_each_job_that_it_cannot_run(cli: Cli, stock: Stock) -> None:
    told = {
        stock.ready[0]: "it is already ready",
        stock.running: "it is already running",
        stock.succeeded: "it has already succeeded",
        stock.cancelled: "it was already cancelled",
        **dict(zip(cli.with_broker(_held), ("it waits for other jobs", "it waits for the running job with its key"), strict=True)),
    }
    assert cli("run-now", *told, stock.scheduled, "--dry-run", code=1).out == "would make ready 1\n"
    said = cli("run-now", *told, stock.scheduled, code=1)
    assert said.out == "made ready 1\n"
    assert said.err.splitlines() == [f"taskflow: {job_id} was not made ready: {why}" for job_id, why in told.items()]
    shown = cli.json("run-now", *told, NOBODY, code=4)
    assert [job["answer"] for job in shown["jobs"]] == [*told.values(), "it is unknown or no longer kept"]


async def _held(broker: Broker) -> tuple[str, str]:
    """Add a job that awaits another, and one that waits for a running job with its key. Return their ids."""
    new_id, session = IdFactory(), Session(id=bytes(16), name="a worker")
    call = partial(Envelope, job="work", payload=b"", queue="keys")
    keyed = partial(call, key=key_digest("keys", "work", "k"), key_text="k")
    await broker.register(session)
    await broker.enqueue([keyed(id=new_id())])
    await broker.claim(session.id, 1, ["keys"], 1)
    held = call(id=new_id(), awaits=1), keyed(id=new_id(), on_conflict=OnConflict.REPLACE)
    await broker.enqueue(held)
    return id_text(held[0].id), id_text(held[1].id)


# --- purge -----------------------------------------------------------------------------------------------------------


def test_purge_by_id_drops_ended_jobs_and_refuses_others(cli: Cli, stock: Stock) -> None:
    given = (stock.failed, stock.succeeded, stock.scheduled, stock.running, NOBODY)
    assert cli("purge", *given, "--dry-run", code=4).out == "would purge 2\n"
    said = cli("purge", *given, code=4)
    assert said.out == "purged 2\n"
    assert f"{stock.scheduled} was not purged: it is scheduled: cancel it first\n" in said.err
    assert f"{stock.running} was not purged: it is running: cancel it first\n" in said.err
    assert f"{NOBODY} was not purged: it is unknown or no longer kept\n" in said.err
    assert set(stock.all) - set(everything(cli)) == {stock.failed, stock.succeeded}
    assert cli("purge", stock.poison, stock.running, code=1).out == "purged 1\n"


# --- what they have in common ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "would"),
    [
        (["retry", "--all"], 2),
        (["cancel", "--status", "ready", "--status", "scheduled"], 3),
        (["purge", "--all"], 4),
        (["purge", "--queue", "mail", "--status", "ready"], 2),
    ],
)
def test_a_dry_run_counts_and_changes_nothing(cli: Cli, stock: Stock, command: list[str], would: int) -> None:
    before = everything(cli)
    assert cli(*command, "--dry-run").out == f"would {command[0]} {would}\n"
    assert everything(cli) == before
    assert cli(*command).out.splitlines()[-1].split()[-1] == str(would)


def test_the_help_has_the_statuses_that_an_action_takes(cli: Cli) -> None:
    assert {action: frozenset(map(Status, statuses)) for action, statuses in STATUSES_FOR.items()} == POSSIBLE
    assert "--status {failed,cancelled}" in cli("retry", "--help").out


@pytest.mark.parametrize("command", ["retry", "run-now", "cancel", "purge"])
def test_a_queue_that_never_was_is_not_found(cli: Cli, stock: Stock, command: str) -> None:
    assert "queue 'mial' has never had a job; did you mean mail?" in cli(command, "--queue", "mial", code=4).err


def test_ids_and_filters_together_are_refused(cli: Cli, stock: Stock) -> None:
    for command, status in (("retry", "failed"), ("cancel", "ready")):
        for filters in (["--queue", "mail"], ["--job", "x"], ["--status", status], ["--ended-before", "1"], ["--poison"], ["--tag", "a"]):
            assert f"leave out {filters[0]}" in cli(command, stock.failed, *filters, code=2).err
        assert "leave out --all" in cli(command, stock.failed, "--all", code=2).err
    assert "is not a job id" in cli("cancel", "x", code=2).err


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["retry"], "retry needs to know which jobs: pass ids, filters or --all"),
        (["cancel"], "cancel needs to know which jobs: pass ids, filters or --all"),
        (["cancel", "--dry-run"], "cancel needs to know which jobs: pass ids, filters or --all"),
        (["purge"], "purge needs to know which jobs: pass ids, filters or --all"),
        (["purge", "--all", "--queue", "mail"], "purge takes filters or --all, not both: leave out --queue, or --all"),
    ],
)
def test_nothing_is_done_to_all_jobs_unasked(cli: Cli, stock: Stock, command: list[str], complaint: str) -> None:
    before = everything(cli)
    assert cli(*command, code=2).err == f"taskflow: {complaint}\n"
    assert everything(cli) == before


def test_a_command_does_all_of_its_work_if_nothing_reads_its_output(cli: Cli, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_actions, "PAGE", 1)
    cli.write("unrelated.py", "from taskflow import job\n@job(name='other')\ndef other(): pass\n")
    for code, command in ((1, ["check", "unrelated"]), (1, ["retry", stock.failed, stock.succeeded]), (0, ["cancel", "--all"])):
        reader, writer = os.pipe()
        os.close(reader)
        with monkeypatch.context() as patched, open(writer, "w") as unread:
            patched.setattr(sys, "stdout", unread)
            cli(*command, code=code)
    assert cli("cancel", "--all").out.splitlines()[-1].startswith("cancelled 0")


# --- pause, resume -----------------------------------------------------------------------------------------------------


def test_a_paused_queue_is_worked_again_once_it_is_resumed(cli: Cli, stock: Stock) -> None:
    assert cli("pause", "mail", "default").out == "paused mail\npaused default\n"
    assert {queue["name"]: queue["paused"] for queue in cli.json("queues")} == {"default": True, "mail": True}
    assert "mail (paused)" in cli("queues").out
    assert cli("resume", "mail").out == "resumed mail\n"
    assert {queue["name"]: queue["paused"] for queue in cli.json("queues")} == {"default": True, "mail": False}


def test_a_queue_may_be_paused_before_its_first_job(cli: Cli, stock: Stock) -> None:
    """The command says so all the same, because more often the name is mistyped."""
    said = cli("pause", "mial", "zzz")
    assert said.out == "paused mial, which has never had a job; did you mean mail?\npaused zzz, which has never had a job\n"
    assert said.err == ""


def test_a_job_may_be_paused_before_its_first_call(cli: Cli, stock: Stock) -> None:
    """As with a queue, the command says so."""
    said = cli("pause", "--job", "sedn")
    assert said.out == "paused job sedn\n"
    assert "no job called 'sedn' is in the store" in said.err
    assert said.err.endswith("; did you mean send?\n")
    assert cli("resume", "--job", "sedn").err == ""
    assert "no job called 'sedn' is in the store" in cli("resume", "--job", "sedn").err
    assert cli("pause", "--job", "send").err == ""


def test_a_pause_that_changes_nothing_is_not_recorded(cli: Cli, stock: Stock) -> None:
    assert (
        cli("resume", "default", "zzz", "mial").out == "default is not paused\nzzz is not paused\nmial is not paused; did you mean mail?\n"
    )
    cli("pause", "mail")
    assert cli("pause", "mail", "default", "default").out == "mail is paused already\npaused default\n"
    assert cli("pause", "mail").out == "mail is paused already\n"
    assert [(act["names"], act["affected"]) for act in cli.json("audit")] == [(["default"], 1), (["mail"], 1)]


# --- retry --group: one cause, in stages, with a worker process beside the command --------------------------------------


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
    """Add many failed jobs of one cause, and one of another."""
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
    """From now on, let this many runs succeed."""
    (cli.folder / "mended").write_text(str(runs))


def test_a_mended_group_is_retried_in_stages(cli: Cli, group: str, worker: None) -> None:
    mend(cli)
    said = cli("retry", "--group", group, "--canary", "1", "--then", "10,100,all", "--rate", "500")
    assert [line.split()[1] for line in said.out.splitlines()] == ["1", "11", "111", "150"]
    assert [found["count"] for found in cli.json("failures")] == [1]


def test_a_job_that_fails_again_stops_the_rest(cli: Cli, group: str, worker: None) -> None:
    """The eleventh job fails: its stage is the last one."""
    mend(cli, 10)
    said = cli("retry", "--group", group, "--canary", "1", "--then", "10,100,all", code=1)
    assert said.out == f"retried 1 of {MANY}: none has failed again\n"
    assert "failed again: ValueError: no user" in said.err or "failed again: builtins.ValueError: no user" in said.err
    assert said.err.endswith(f"; {MANY - 11} of {MANY} were not retried\n")
    assert sum(found["count"] for found in cli.json("failures")) >= MANY - 11 + 1


def test_without_a_worker_a_stage_is_given_up(cli: Cli, group: str) -> None:
    said = cli("retry", "--group", group, "--canary", "2", "--wait", "300ms", code=1)
    assert said.err.startswith(f"{IDLE}taskflow: stopped: 2 jobs have not ended within 0.3 s, for example ")
    assert len(cli.jobs("--status", "ready")) == 2


def test_ctrl_c_says_how_many_were_retried(cli: Cli, group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(rollout: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("taskflow.app.rollout.Rollout._until_ended", interrupted)
    said = cli("retry", "--group", group, "--canary", "3", code=130)
    assert said.err == f"{IDLE}taskflow: interrupted: retried 3; {MANY - 3} of {MANY} were not retried\n"


@pytest.mark.parametrize(
    ("flags", "complaint", "code"),
    [
        (["--group", "0" * 16], "no failed job is in group 0000000000000000: `taskflow failures` lists the groups", 4),
        (["--group", "it"], "'it' is not a valid group, such as 71efb6587dea8408: `taskflow failures` lists the groups", 2),
        (["--canary", "1", "--all"], "--canary needs --group", 2),
        (["--group", "0" * 16, "--all"], "retry takes --group, ids or --all: leave out all but one", 2),
        (["--group", "0" * 16, "--status", "cancelled"], "retry --group takes no --status: a group contains only failed jobs", 2),
        (["--group", "0" * 16, "--then", "ten"], "'ten' is not a whole number, 1 or more", 2),
    ],
)
def test_a_mistake_is_named(cli: Cli, flags: list[str], complaint: str, code: int) -> None:
    taskflow.configure(broker="sqlite:///queue.db")
    cli("resume", "default")
    assert complaint in cli("retry", *flags, code=code).err


def test_a_paused_job_is_reported_until_it_is_resumed(cli: Cli, stock: Stock) -> None:
    """Its pause is in the audit log, with the reason."""
    assert (
        cli("pause", "--job", "app.charge", "--job", "app.mail", "--reason", "down").out == "paused job app.charge\npaused job app.mail\n"
    )
    assert cli("pause", "--job", "app.charge").out == "job app.charge is paused already\n"
    assert cli.json("status")["paused_jobs"] == ["app.charge", "app.mail"]
    assert "job app.mail is paused: `taskflow resume --job app.mail` ends the pause" in cli("status").out
    assert cli.json("resume", "--job", "app.charge")["jobs"] == ["app.charge"]
    assert cli("resume", "--job", "app.charge").out == "job app.charge is not paused\n"
    assert [(act["action"], act["names"], act["reason"]) for act in cli.json("audit")] == [
        ("jobs.resume", ["app.charge"], ""),
        ("jobs.pause", ["app.charge", "app.mail"], "down"),
    ]
    assert "taskflow pause --job NAME" in cli("pause", code=2).err
