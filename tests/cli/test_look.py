"""`taskflow status | queues | jobs`: what stands in the store."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from taskflow.broker.protocol import Broker
from taskflow.model.envelope import Envelope
from taskflow.model.ids import id_text
from taskflow.model.rules import Rules
from taskflow.model.session import Session
from tests.cli.inprocess import Cli
from tests.cli.stock import ERROR, SECRET_ARGUMENTS, Stock
from tests.support.verdicts import handed_back

COUNTS_OF_DEFAULT = {"held": 0, "scheduled": 1, "ready": 0, "running": 1, "succeeded": 1, "failed": 2, "cancelled": 1}
COUNTS_OF_MAIL = {"held": 0, "scheduled": 0, "ready": 2, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 0}


def ids(jobs: list[dict[str, str]]) -> list[str]:
    return [job["id"] for job in jobs]


def test_queues_tells_every_count(cli: Cli, stock: Stock) -> None:
    queues = {queue["name"]: queue for queue in cli.json("queues")}
    assert {name: queue["counts"] for name, queue in queues.items()} == {"default": COUNTS_OF_DEFAULT, "mail": COUNTS_OF_MAIL}
    assert queues["mail"]["oldest_ready_for"] >= 0
    assert 0 < queues["default"]["next_due_in"] <= 3600
    heading, *rows = cli("queues").out.splitlines()
    assert heading.split() == ["queue", *COUNTS_OF_DEFAULT]
    assert [row.split() for row in rows] == [
        ["default", *map(str, COUNTS_OF_DEFAULT.values())],
        ["mail", *map(str, COUNTS_OF_MAIL.values())],
    ]


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
    assert "broker   sqlite:///queue.db" in text
    assert "workers  1\n  somewhere:1: 1 leased" in text
    assert "mail" in text


@pytest.mark.parametrize("command", [["status"], ["status", "--json"], ["schedules"], ["queues"], ["jobs"], ["jobs", id_text(bytes(16))]])
def test_to_look_makes_no_file(cli: Cli, command: list[str]) -> None:
    """It is said that there is none: more often the command is given in another folder than the worker's."""
    said = cli(*command, code=3)
    assert said.err.startswith(f"taskflow: {cli.folder}/queue.db does not exist: ")
    assert said.out == ""
    assert list(cli.folder.iterdir()) == []


def test_an_empty_store_has_nothing_to_tell(cli: Cli) -> None:
    cli("resume", "default")
    assert cli.json("queues") == cli.json("jobs") == []
    assert cli.json("status")["workers"] == []
    assert cli("jobs").out == ""


def test_jobs_are_listed_the_newest_first(cli: Cli, stock: Stock) -> None:
    assert ids(cli.json("jobs")) == stock.all
    lines = cli("jobs").out.splitlines()
    assert [line.split()[0] for line in lines] == stock.all
    assert next(line for line in lines if stock.cancelled in line).split(maxsplit=4)[1:] == [
        "cancelled",
        "default",
        "bad",
        "no longer needed",
    ]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["--queue", "mail"], lambda stock: stock.ready),
        (["--job", "bad"], lambda stock: [stock.failed, stock.poison, stock.cancelled]),
        (["--status", "failed"], lambda stock: [stock.failed, stock.poison]),
        (["--status", "running", "--status", "scheduled"], lambda stock: [stock.running, stock.scheduled]),
        (["--poison"], lambda stock: [stock.poison]),
        (["--ended-before", "0"], lambda stock: [stock.succeeded, stock.failed, stock.poison, stock.cancelled]),
        (["--ended-before", "3600"], lambda stock: []),
        (["--queue", "default", "--job", "good", "--status", "succeeded"], lambda stock: [stock.succeeded]),
        (["--job", "unheard-of"], lambda stock: []),
    ],
)
def test_jobs_are_filtered(cli: Cli, stock: Stock, filters: list[str], expected: Callable[[Stock], list[str]]) -> None:
    assert ids(cli.json("jobs", *filters)) == sorted(expected(stock), reverse=True)


def test_jobs_are_paged(cli: Cli, stock: Stock) -> None:
    """The hint under a full page is the next page's own option."""
    said = cli("jobs", "--limit", "3")
    found = [line.split()[0] for line in said.out.splitlines()]
    assert said.err == f"there may be more: --before {found[-1]}\n"
    while said.err:
        said = cli("jobs", "--limit", "3", "--before", said.err.split()[-1])
        found += [line.split()[0] for line in said.out.splitlines()]
    assert found == stock.all


def test_jobs_given_by_id_are_shown_with_their_errors(cli: Cli, stock: Stock) -> None:
    failed, running = cli.json("jobs", stock.failed, stock.running)
    assert (failed["id"], failed["status"], failed["failures"], failed["max_attempts"]) == (stock.failed, "failed", 2, 2)
    assert [error["message"] for error in failed["errors"]] == [ERROR.message, ERROR.message]
    assert (running["status"], running["worker"], running["headers"]) == ("running", "somewhere:1", {"from": "web"})
    text = cli("jobs", stock.failed).out
    assert ERROR.traceback in text
    assert f"id               {stock.failed}\n" in text


def test_a_job_that_is_handed_back_often_says_so(cli: Cli) -> None:
    """In its line of the list, and among its details."""
    cli.with_broker(_hand_back, Rules(hand_back_backoff=(0.0, 60.0)))
    [line] = cli("jobs").out.splitlines()
    assert line.split(maxsplit=4)[1:] == ["scheduled", "default", "long", "a back-off: handed back 2 times without an outcome"]
    assert "waiting_for      a back-off: handed back 2 times without an outcome\n" in cli("jobs", line.split()[0]).out


async def _hand_back(broker: Broker) -> None:
    session = Session(id=bytes(16), name="somewhere:2")
    await broker.register(session)
    await broker.enqueue([Envelope(id=bytes(16), job="long", payload=b"")])
    for request in (1, 2):
        [lease] = await broker.claim(session.id, request, ["default"], 1)
        await broker.settle([handed_back(lease)])


def test_neither_arguments_nor_results_are_shown(cli: Cli, stock: Stock) -> None:
    """They may hold what a screen must not."""
    for said in (cli("jobs", *stock.all), cli("jobs", *stock.all, "--json"), cli("jobs"), cli("jobs", "--json"), cli("status", "--json")):
        assert SECRET_ARGUMENTS[1:].decode() not in said.out
        assert "payload" not in said.out
        assert "result" not in said.out


def test_an_unknown_job_is_not_found(cli: Cli, stock: Stock) -> None:
    """Those that are known are shown all the same."""
    nobody = id_text(bytes(16))
    said = cli("jobs", nobody, stock.running, code=4)
    assert nobody in said.err
    assert stock.running in said.out
    assert cli.json("jobs", nobody, code=4) == [None]


def test_a_queue_that_never_was_is_not_found(cli: Cli, stock: Stock) -> None:
    said = cli("jobs", "--queue", "mial", code=4)
    assert said.err == "taskflow: no job has ever been in queue 'mial'; did you mean mail?\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["jobs", "not-an-id"], "'not-an-id' is not a job id"),
        (["jobs", "--before", "x"], "'x' is not a job id"),
        (["jobs", "00000000-0000-0000-0000-000000000000", "--queue", "mail"], "ids or filters, not both: leave out --queue"),
        (["jobs", "--queue", "two words"], "--queue: queue 'two words'"),
        (["jobs", "--limit", "0"], "'0' is not a whole number, 1 or more"),
        (["jobs", "--status", "done"], "invalid choice: 'done'"),
        (["jobs", "--ended-before", "soon"], "'soon' is not a number of seconds"),
        (["jobs", "--jsn"], "did you mean --json?"),
        (["job"], "did you mean jobs?"),
        (["queues", "mail"], "unrecognized arguments: mail"),
        ([], "COMMAND"),
    ],
)
def test_what_is_written_wrongly_is_said_and_nothing_done(cli: Cli, arguments: list[str], complaint: str) -> None:
    said = cli(*arguments, code=2)
    assert complaint in said.err
    assert said.out == ""
    assert "Traceback" not in said.err


def test_the_version_is_told(cli: Cli) -> None:
    assert cli("--version").out.startswith("taskflow ")


@pytest.mark.parametrize(
    "command", ["worker", "demo", "status", "queues", "jobs", "retry", "cancel", "purge", "pause", "resume", "schedules"]
)
def test_every_command_has_help(cli: Cli, command: str) -> None:
    assert f"usage: taskflow {command}" in cli(command, "--help").out
    listed = cli("--help").out
    assert f"\n    {command} " in listed
    assert "124  ended by force" in listed
