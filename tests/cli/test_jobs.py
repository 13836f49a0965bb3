"""`taskflow status | queues | jobs`: what stands in the store."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import datetime

import pytest

from taskflow.broker import paging
from taskflow.broker.console import Console
from taskflow.broker.protocol import Broker
from taskflow.cli.diagnosis import Facts
from taskflow.cli.explain import _shortened
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory, id_text
from taskflow.model.record import Record, Status
from taskflow.model.rules import Rules
from taskflow.model.session import Session
from tests.cli.inprocess import Cli, Said
from tests.cli.stock import ERROR, SECRET_ARGUMENTS, Stock
from tests.support.verdicts import handed_back, parked

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
    assert heading.split() == ["QUEUE", *(status.upper() for status in COUNTS_OF_DEFAULT), "OLDEST"]
    assert rows[0].split() == ["default", *map(str, COUNTS_OF_DEFAULT.values())]
    *cells, oldest = rows[1].split()
    assert cells == ["mail", *map(str, COUNTS_OF_MAIL.values())]
    assert re.fullmatch(r"\d+s", oldest)


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
    assert "broker     sqlite:///queue.db" in text
    assert re.search(r"^workers    1\n  somewhere:1: 1/7 busy, heartbeat \ds ago$", text, re.MULTILINE)
    assert "mail" in text


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["status", "--json"],
        ["schedules"],
        ["queues"],
        ["workers"],
        ["jobs"],
        ["jobs", id_text(bytes(16))],
        ["explain", id_text(bytes(16))],
    ],
)
def test_to_look_makes_no_file(cli: Cli, command: list[str]) -> None:
    """It is said that there is none: more often the command is given in another folder than the worker's."""
    said = cli(*command, code=3)
    assert said.err.startswith(f"taskflow: {cli.folder}/queue.db does not exist: ")
    assert said.out == ""
    assert list(cli.folder.iterdir()) == []


def test_an_empty_store_has_nothing_to_tell(cli: Cli) -> None:
    cli("resume", "default")
    assert cli.json("queues") == cli.jobs() == []
    assert cli.json("status")["workers"] == []
    assert cli("jobs") == Said(0, "", "no jobs match\n")


def test_jobs_are_listed_by_status(cli: Cli, stock: Stock) -> None:
    assert ids(cli.jobs()) == stock.all
    heading, *lines = cli("jobs").out.splitlines()
    assert heading.split() == ["ID", "STATUS", "QUEUE", "JOB", "AGE", "TRY", "DUE", "DETAIL"]
    assert [line.split()[0] for line in lines] == stock.all
    cells = {line.split()[0]: line.split(maxsplit=6)[1:] for line in lines}
    status, queue, job, age, attempt, why = cells[stock.cancelled]
    assert (status, queue, job, attempt, why) == ("cancelled", "default", "bad", "1/10", "no longer needed")
    assert re.fullmatch(r"\d+s", age)
    assert cells[stock.scheduled][-1] in ("in 1h", "in 59m")


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
        (["--error", "NO LONGER"], lambda stock: [stock.cancelled]),
        (["--header", "from"], lambda stock: [stock.running]),
        (["--header", "from=web", "--created-before", "0"], lambda stock: [stock.running]),
        (["--header", "from=app"], lambda stock: []),
    ],
)
def test_jobs_are_filtered(cli: Cli, stock: Stock, filters: list[str], expected: Callable[[Stock], list[str]]) -> None:
    assert ids(cli.jobs(*filters)) == [job_id for job_id in stock.all if job_id in expected(stock)]


def test_jobs_are_found_and_changed_by_tag(cli: Cli, stock: Stock) -> None:
    """A record shows the tags; --tag goes with every other filter, and a wrong one is refused."""
    job_id = cli.with_broker(_a_tagged_job)
    [found] = cli.jobs("--tag", "import:42")
    assert (found["id"], found["tags"]) == (job_id, ["import:42", "b"])
    assert cli.jobs("--tag", "import:42", "--status", "failed") == cli.jobs("--tag", "import") == []
    assert [line.split(maxsplit=1)[1] for line in cli("jobs", job_id).out.splitlines() if line.startswith("tags ")] == ["import:42, b"]
    assert cli.json("jobs", stock.failed)[0]["tags"] == []
    assert "tag 'a b': expected 1 to 100 of the characters" in cli("jobs", "--tag", "a b", code=2).err
    assert cli("cancel", "--tag", "b", "--dry-run").out == "would cancel 1\n"
    assert cli("cancel", "--tag", "b").out.splitlines()[-1] == "cancelled 1"
    assert cli("retry", "--tag", "b", "--status", "cancelled").out.splitlines()[-1] == "retried 1"
    assert cli("purge", "--tag", "b", "--status", "ready").out.splitlines()[-1] == "purged 1"
    assert cli.jobs("--tag", "b") == []
    assert len(cli.jobs()) == len(stock.all)


async def _a_tagged_job(broker: Broker) -> str:
    envelope = Envelope(id=IdFactory()(), job="load", payload=b"", tags=("import:42", "b"))
    await broker.enqueue([envelope])
    return id_text(envelope.id)


def test_jobs_are_paged(cli: Cli, stock: Stock) -> None:
    """The hint under a page is the next page's own option."""
    said = cli("jobs", "--limit", "3")
    found = [line.split()[0] for line in said.out.splitlines()[1:]]
    assert said.err.startswith("there may be more: --cursor ")
    while said.err:
        said = cli("jobs", "--limit", "3", "--cursor", said.err.split()[-1])
        found += [line.split()[0] for line in said.out.splitlines()[1:]]
    assert found == stock.all
    assert "--cursor: the cursor is damaged" in cli("jobs", "--cursor", "x", code=2).err


def test_programs_page_by_the_output_alone(cli: Cli, stock: Stock) -> None:
    page = cli.json("jobs", "--limit", "3")
    found = page["jobs"]
    while page["cursor"] is not None:
        page = cli.json("jobs", "--limit", "3", "--cursor", page["cursor"])
        found += page["jobs"]
    assert ids(found) == stock.all
    said = cli("jobs", "--limit", "3", "--json")
    assert (json.loads(said.out)["examined"], said.err) == (3, "")


def test_a_page_says_how_many_jobs_it_looked_at(cli: Cli, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short page is not the last one if it stopped at the bound."""
    monkeypatch.setattr(paging, "EXAMINED", 3)
    said = cli("jobs", "--job", "unheard-of", "--status", "ready", "--status", "failed")
    assert (said.out, said.err) == ("", "no jobs match\n")
    found, said = list[str](), cli("jobs", "--job", "bad")
    while said.err != "no more jobs match\n":
        assert said.err.startswith("looked at 3 jobs; continue with --cursor ")
        found += [line.split()[0] for line in said.out.splitlines()[1:]]
        said = cli("jobs", "--job", "bad", "--cursor", said.err.split()[-1])
    assert found == [stock.poison, stock.failed, stock.cancelled]


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
    _, line = cli("jobs").out.splitlines()
    cells = re.split("  +", line)
    assert [*cells[1:4], cells[-1]] == ["scheduled", "default", "long", "a back-off: handed back 2 times without an outcome"]
    assert "waiting for      a back-off: handed back 2 times without an outcome\n" in cli("jobs", line.split()[0]).out


async def _hand_back(broker: Broker) -> None:
    session = Session(id=bytes(16), name="somewhere:2")
    await broker.register(session)
    await broker.enqueue([Envelope(id=bytes(16), job="long", payload=b"")])
    for request in (1, 2):
        [lease] = await broker.claim(session.id, request, ["default"], 1)
        await broker.settle([handed_back(lease)])


def test_lists_show_neither_arguments_nor_results(cli: Cli, stock: Stock) -> None:
    """They may hold what a screen must not."""
    for said in (cli("jobs"), cli("jobs", "--json"), cli("status", "--json")):
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


def test_status_names_queues_that_no_worker_takes(cli: Cli, stock: Stock) -> None:
    """The only worker takes jobs from "default" alone."""
    assert cli("status").out.endswith("no running worker takes jobs from mail: start one with `taskflow worker MODULE`\n")
    cli("pause", "mail", "empty")
    assert "empty (paused)" in cli("status").out
    assert cli("status").out.endswith("mail is paused: `taskflow resume mail` ends the pause\n")


def test_status_gives_few_hints(cli: Cli) -> None:
    async def fill(broker: Broker) -> None:
        fresh = IdFactory()
        await broker.enqueue([Envelope(id=fresh(), job="j", queue=f"queue{number}", payload=b"") for number in range(8)])

    cli.with_broker(fill)
    *_, table, first, second, third, fourth, fifth, last = cli("status").out.splitlines()
    assert table.startswith("queue7")
    assert all(hint.startswith("no running worker takes jobs from queue") for hint in (first, second, third, fourth, fifth))
    assert last == "and 3 more hints about other queues and jobs"


def test_a_killed_worker_takes_no_jobs(cli: Cli) -> None:
    """As the only one, it is never declared dead. The queues stand in aligned columns."""

    async def fill(broker: Broker) -> None:
        fresh = IdFactory()
        await broker.enqueue([Envelope(id=fresh(), job="j", queue=queue, payload=b"") for queue in ("mail", "m" * 60)])
        await broker.register(Session(id=bytes(16), name="killed:1", ttl=1.0))

    cli.with_broker(fill)
    time.sleep(1.1)
    *_, heading, short, long, hint, _ = cli("status").out.splitlines()
    assert hint == "no running worker takes jobs from mail: start one with `taskflow worker MODULE`"
    assert re.split(" +", heading)[3] == "READY"
    assert {line.index(" 1 ") + 1 for line in (short, long)} == {heading.index("READY") + 4}


def test_parked_jobs_that_no_worker_knows_are_named(cli: Cli) -> None:
    """Only if each running worker has told which jobs it knows."""

    async def fill(broker: Broker) -> None:
        fresh = IdFactory()
        worker = Session(id=bytes(16), name="here:1", ttl=60.0, jobs=("known",))
        await broker.register(worker)
        await broker.enqueue([Envelope(id=fresh(), job=name, payload=b"") for name in ("gone", "gone", "known")])
        leases = await broker.claim(worker.id, 1, [], 3)
        await broker.settle([parked(lease, 30.0) for lease in leases])
        await broker.enqueue([Envelope(id=fresh(), job="later", payload=b"", after=60.0)])

    cli.with_broker(fill)
    assert cli.json("status")["unknown_jobs"] == {"gone": 2}
    assert cli("status").out.splitlines()[-1].endswith("deploy the code that sent it, or `taskflow cancel --job gone`")

    async def register_another(broker: Broker) -> None:
        await broker.register(Session(id=b"x" * 16, name="there:1", ttl=60.0))

    cli.with_broker(register_another)
    assert cli.json("status")["unknown_jobs"] == {}


@pytest.mark.parametrize(
    ("filters", "expected"), [(["--status", "FAILED"], 2), (["--ended-before", "0ms"], 4), (["--ended-before", "1h30m"], 0)]
)
def test_filters_take_capitals_and_units(cli: Cli, stock: Stock, filters: list[str], expected: int) -> None:
    assert len(cli.jobs(*filters)) == expected


def test_workers_are_listed(cli: Cli, stock: Stock) -> None:
    heading, line = cli("workers").out.splitlines()
    assert heading.split() == ["NAME", "BUSY", "HEARTBEAT", "UP", "JOBS", "DEPLOY", "QUEUES"]
    assert re.fullmatch(r"somewhere:1 +1/7 +\d+s ago +\d+s +\? +- +default", line)
    assert [worker["jobs"] for worker in cli.json("workers")] == [[]]


def test_a_running_worker_says_what_it_knows(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while it runs a job that looks."""
    monkeypatch.setenv("TASKFLOW_DEPLOY", "v17")
    cli.write("tasks.py", LOOKING)
    cli.load("tasks").look.delay_sync()
    cli("worker", "tasks", "--drain")
    [told] = json.loads((cli.folder / "told").read_text())
    assert (told["jobs"], told["deploy"], told["leases"]) == (["old.look", "tasks.look"], "v17", 1)


LOOKING = """
import subprocess, sys
from taskflow import job

@job(aliases=("old.look",))
def look() -> None:
    with open("told", "w") as told:
        subprocess.run([sys.executable, "-m", "taskflow", "workers", "--json"], stdout=told, check=True)
"""


def test_facts_are_asked_for_once_for_all_jobs_of_a_queue(cli: Cli, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking takes a second if other jobs are ready."""
    asked = []

    async def facts_of(console: Console, record: Record, now: datetime) -> Facts:
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


def test_a_queue_that_never_was_is_not_found(cli: Cli, stock: Stock) -> None:
    said = cli("jobs", "--queue", "mial", code=4)
    assert said.err == "taskflow: no job has ever been in queue 'mial'; did you mean mail?\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["jobs", "not-an-id"], "'not-an-id' is not a job id"),
        (["jobs", "00000000-0000-0000-0000-000000000000", "--queue", "mail"], "ids or filters, not both: leave out --queue"),
        (["jobs", "--queue", "two words"], "--queue: queue 'two words'"),
        (["jobs", "--limit", "0"], "'0' is not a whole number, 1 or more"),
        (
            ["jobs", "--status", "done"],
            "--status 'done' is not allowed; use held, scheduled, ready, running, succeeded, failed or cancelled\n",
        ),
        (["jobs", "--status", "failedd"], "taskflow jobs: --status 'failedd' is not allowed; did you mean failed?\n"),
        (["jobs", "--ended-before", "soon"], "'soon' is not a number of seconds"),
        (["jobs", "--jsn"], "did you mean --json?"),
        (["job"], "taskflow: unknown command 'job'; did you mean jobs?\n"),
        (["xyz"], "taskflow: unknown command 'xyz'\n"),
        (["redis://:secret@host"], "taskflow: unknown command 'redis://***'\n"),
        (["completion", "fish"], "taskflow completion: shell 'fish' is not allowed; use bash or zsh\n"),
        (["queues", "mail"], "unrecognized arguments: mail"),
        ([], "COMMAND"),
        (["jobs", "--ended-before", "1e300"], "'1e300' is longer than a hundred years"),
        (["jobs", "--job", "\udcff"], "--job: job name '\\udcff': expected 1 to 200 printable characters"),
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
    "command",
    ["worker", "demo", "status", "workers", "queues", "jobs", "explain", "retry", "cancel", "purge", "pause", "resume", "schedules"],
)
def test_every_command_has_help(cli: Cli, command: str) -> None:
    assert f"usage: taskflow {command}" in cli(command, "--help").out
    listed = cli("--help").out
    assert f"    {command}" in [line[: 4 + len(command)] for line in listed.splitlines()]
    assert "124  ended by force" in listed
