"""`taskflow send JOB`: sends one job by its name, for operators."""

from __future__ import annotations

import io
from typing import Any

import pytest

from taskflow.model.session import Session
from tests.cli.inprocess import Cli

TASKS = """
    from dataclasses import dataclass
    from datetime import date
    from taskflow import job

    @dataclass
    class Order:
        number: int

    ran = []

    @job(queue="payments")
    def charge(order: Order, on: date, note: str = "") -> None:
        ran.append((order, on, note))
"""
ARGS = '{"order": {"number": 7}, "on": "2026-11-28"}'


@pytest.fixture
def tasks(cli: Cli) -> Any:
    """The jobs' module, which the command has not imported."""
    cli.write("tasks.py", TASKS)
    return lambda: cli.load("tasks")


@pytest.mark.parametrize(("options", "queue"), [((), "default"), (("--module", "tasks"), "payments")])
def test_json_arguments_arrive_as_annotated_whether_or_not_the_job_is_known_here(cli: Cli, tasks: Any, options: Any, queue: str) -> None:
    job_id = cli("send", "tasks.charge", "--args", ARGS, *options).out.strip()
    [job] = cli.json("jobs", job_id)
    assert (job["job"], job["queue"], job["arguments"]["on"]) == ("tasks.charge", queue, "2026-11-28")
    cli("worker", "tasks", "--drain")
    module = tasks()
    assert [(order, str(on), note) for order, on, note in module.ran] == [(module.Order(7), "2026-11-28", "")]


def test_options_say_where_and_when_and_a_key_is_sent_once(cli: Cli) -> None:
    sent = cli.json("send", "charge", "--queue", "slow", "--after", "2h", "--key", "order:7")
    assert sent == {"id": sent["id"], "job": "charge", "new": True}
    [job] = cli.jobs()
    assert (job["id"], job["queue"], job["status"], job["key"]) == (sent["id"], "slow", "scheduled", "order:7")
    again = cli("send", "charge", "--queue", "slow", "--key", "order:7")
    assert again.out == f"{sent['id']}\n"
    assert again.err == f"taskflow: nothing was sent: live job {sent['id']} has the key order:7\n"
    assert cli.json("send", "charge", "--queue", "slow", "--key", "order:7") == {"id": sent["id"], "job": "charge", "new": False}


def test_the_audit_log_names_the_job_that_was_sent_and_who_sent_it(cli: Cli) -> None:
    sent = cli.json("send", "charge", "--key", "k", "--by", "ada", "--reason", "order 7 was lost")
    cli("send", "charge", "--key", "k")
    [act] = cli.json("audit")
    assert (act["action"], act["names"], act["selection"], act["affected"]) == ("send", [sent["id"]], {"job": "charge"}, 1)
    assert (act["by"], act["reason"]) == ("ada", "order 7 was lost")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["charge", "--args", "{x: 1}"], "--args is not JSON: Expecting property name"),
        (["charge", "--args", "[" * 100_000], "--args is not JSON: "),
        (["charge", "--args", "[1, 2]"], '--args: expected a JSON object with parameter names, such as {"x": 1}, got [1, 2]'),
        (["charge", "--args", '{"x": NaN}'], "--args: is not JSON: "),
        (["charge", "--queue", "two words"], "queue 'two words'"),
        (["charge", "--after", "soon"], "--after: 'soon' is not a number of seconds"),
        (["charge", "--key", "k" * 201], "200"),
        ([""], "job name ''"),
        (["tasks.charge", "--module", "tasks"], "--args: order: is a required argument and was not given"),
        (
            ["tasks.charge", "--module", "tasks", "--args", '{"order": {"number": "x"}, "on": "2026-11-28"}'],
            "--args: order.number: expected",
        ),
        (["tasks.charge", "--module", "tasks", "--args", '{"orders": 7}'], "--args: orders: tasks.charge has no such parameter"),
        (["tasks.chrage", "--module", "tasks"], "tasks: no job named tasks.chrage; did you mean tasks.charge?"),
        (["tasks.charge", "--module", "nowhere"], "found no module 'nowhere'"),
    ],
)
def test_wrong_arguments_are_said_and_nothing_is_sent(cli: Cli, tasks: Any, arguments: list[str], complaint: str) -> None:
    said = cli("send", *arguments, code=2)
    assert complaint in said.err
    assert said.out == ""
    assert not (cli.folder / "queue.db").exists()


def test_arguments_are_read_from_stdin_so_that_no_command_line_shows_them(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"user": "ada"}'))
    job_id = cli("send", "charge", "--args", "-").out.strip()
    assert cli.json("jobs", job_id)[0]["arguments"] == {"user": "ada"}


def test_a_name_that_no_running_worker_knows_is_sent_with_a_warning(cli: Cli) -> None:
    cli.with_broker(lambda broker: broker.register(Session(id=b"s" * 16, name="one", jobs=("tasks.charge",))))
    said = cli("send", "tasks.chrage")
    assert said.err == "taskflow: no running worker knows tasks.chrage; did you mean tasks.charge?\n"
    assert cli("send", "tasks.charge").err == ""
    assert len(cli.jobs()) == 2
