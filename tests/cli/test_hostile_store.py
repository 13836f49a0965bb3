"""Stored text is escaped before it reaches the terminal or the log, and odd records stop no command."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from taskflow.broker.migrations import Migrating
from taskflow.cli.log_output import JsonLines, TextLines
from taskflow.model.envelope import ClaimId, Envelope, Lease
from taskflow.model.verdict import Cancelled, Discarded, Failed, Parked, Retried, RunError, Succeeded
from taskflow.worker.events import ChildPrinted, RunEnded, VerdictIgnored, VerdictRejected, VerdictsLost
from taskflow.worker.log import log_event
from tests.cli.hostile import HOSTILE, HostileBroker, HostileMigratingBroker, assert_safe
from tests.cli.inprocess import Cli
from tests.cli.json_output import check

# By their exit codes.
COMMANDS = {
    0: (
        *(
            "status",
            "status --json",
            "queues",
            "queues --json",
            "workers --json",
            "metrics",
            "metrics --json",
            "audit",
            "audit --json",
            "limits",
            "limits --json",
        ),
        *("jobs", "jobs --json", "jobs --limit 1", "failures", "failures --json", "schedules", "schedules --json", "schedules list odd"),
        *("cancel --all", "purge --all", "resume default", "resume default --json", "migrate", "migrate --json", "migrate --plan"),
    ),
    1: (
        *("retry --all", "retry --all --json", "doctor", "doctor --json"),
        *("schedules pause endless", "schedules trigger endless", "schedules trigger endless --json"),
    ),
    3: ("pause default",),
    4: ("jobs --queue other",),
}


@pytest.fixture
def broker(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> HostileBroker:
    broker = HostileMigratingBroker()
    assert isinstance(broker, Migrating)
    monkeypatch.setenv("TASKFLOW_BROKER", "memory://")
    monkeypatch.setattr("taskflow.app.app.connect", lambda url: broker)
    return broker


@pytest.mark.parametrize(("line", "code"), [(line, code) for code, lines in COMMANDS.items() for line in lines])
def test_no_command_prints_stored_text_as_it_stands(cli: Cli, broker: HostileBroker, line: str, code: int) -> None:
    command = line.split()
    said = cli(*command, code=code)
    assert_safe(said.out, said.err)
    assert "Traceback" not in said.err
    if "--json" in command and said.out:
        check(command, json.loads(said.out, parse_constant=pytest.fail))


def test_jobs_by_id_are_shown_safely(cli: Cli, broker: HostileBroker) -> None:
    for record in broker.records[1:]:
        said = cli("jobs", f"{record.id.hex()}")
        assert "all is well" in said.out
        assert_safe(said.out, said.err)
        assert_safe(cli("explain", f"{record.id.hex()}").out)


def test_json_keeps_stored_text_exactly(cli: Cli, broker: HostileBroker) -> None:
    [odd, *jobs] = cli.jobs()
    assert all((job["reason"], job["headers"]) == (HOSTILE, {**job["headers"], HOSTILE: HOSTILE}) for job in jobs)
    assert odd["unreadable"][0] == {"column": HOSTILE, "problem": HOSTILE, "bytes": b"\x1b[2J\n".hex()}
    assert odd["due_at"].startswith("9999-12-31T23:59:59")


@pytest.mark.parametrize("command", ["retry", "cancel", "purge"])
def test_acting_on_all_goes_past_an_unreadable_job(cli: Cli, broker: HostileBroker, command: str) -> None:
    cli(command, "--all", code=1 if command == "retry" else 0)
    assert sorted(broker.acted_on) == sorted(record.id for record in broker.records)


def test_an_unreadable_job_is_shown_with_its_columns_and_bytes(cli: Cli, broker: HostileBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = broker.records[0]
    monkeypatch.setattr("taskflow.cli.jobs.ids_of", lambda texts: [odd.id])
    said = cli("jobs", "it")
    assert f"its bytes begin with {odd.unreadable[0].raw.hex()}" in said.out
    assert "headers: TypeError: expected bytes" in said.out
    assert f"id               {odd.id.hex()}" in said.out
    assert_safe(said.out)


TASKS = """
import logging
from taskflow import Backoff, Cancel, Discard, job
from tests.cli.hostile import HOSTILE

log = logging.getLogger("shop" + HOSTILE)

@job(max_attempts=1)
async def fail() -> None:
    raise type(HOSTILE.replace("\\0", ""), (ValueError,), {})(HOSTILE)

@job(max_attempts=2, retry=Backoff(base=0.001))
async def fail_twice() -> None:
    raise ValueError(HOSTILE)

@job
async def discard() -> None:
    raise Discard(HOSTILE)

@job
async def cancel() -> None:
    raise Cancel(HOSTILE)

@job
async def tell() -> None:
    log.warning(HOSTILE)
    log.warning("%s", HOSTILE, stack_info=True)
    try:
        raise OSError(HOSTILE)
    except OSError:
        log.exception("with its error")

@job(runs_in="process", max_attempts=1)
def tell_apart() -> None:
    print(HOSTILE.encode(errors="replace").decode())
    raise OSError(HOSTILE)
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_text_of_a_job_reaches_the_workers_log_as_it_stands(cli: Cli, form: str) -> None:
    cli.write("tasks.py", TASKS)
    tasks = cli.load("tasks")
    for job in (tasks.fail, tasks.fail_twice, tasks.discard, tasks.cancel, tasks.tell, tasks.tell_apart):
        job.delay_sync()
    said = cli("worker", "tasks", "--drain", "--log-level", "debug", "--log-format", form, code=1)
    assert_safe(said.out, said.err)
    assert said.err.count("all is well") >= 8
    if form == "json":
        lines: list[dict[str, Any]] = [json.loads(line) for line in said.err.splitlines()]
        assert any(line["message"] == HOSTILE for line in lines)


def test_a_module_that_cannot_be_imported_is_shown_safely(cli: Cli) -> None:
    cli.write("tasks.py", "from tests.cli.hostile import HOSTILE\nraise ValueError(HOSTILE)\n")
    said = cli("worker", "tasks", code=2)
    assert "all is well" in said.err
    assert_safe(said.out, said.err)


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def no_notes(error: Exception) -> list[str]:
    raise RuntimeError("no notes")


Unformattable = type("Unformattable", (Exception,), {"__notes__": property(no_notes)})


@pytest.mark.parametrize("formatter", [TextLines(), JsonLines()])
@pytest.mark.parametrize("kind", [Mute, Unformattable])
def test_an_error_that_cannot_be_formatted_is_still_logged(formatter: logging.Formatter, kind: type[Exception]) -> None:
    try:
        raise kind("x")
    except kind as error:
        record = logging.LogRecord("shop", logging.ERROR, "shop.py", 1, "%s, %s", (error,), (kind, error, error.__traceback__))
    shown = formatter.format(record)
    assert "and its arguments do not fit" in shown or "a message that cannot be shown" in shown
    assert "raise kind(" in shown


ERROR = RunError(HOSTILE, HOSTILE, "")
VERDICTS = [Failed(ERROR), Retried(ERROR, 1.0), Discarded(HOSTILE), Cancelled(HOSTILE), Parked(HOSTILE, 5.0)]


def test_a_workers_messages_are_safe_in_the_log_of_an_application(caplog: pytest.LogCaptureFixture) -> None:
    """The application's formatter may write a message unescaped."""
    lease = Lease(
        envelope=Envelope(id=bytes(16), job=HOSTILE, queue=HOSTILE, payload=b""), epoch=1, claim=ClaimId(bytes(16), 1, 0), created_at=0
    )
    with caplog.at_level(logging.DEBUG, "taskflow.worker"):
        for verdict in VERDICTS:
            log_event(RunEnded(lease, verdict, 0.1))
            log_event(VerdictIgnored(lease, verdict))
        log_event(ChildPrinted(lease, 1, "stdout", HOSTILE))
        log_event(ChildPrinted(None, 1, "stdout", HOSTILE))
        log_event(VerdictRejected(lease, Succeeded(b""), Failed(ERROR)))
        log_event(VerdictsLost((lease,), HOSTILE))
    assert len(caplog.messages) == 2 * len(VERDICTS) + 4
    assert_safe(*caplog.messages)
    assert not any("\n" in message for message in caplog.messages)
