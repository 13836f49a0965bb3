"""`taskflow jobs`: lists of jobs, and single ones."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskflow.app.job_display import detail
from taskflow.broker import paging
from taskflow.broker.protocol import Broker
from taskflow.cli.jobs import job_table
from taskflow.model.codec import Limits, encode_by_name, encode_value
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory, id_text
from taskflow.model.record import Record, Status
from taskflow.model.rules import Rules
from taskflow.model.session import Beat, Session
from taskflow.model.verdict import Progress, RunEnding, RunError
from tests.cli.hostile import HOSTILE, assert_safe
from tests.cli.inprocess import Cli
from tests.cli.stock import SECRET_ARGUMENTS, Stock
from tests.support.verdicts import failed, retried, succeeded


def ids(jobs: list[dict[str, str]]) -> list[str]:
    return [job["id"] for job in jobs]


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
    """A record shows the tags; --tag combines with every other filter, and a wrong one is refused."""
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
    """The hint under a page has the option for the next page."""
    said = cli("jobs", "--limit", "3")
    found = [line.split()[0] for line in said.out.splitlines()[1:]]
    assert said.err.startswith("there may be more: --cursor ")
    while said.err:
        said = cli("jobs", "--limit", "3", "--cursor", said.err.split()[-1])
        found += [line.split()[0] for line in said.out.splitlines()[1:]]
    assert found == stock.all
    assert "--cursor: the cursor is damaged" in cli("jobs", "--cursor", "x", code=2).err


def test_a_page_says_how_many_jobs_it_looked_at(cli: Cli, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short page is not the last one if it stopped at the bound."""
    monkeypatch.setattr(paging, "EXAMINED", 3)
    said = cli("jobs", "--job", "unheard-of", "--status", "ready", "--status", "failed")
    assert said.out == ""
    assert said.err.startswith("read 3 jobs; continue with --cursor ")
    found, said = list[str](), cli("jobs", "--job", "bad")
    while said.err.startswith("read 3 jobs; continue with --cursor "):
        found += [line.split()[0] for line in said.out.splitlines()[1:]]
        said = cli("jobs", "--job", "bad", "--cursor", said.err.split()[-1])
    found += [line.split()[0] for line in said.out.splitlines()[1:]]
    assert found == [stock.poison, stock.failed, stock.cancelled]


def test_lists_show_neither_arguments_nor_results(cli: Cli, stock: Stock) -> None:
    """They may contain what a screen must not show."""
    for said in (cli("jobs"), cli("jobs", "--json"), cli("status", "--json")):
        assert SECRET_ARGUMENTS[1:].decode() not in said.out
        assert "payload" not in said.out
        assert "result" not in said.out


@pytest.mark.parametrize("command", ["jobs", "failures", "retry", "cancel", "purge"])
def test_a_job_name_that_nothing_has_is_said(cli: Cli, stock: Stock, command: str) -> None:
    said = cli(command, "--job", "goood", "--json")
    assert said.err == "taskflow: no job called 'goood' is in the store, and no running worker declares one; did you mean good?\n"
    assert cli(command, "--job", "good", "--queue", "mail", "--json").err == ""


# --- the table: its columns and details on terminals of two widths, and in a pipe ---------------------------------------


REFUSED = "ConnectionError: smtp.example.com refused the message of order 1011"
DOWN = RunError("OSError", "the warehouse is down")


def a_record(status: Status, **fields: Any) -> Record:
    sent = datetime.now(UTC) - timedelta(minutes=17)
    given: dict[str, Any] = {"id": bytes(16), "job": "app.tasks.send_receipt", "queue": "mail", "max_attempts": 2, "created_at": sent}
    return Record(**given | {"status": status, "due_at": sent} | fields)


def rows_of(records: list[Record], width: int | None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the lines on a terminal of this width, or in a pipe."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: width is not None)
    lines = list(job_table(records))
    assert width is None or max(map(len, lines)) <= width
    return lines


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (80, "ID STATUS QUEUE JOB AGE TRY"),
        (120, "ID STATUS QUEUE JOB AGE TRY"),
        (160, "ID STATUS QUEUE JOB AGE TRY DETAIL"),
        (None, "ID STATUS QUEUE JOB AGE TRY DETAIL"),
    ],
)
def test_a_reason_is_whole_and_no_column_is_empty(width: int | None, titles: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heading, *lines = rows_of([a_record(Status.FAILED, reason=REFUSED)] * 2, width, monkeypatch)
    assert heading.split() == titles.split()
    beside = [line.endswith(f"  {REFUSED}") for line in lines]
    assert beside == [True] * 2 if "DETAIL" in titles else lines[1::2] == [f"    {REFUSED}"] * 2


@pytest.mark.parametrize(
    ("status", "errors", "expected"),
    [
        (Status.RUNNING, (DOWN,), "[#####.....] 50%  half way"),
        (Status.SCHEDULED, (DOWN,), "last error: OSError: the warehouse is down"),
        (Status.READY, (DOWN,), "last error: OSError: the warehouse is down"),
        (Status.SCHEDULED, (), ""),
        (Status.SUCCEEDED, (DOWN,), ""),
    ],
)
def test_progress_is_that_of_a_running_job(status: Status, errors: tuple[RunError, ...], expected: str) -> None:
    assert detail(a_record(status, progress=Progress(0.5, "half way"), errors=errors)) == expected


# --- one job: arguments and result without secrets, the runs on a timeline, the traceback -------------------------------


JOB_ID = id_text(bytes(16))
ARGUMENTS = {"card": {"number": "4242", "owner": "Ada"}, "api_key": "k-1", "amount": 7, "note": "long " * 100, "url": "pg://u:pw@h/x"}
FIRST = RunError("app.Gone", "first", "Traceback: one", ending=RunEnding.TIMED_OUT)
LAST = RunError("ValueError", f"last{HOSTILE}", f"Traceback: two\n{HOSTILE}", attempt=2)


def stored(**fields: Any) -> Callable[[Broker], Awaitable[None]]:
    """Store a job that has crashed once, failed once and, for its last run, settles as `last` says."""
    last: Callable[[Any], Any] = fields.pop("last", failed)

    async def do(broker: Broker) -> None:
        payload = encode_by_name(ARGUMENTS, job="pay", limits=Limits())
        headers = {"authorization": "Bearer b-1", "trace": "t-1"}
        await broker.enqueue(
            [Envelope(**{"id": bytes(16), "job": "pay", "payload": payload, "headers": headers, "secrets": ("number",), **fields})]
        )
        for number in range(3):
            session = Session(id=bytes([number]) * 16, name=f"somewhere:{number}")
            await broker.register(session)
            [lease] = await broker.claim(session.id, 1, ["default"], 1)
            if number == 0:
                await broker.beat(Beat.of_death(session.id, "signal SIGKILL"))
            else:
                await broker.settle([retried(lease, error=FIRST, ran_for=2.5) if number == 1 else last(lease)])

    return do


def fails_at_last(lease: Any) -> Any:
    return failed(lease, LAST, ran_for=0.25)


def returns_a_secret(lease: Any) -> Any:
    return succeeded(lease, encode_value({"token": "t-1", "kind": "x"}))


def keeps_its_arguments(lease: Any) -> Any:
    return succeeded(lease, encode_value({"token": "t-1", "kind": "x"}), arguments=lease.envelope.payload)


def returns_half_way(lease: Any) -> Any:
    return succeeded(lease, progress=Progress(0.5, "half way"))


@pytest.fixture
def failed_job(cli: Cli) -> None:
    cli.with_broker(stored(last=fails_at_last), Rules(crash_backoff=(0.0,)))


def test_a_failed_job_is_shown_with_arguments_runs_and_traceback(cli: Cli, failed_job: None) -> None:
    out = cli("jobs", JOB_ID).out
    assert_safe(out)
    lines = out.splitlines()
    assert '  card     {"number": "[hidden]", "owner": "Ada"}' in lines
    assert "  api_key  [hidden]" in lines
    assert '  url      "pg://u:[hidden]@h/x"' in lines
    assert "  authorization  [hidden]" in lines
    assert not any(secret in out for secret in ("4242", "k-1", "b-1", "pw@"))
    start = lines.index("timeline (UTC)") + 2
    assert [line[25:] for line in lines[start : start + 5]] == [
        "sent",
        "attempt 1 started on somewhere:0",
        "attempt 1: worker somewhere:0 was lost while it had this job (crash 1): signal SIGKILL",
        "attempt 1 started on somewhere:1",
        "attempt 1 timed out: app.Gone: first",
    ]
    assert lines[start + 4].split()[1] == "+2.5s"
    assert any("attempt 2 failed: ValueError: last" in line and "+250ms" in line for line in lines)
    assert "Traceback: two" in out
    assert "Traceback: one" not in out
    assert "Traceback: one" in cli("jobs", JOB_ID, "--verbose").out


def waits_for_a_retry(lease: Any) -> Any:
    return retried(lease, 60.0, progress=Progress(0.5, "half way"))


@pytest.mark.parametrize(("last", "told"), [(waits_for_a_retry, "50% of the last run: half way"), (returns_half_way, "50%: half way")])
def test_progress_of_a_waiting_job_is_that_of_its_last_run(cli: Cli, last: Callable[[Any], Any], told: str) -> None:
    cli.with_broker(stored(last=last), Rules(crash_backoff=(0.0,)))
    assert f"progress         {told}\n" in cli("jobs", JOB_ID).out


def test_json_has_the_same_without_secrets(cli: Cli, failed_job: None) -> None:
    [shown] = cli.json("jobs", JOB_ID)
    assert shown["arguments"] == {
        **ARGUMENTS,
        "card": {"number": "[hidden]", "owner": "Ada"},
        "api_key": "[hidden]",
        "url": "pg://u:[hidden]@h/x",
    }
    assert (shown["arguments_problem"], shown["result"], shown["result_problem"]) == (None, None, None)
    assert shown["headers"] == {"authorization": "[hidden]", "trace": "t-1"}
    assert [(error["ending"], error["worker"]) for error in shown["errors"]] == [
        ("crashed", "somewhere:0"),
        ("timed out", "somewhere:1"),
        ("failed", "somewhere:2"),
    ]
    assert all(error["started_at"] <= error["at"] for error in shown["errors"])
    assert shown["queue_wait"] >= 0
    assert "arguments" not in cli.jobs()[0]


def test_the_result_is_shown_without_secrets(cli: Cli) -> None:
    cli.with_broker(stored(last=returns_a_secret), Rules(crash_backoff=(0.0,)))
    out = cli("jobs", JOB_ID).out
    assert 'result           {"token": "[hidden]", "kind": "x"}\n' in out
    assert "arguments        not kept: the job has succeeded\n" in out
    assert re.search(r"^queue wait       \S+ from ready to start$", out, re.MULTILINE)
    assert cli.json("jobs", JOB_ID)[0]["result"] == {"token": "[hidden]", "kind": "x"}


def test_kept_arguments_are_shown_without_secrets(cli: Cli) -> None:
    cli.with_broker(stored(last=keeps_its_arguments), Rules(crash_backoff=(0.0,)))
    [shown] = cli.json("jobs", JOB_ID)
    assert shown["arguments"]["card"] == {"number": "[hidden]", "owner": "Ada"}
    assert (shown["status"], shown["result"]) == ("succeeded", {"token": "[hidden]", "kind": "x"})


def test_a_result_that_is_marked_is_hidden(cli: Cli) -> None:
    cli.with_broker(stored(last=returns_a_secret, secrets=("return",)), Rules(crash_backoff=(0.0,)))
    assert "result           [hidden]\n" in cli("jobs", JOB_ID).out
    assert cli.json("jobs", JOB_ID)[0]["result"] == "[hidden]"


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (b"", "cannot be decoded: "), (b"\x01\xff", "cannot be decoded: "), (b"\x01\x00\x00\x01\x80", "none"),
        (encode_by_name({HOSTILE.replace("\ud800", ""): HOSTILE.replace("\ud800", "")}, job="", limits=Limits()), "all is well"),
        (encode_by_name({"many": ["x" * 1000] * 900}, job="", limits=Limits()), " characters]"),
        (encode_by_name({"many": ["x" * 1000] * 2000}, job="", limits=Limits(size=1 << 26)), "cannot be decoded: "),
    ],
    ids=["empty", "broken", "no arguments", "hostile", "long", "too large"],
)  # fmt: skip
def test_no_payload_breaks_the_page(cli: Cli, payload: bytes, told: str) -> None:
    async def add(broker: Broker) -> None:
        await broker.enqueue([Envelope(id=bytes(16), job="pay", payload=payload)])

    cli.with_broker(add)
    said = cli("jobs", JOB_ID)
    assert_safe(said.out)
    assert told in said.out
    assert len(said.out) < 5_000
    [shown] = cli.json("jobs", JOB_ID)
    assert (shown["arguments"] is None) == ("cannot" in told)
