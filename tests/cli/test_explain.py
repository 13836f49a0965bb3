"""`taskflow explain`: the reasons for the state of jobs."""

from __future__ import annotations

from datetime import datetime

import pytest

from taskflow.broker.admin import Admin
from taskflow.cli.explain import Facts, _shortened
from taskflow.model.ids import id_text
from taskflow.model.record import Record, Status
from tests.cli.inprocess import Cli
from tests.cli.stock import Stock


def test_facts_are_asked_for_once_for_all_jobs_of_a_queue(cli: Cli, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking takes a second if other jobs are ready."""
    asked = []

    async def facts_of(admin: Admin, record: Record, now: datetime) -> Facts:
        asked.append((record.queue, record.status))
        return Facts(now=now)

    monkeypatch.setattr("taskflow.cli.explain.facts_of", facts_of)
    told = cli.json("explain", *stock.all)
    assert len(told) == len(stock.all)
    assert asked.count(("mail", Status.READY)) == 1


def test_a_job_is_explained(cli: Cli, stock: Stock) -> None:
    nobody = id_text(bytes(16))
    said = cli("explain", stock.failed, stock.ready[0], nobody, code=4)
    assert (
        f"{stock.failed}  failed  bad  (queue default)\n1. its last attempt, 1 of 2, failed: builtins.ValueError: no such user\n"
        in said.out
    )
    assert "1. worker somewhere:1 does not take queue mail\n   -> start one with `--queues mail`\n" in said.out
    assert nobody in said.err
    [failed, none] = cli.json("explain", stock.failed, nobody, code=4)
    assert failed["reasons"][0]["cure"] == f"when the cause is fixed: `taskflow retry {stock.failed}`"
    assert none is None


def test_an_explanation_is_wrapped_on_a_terminal(cli: Cli, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines break between words, and a command to copy stays in one line."""
    lines = cli("explain", stock.failed).out.splitlines()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli("explain", stock.failed).out.splitlines() == [
        f"{stock.failed}  failed",
        "    bad  (queue default)",
        "1. its last attempt, 1 of 2, failed: builtins.ValueError: no",
        "   such user",
        "   -> when the cause is fixed:",
        f"      `taskflow retry {stock.failed}`",
    ]
    monkeypatch.setenv("COLUMNS", "120")
    assert cli("explain", stock.failed).out.splitlines() == lines


def test_the_cause_is_explained_briefly() -> None:
    assert _shortened("IntegrityError: no\nuser") == "IntegrityError: no\n    user"
    assert _shortened("1\n2\n3\n4\n5\n6") == "1\n    2\n    3\n    4\n    5..."
    assert len(_shortened("x" * 5_000)) < 1_100
