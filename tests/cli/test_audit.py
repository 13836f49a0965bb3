"""The audit log: each command that acts adds one entry, and `taskflow audit` lists them."""

from __future__ import annotations

import getpass
import signal
import socket
from typing import Any

import pytest

from taskflow.app import bulk_actions
from taskflow.broker.sqlite.broker import SqliteAdmin, SqliteBroker
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.record import Status
from taskflow.model.schedule_plan import SchedulePlan
from taskflow.model.timetable import EveryTimes
from tests.cli.inprocess import Cli
from tests.cli.stock import Stock

ME = f"{getpass.getuser()}@{socket.gethostname()}"


def actions(cli: Cli) -> list[list[Any]]:
    """What was done, to what, to how many and why: the oldest first."""
    found = cli.json("audit")
    return [[act["act"], act["names"] or act["selection"], act["affected"], act["reason"]] for act in reversed(found)]


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


def test_what_changes_nothing_is_not_recorded(cli: Cli, stock: Stock) -> None:
    cli("retry", "--all", "--dry-run")
    cli("cancel", stock.failed, code=1)
    cli("purge", "--ended-before", "1d")
    cli("schedules", "pause", "nothing", code=4)
    cli("jobs", "--status", "failed")

    said = cli("audit")
    assert (said.out, said.err) == ("", "no action of an operator is recorded\n")


def test_acts_on_schedules_are_recorded(cli: Cli, stock: Stock) -> None:
    template = Envelope(id=bytes(16), job="tick", payload=b"\x01")
    definition = SchedulePlan(times=EveryTimes(3600.0), template=template).to_definition("ticks")
    cli.with_broker(lambda broker: broker.define([definition]))
    for action in ("trigger", "pause", "resume"):
        cli("schedules", action, "ticks", "--reason", "try")
    cli("schedules", "backfill", "ticks", "--from", "2026-01-01T00:00Z", "--to", "2026-01-01T05:00Z", "--by", "ada")
    cli("schedules", "backfill", "ticks", "--from", "2026-01-01T00:00Z", "--to", "2026-01-01T05:00Z")  # all known
    cli("schedules", "remove", "ticks")

    found = list(reversed(cli.json("audit")))
    assert [(act["act"], act["names"], act["affected"]) for act in found] == [
        (f"schedules.{action}", ["ticks"], count)
        for action, count in (("trigger", 1), ("pause", 1), ("resume", 1), ("backfill", 5), ("remove", 1))
    ]
    assert found[3]["selection"] == {"from": "2026-01-01T00:00:00+00:00", "to": "2026-01-01T05:00:00+00:00"}
    assert (found[0]["reason"], found[3]["by"]) == ("try", "ada")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_act_that_is_interrupted_is_recorded_with_what_was_done(
    cli: Cli, stock: Stock, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """By Ctrl-C, the end of a container or a closed terminal during the third batch of four."""
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


def test_an_act_that_the_store_breaks_off_is_recorded_with_what_was_done(cli: Cli, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert (act["act"], act["affected"], act["stopped"]) == ("purge", 2, "BrokerUnavailable: the disk is away")


def test_the_list_fits_eighty_columns(cli: Cli, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("cancel", *stock.ready, "--reason", "wrong customer")
    cli("purge", "--tag", "tenant:" + "7" * 90, "--status", "ready", "--yes")
    cli("pause", *[f"a-queue-with-a-long-name-{number}" for number in range(20)])
    pause, *_ = cli.json("audit")
    assert (pause["named"], len(pause["names"])) == (20, 10)

    lines = cli("audit").out.splitlines()
    assert lines[0] == "   AGO  ACT         COUNT  BY, WHAT"
    assert lines[1].endswith("a-queue-with-a-long-name-9 and 10 more")
    assert lines[2].split()[1:4] == ["cancel", "2", f"{ME}:"]
    assert lines[3] == "    reason: wrong customer"
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert max(map(len, cli("audit").out.splitlines())) <= 80
    assert cli("audit", "--limit", "1").err == f"there may be more: --before {pause['number']}\n"


def test_a_person_confirms_the_removal_of_a_schedule(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script is not asked. What is declined is not recorded."""
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
