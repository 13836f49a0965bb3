"""`taskflow flows`, and what other commands show and do about jobs in flows."""

from __future__ import annotations

import secrets
from collections import Counter
from typing import Any, Final

import msgspec
import pytest

from taskflow.app.flow_tree import MAX_BESIDE, MAX_LEVEL, flow_records, tree_of
from taskflow.broker.protocol import Broker
from taskflow.model.envelope import Envelope
from taskflow.model.flow import Member, Tie
from taskflow.model.ids import IdFactory, id_text
from taskflow.model.record import Record, Status
from taskflow.model.session import Session
from taskflow.model.verdict import Settlement
from tests.cli.inprocess import Cli
from tests.support.verdicts import failed, succeeded

FLOW: Final = b"f" * 16
NOBODY: Final = id_text(bytes(16))


def a_flow(number: int = 3, *, collects: bool = False) -> list[Envelope]:
    """Return this many calls of `count`, and `total`, which takes their results."""
    new = IdFactory()
    ids, last = [new() for _ in range(number + 1)], number
    counts = [
        Envelope(
            id=each,
            job="count",
            payload=b"",
            member=Member(FLOW, n, n if collects else 0, n if collects else last),
            joins=(ids[last],),
            ties=(Tie(n, collects),),
            max_attempts=1,
        )
        for n, each in enumerate(ids[:-1])
    ]
    total = Envelope(id=ids[last], job="total", payload=b"", awaits=number, member=Member(FLOW, last, 0, last, "numbers", True, number))
    return [*counts, total]


async def run_one(broker: Broker, *, fails: bool) -> None:
    session = Session(id=secrets.token_bytes(16), name="somewhere:1", ttl=3600.0)
    await broker.register(session)
    [lease] = await broker.claim(session.id, 1, (), 1)
    settlement: Settlement = failed(lease) if fails else succeeded(lease)
    await broker.settle([settlement])


@pytest.fixture
def ids(cli: Cli) -> list[str]:
    """Return the jobs of a flow of which one has succeeded."""
    flow = a_flow()

    async def send(broker: Broker) -> None:
        await broker.enqueue(flow)
        await run_one(broker, fails=False)

    cli.with_broker(send)
    return [id_text(envelope.id) for envelope in flow]


def fail_one(cli: Cli) -> None:
    cli.with_broker(lambda broker: run_one(broker, fails=True))


def test_a_flow_is_shown_as_a_tree(cli: Cli, ids: list[str]) -> None:
    said = cli("flows", id_text(FLOW)).out.splitlines()
    assert said[0] == f"flow {id_text(FLOW)}  4 jobs: 1 held, 2 ready, 1 succeeded"
    assert [line.split() for line in said[2:]] == [
        ["total", "held", ids[3], "awaits", "2"],
        ["count", "succeeded", ids[0]],
        ["count", "ready", ids[1]],
        ["count", "ready", ids[2]],
    ]
    assert [len(line) - len(line.lstrip()) for line in said[2:]] == [0, 2, 2, 2]
    assert cli("flows", ids[1]).out.splitlines() == said
    assert NOBODY in cli("flows", NOBODY, code=4).err


def test_the_newest_flows_are_listed(cli: Cli, ids: list[str]) -> None:
    [_, line] = cli("flows").out.splitlines()
    assert line.split() == [id_text(FLOW), "4", *line.split()[2:-4], "total", "held", "awaits", "2"]
    assert [(flow["id"], [job["id"] for job in flow["jobs"]]) for flow in cli.json("flows", "--limit", "1")] == [(id_text(FLOW), ids[3:])]


def test_without_flows_none_is_listed(cli: Cli) -> None:
    cli("send", "add")
    assert cli("flows").out.startswith("there are no flows")


def test_a_flow_is_shown_as_json(cli: Cli, ids: list[str]) -> None:
    fail_one(cli)
    flow, nobody = cli.json("flows", ids[3], NOBODY, code=4)
    assert (flow["id"], nobody) == (id_text(FLOW), None)
    assert [(job["number"], job["id"], job["status"], job["awaits"], job["waits_for"], job["cancelled_by"]) for job in flow["jobs"]] == [
        (0, ids[0], "succeeded", 0, [], None),
        (1, ids[1], "failed", 0, [], None),
        (2, ids[2], "cancelled", 0, [], ids[1]),
        (3, ids[3], "cancelled", 0, [0, 1, 2], ids[1]),
    ]
    [job] = cli.json("jobs", ids[0])
    assert (job["flow"], job["awaits"]) == (id_text(FLOW), 0)


def test_the_jobs_of_a_flow_are_explained(cli: Cli, ids: list[str]) -> None:
    show = f"`taskflow flows {id_text(FLOW)}`"
    [held] = cli.json("explain", ids[3])
    assert held["reasons"] == [{"text": "it waits for 2 jobs of its flow, such as count (ready)", "cure": f"{show} shows them all"}]
    fail_one(cli)
    failure, cancelled = cli.json("explain", ids[1], ids[3])
    assert failure["reasons"][1] == {
        "text": "the jobs of its flow that had not begun were cancelled with it",
        "cure": f"retrying it restores them; {show} shows them",
    }
    assert "another job of its flow failed" in cli("retry", ids[3], code=1).err
    [reason] = cancelled["reasons"]
    assert reason["text"].startswith(f"job {ids[1]} of its flow has failed: count: builtins.ValueError: ")
    assert reason["cure"] == f"`taskflow retry {ids[1]}` runs that job again, and restores this one"


def test_explain_says_where_a_flow_is_shown(cli: Cli, ids: list[str]) -> None:
    told = f"{id_text(FLOW)} is a flow: `taskflow flows {id_text(FLOW)}` shows its jobs\n"
    assert cli("explain", id_text(FLOW), code=4).err.endswith(told)
    assert cli("jobs", id_text(FLOW), code=4).err.endswith(told)


def test_a_job_that_collects_failures_does_not_wait_for_them(cli: Cli) -> None:
    flow = a_flow(collects=True)

    async def send(broker: Broker) -> None:
        await broker.enqueue(flow)
        await run_one(broker, fails=True)

    cli.with_broker(send)
    [held, failure] = cli.json("explain", id_text(flow[3].id), id_text(flow[0].id))
    assert held["reasons"][0]["text"] == "it waits for 2 jobs of its flow, such as count (ready)"
    assert len(failure["reasons"]) == 1


def test_a_flow_is_cancelled_and_retried(cli: Cli, ids: list[str]) -> None:
    flow = ("--flow", id_text(FLOW))
    assert cli("cancel", *flow, "--dry-run").out == "would cancel 3\n"
    assert cli("cancel", *flow, "--reason", "wrong file").out == "cancelled 3\n"
    [act] = cli.json("audit")
    assert (act["action"], act["affected"], act["selection"], act["reason"]) == ("cancel", 3, {"flow": id_text(FLOW)}, "wrong file")
    [stopped] = cli.json("explain", ids[3])
    cure = f"`taskflow retry --flow {id_text(FLOW)}` still runs the jobs that have not succeeded"
    assert stopped["reasons"] == [{"text": "its flow was cancelled", "cure": cure}]
    assert cli("retry", "--flow", ids[3]).out == "retried 3\n"
    assert [job["status"] for job in cli.json("flows", ids[3])[0]["jobs"]] == ["succeeded", "ready", "ready", "held"]
    fail_one(cli)
    assert cli.json("retry", *flow)["matching"] == 1  # with the jobs that its failure cancelled
    assert [job["status"] for job in cli.json("flows", ids[3])[0]["jobs"]] == ["succeeded", "ready", "ready", "held"]
    assert NOBODY in cli("cancel", "--flow", NOBODY, code=4).err
    assert "leave out --queue, or --flow" in cli("cancel", *flow, "--queue", "mail", code=2).err


@pytest.mark.parametrize("which", [("--all",), ("--flow", id_text(FLOW))])
@pytest.mark.parametrize("page", [2, 500])
def test_jobs_of_one_flow_that_are_retried_in_portions(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, page: int, which: tuple[str, ...]
) -> None:
    """The failures of the later portions cancel the first ones again, until they're retried too. Only the end counts."""
    monkeypatch.setattr("taskflow.app.bulk_actions.PAGE", page)
    flow = a_flow(5)

    async def send(broker: Broker) -> None:
        await broker.enqueue(flow)
        session = Session(id=secrets.token_bytes(16), name="somewhere:1", ttl=3600.0)
        await broker.register(session)
        await broker.settle([failed(lease) for lease in await broker.claim(session.id, 1, (), 10)])

    cli.with_broker(send)
    assert cli.json("retry", *which)["changed"] == 5
    assert Counter(job["status"] for job in cli.json("flows", id_text(FLOW))[0]["jobs"]) == {"ready": 5, "held": 1}
    [act] = cli.json("audit")
    assert act["affected"] == 5


def test_an_action_on_many_jobs_shows_its_progress(cli: Cli, ids: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry is done in one call, because the store examines the whole flow each time."""
    monkeypatch.setattr("taskflow.app.bulk_actions.PAGE", 2)
    cli("cancel", "--flow", ids[3])
    assert cli("retry", "--flow", ids[3]).out.splitlines() == ["3 of 3 done", "retried 3"]
    cli("cancel", "--flow", ids[3])
    assert cli("purge", *ids[1:]).out.splitlines() == ["2 of 3 done", "3 of 3 done", "purged 3"]


def record(number: int, status: Status, joins: tuple[int, ...] = ()) -> Record:
    now: Any = None
    return Record(
        id=bytes([*number.to_bytes(16, "big")]),
        job=f"job {number}",
        status=status,
        created_at=now,
        due_at=now,
        member=Member(FLOW, number, 0, 100),
        joins=tuple(each.to_bytes(16, "big") for each in joins),
    )


def shown(records: list[Record]) -> list[str]:
    return [f"{'.' * line.level}{line.record.job if line.record else line.text}{line.note and ' '}{line.note}" for line in tree_of(records)]


def test_many_jobs_beside_each_other_share_a_line() -> None:
    """Those that failed or run are shown first."""
    statuses = [Status.SUCCEEDED] * 24 + [Status.RUNNING, Status.FAILED]
    lines = shown([*(record(n, status, (26,)) for n, status in enumerate(statuses)), record(26, Status.CANCELLED)])
    assert lines[:3] == ["job 26", ".job 25", ".job 24"]
    assert (len(lines), lines[-1]) == (MAX_BESIDE + 2, ".and 6 jobs: 6 succeeded")


def test_a_job_with_several_that_wait_for_it_stands_once_with_those_below_it() -> None:
    records = [record(0, Status.SUCCEEDED, (1,)), record(1, Status.SUCCEEDED, (2, 3)), record(2, Status.READY), record(3, Status.READY)]
    assert shown(records) == ["job 2", ".job 1", "..job 0", "job 3", ".job 1 as above"]


def test_a_long_chain_stays_on_the_screen() -> None:
    lines = shown([*(record(n, Status.HELD, (n + 1,)) for n in range(99)), record(99, Status.HELD)])
    assert (len(lines), max(line.count(".") for line in lines)) == (100, MAX_LEVEL)


async def test_a_damaged_record_does_not_make_it_read_for_ever() -> None:
    """The record's member cannot be read, or has a number that was read before."""
    pages = [[record(0, Status.READY), msgspec.structs.replace(record(1, Status.READY), member=None)], [record(0, Status.READY)], []]

    async def call(_operation: object) -> Any:
        return pages.pop(0)

    assert len(await flow_records(call, FLOW)) == 3
    assert pages == [[]]
