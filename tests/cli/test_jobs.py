"""`taskflow jobs`: lists of jobs, and single ones."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from taskflow.broker import paging
from taskflow.broker.protocol import Broker
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory, id_text
from tests.cli.inprocess import Cli
from tests.cli.stock import ERROR, SECRET_ARGUMENTS, Stock


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


def test_a_page_says_how_many_jobs_it_looked_at(cli: Cli, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short page is not the last one if it stopped at the bound."""
    monkeypatch.setattr(paging, "EXAMINED", 3)
    said = cli("jobs", "--job", "unheard-of", "--status", "ready", "--status", "failed")
    assert said.out == ""
    assert said.err.startswith("looked at 3 jobs; continue with --cursor ")
    found, said = list[str](), cli("jobs", "--job", "bad")
    while said.err.startswith("looked at 3 jobs; continue with --cursor "):
        found += [line.split()[0] for line in said.out.splitlines()[1:]]
        said = cli("jobs", "--job", "bad", "--cursor", said.err.split()[-1])
    found += [line.split()[0] for line in said.out.splitlines()[1:]]
    assert found == [stock.poison, stock.failed, stock.cancelled]


def test_jobs_given_by_id_are_shown_with_their_errors(cli: Cli, stock: Stock) -> None:
    failed, running = cli.json("jobs", stock.failed, stock.running)
    assert (failed["id"], failed["status"], failed["failures"], failed["max_attempts"]) == (stock.failed, "failed", 2, 2)
    assert [error["message"] for error in failed["errors"]] == [ERROR.message, ERROR.message]
    assert (running["status"], running["worker"], running["headers"]) == ("running", "somewhere:1", {"from": "web"})
    text = cli("jobs", stock.failed).out
    assert ERROR.traceback in text
    assert f"id               {stock.failed}\n" in text


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


def test_a_queue_that_never_was_is_not_found(cli: Cli, stock: Stock) -> None:
    said = cli("jobs", "--queue", "mial", code=4)
    assert said.err == "taskflow: no job has ever been in queue 'mial'; did you mean mail?\n"


@pytest.mark.parametrize("command", ["jobs", "failures", "retry", "cancel", "purge"])
def test_a_job_name_that_nothing_has_is_said(cli: Cli, stock: Stock, command: str) -> None:
    said = cli(command, "--job", "goood", "--json")
    assert said.err == "taskflow: no job called 'goood' is in the store, and no running worker declares one; did you mean good?\n"
    assert cli(command, "--job", "good", "--queue", "mail", "--json").err == ""
