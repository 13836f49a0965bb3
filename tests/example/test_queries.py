"""The example on Flask, driven by HTTP, with workers in processes, on the file that taskflow takes by itself."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from taskflow import run_sync
from taskflow.app.app import default_app
from tests.cli.processes import TIMEOUT, Running, Shell
from tests.docs.pages import ROOT
from tests.example.queries.web import create_app

MODULES = ("tests.example.queries.tasks", "tests.example.queries.exports")


class Queries:
    """The application, in the test's process and folder, and workers beside it."""

    def __init__(self, http: FlaskClient, shell: Shell) -> None:
        self.http = http
        self._shell = shell

    def run(self, query: int, **form: str) -> str:
        return str(self.http.post(f"/queries/{query}/runs", data=form).get_json()["id"])

    def show(self, job_id: str) -> Any:
        return self.http.get(f"/runs/{job_id}").get_json()

    def until(self, job_id: str, *statuses: str) -> Any:
        give_up_at = time.monotonic() + TIMEOUT
        while (shown := self.show(job_id))["status"] not in statuses:
            assert time.monotonic() < give_up_at, shown
            time.sleep(0.02)
        return shown

    def worker(self, *flags: str) -> Running:
        return self._shell.taskflow("worker", *MODULES, "--queues", "queries:large=1,queries:small=4", "--concurrency", "1", *flags)


@pytest.fixture
def queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queries]:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("CREATE TABLE products (name TEXT, cents INTEGER)")
        connection.executemany("INSERT INTO products VALUES (?, ?)", [("pen", 120), ("ink", 480)])
    connection.close()
    app = default_app()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TASKFLOW_BROKER", raising=False)
    monkeypatch.setattr(app, "_settings", None)
    for state in ("_configured", "_flags", "_brokers", "_clients"):
        monkeypatch.setattr(app, state, {})
    with Shell(tmp_path) as shell:
        shell.environment["PYTHONPATH"] = str(ROOT)
        del shell.environment["TASKFLOW_BROKER"]
        yield Queries(create_app().test_client(), shell)
    run_sync(app.close())


def test_queries_are_answered_those_of_people_who_wait_first(queries: Queries) -> None:
    ids = [queries.run(1), queries.run(2, interactive="yes")]
    assert queries.worker("--drain").end() == 0
    report, asked = map(queries.show, ids)
    assert (report["status"], report["result"]) == ("succeeded", [["ink", 480], ["pen", 120]])
    assert asked["result"] == [[600]]
    assert asked["started_at"] < report["started_at"]


def test_a_query_that_fails_tells_why(queries: Queries) -> None:
    failed = queries.run(4)
    assert queries.worker("--drain").end() == 1
    shown = queries.show(failed)
    assert (shown["query"], shown["status"], shown["error"]) == (4, "failed", "no such table: orders")


def test_a_query_that_runs_is_shown_and_not_started_again_until_it_is_cancelled(queries: Queries) -> None:
    endless = queries.run(3)
    queries.worker()
    assert queries.until(endless, "running")["query"] == 3
    assert queries.http.get("/queries/3").get_json()["run"] == endless
    assert queries.run(3) == endless
    assert queries.http.delete(f"/runs/{endless}").status_code == 204
    assert queries.run(3) != endless
    assert queries.until(endless, "cancelled")["result"] is None


def test_an_export_is_sent_by_name_alone(queries: Queries, tmp_path: Path) -> None:
    """The web application cannot import its module."""
    file = tmp_path / "products.csv"
    sent = queries.http.post("/queries/1/exports", data={"file": str(file)}).get_json()
    assert MODULES[1] not in sys.modules
    assert queries.worker("--drain").end() == 0
    assert file.read_text() == "ink,480\npen,120\n"
    assert queries.show(sent["id"])["status"] == "succeeded"


def test_an_unknown_run_is_not_found(queries: Queries) -> None:
    assert queries.http.get("/runs/nonsense").status_code == 404
