"""What goes in comes out, also where SQLite has no place for it."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec
import pytest

from taskflow.broker.sqlite import SqliteBroker
from taskflow.model.errors import TooLarge
from taskflow.model.session import Beat, Report
from taskflow.model.verdict import Discarded, Failed, Progress, RunError, Settled, Settlement, Succeeded, Verdict
from tests.stores.sqlite.support import a_session, an_envelope, registered, succeeded

ODD = "lone \udc80 surrogate, \0 zero, \U0001f600"
SHOWN = ODD.replace("\udc80", "\\udc80")
"""The name of a worker is text in SQLite, so what has no UTF-8 is escaped."""


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        (Discarded(ODD), ODD),
        (Failed(RunError(ODD, ODD, ODD)), f"{ODD}: {ODD}"),
    ],
)
async def test_any_text(broker: SqliteBroker, verdict: Verdict, reason: str) -> None:
    """Exceptions say what they like: a lone surrogate has no UTF-8, which is all that SQLite's text is."""
    session = a_session(ODD)
    await broker.register(session)
    await broker.enqueue([an_envelope()])
    [lease] = await broker.claim(session.id, 1, [], 1)
    await broker.beat(Beat(session=session.id, claims=(lease.claim,), seen=1, reports=(Report(lease.claim, 1.0, Progress(0.25, ODD)),)))

    assert await broker.settle([Settlement(id=lease.envelope.id, epoch=1, claim=lease.claim, verdict=verdict)]) == [Settled.OK]

    [record] = await broker.read([lease.envelope.id])
    assert record is not None
    assert (record.reason, record.worker, record.progress) == (reason, SHOWN, Progress(0.25, ODD))
    [worker] = await broker.admin.workers()
    assert worker.session == msgspec.structs.replace(session, name=SHOWN)


# --- more than SQLite holds -------------------------------------------------------------------------------------------


async def test_a_long_payload_comes_back(broker: SqliteBroker) -> None:
    """Alone in its answer; its neighbour is in the next one."""
    await broker.enqueue([an_envelope(payload=bytes(64 << 20)), an_envelope(payload=bytes(1_000_000))])
    session = await registered(broker)

    [first] = await broker.claim(session.id, 1, [], 10)
    [second] = await broker.claim(session.id, 2, [], 10)

    assert (len(first.envelope.payload), first.unreadable) == (64 << 20, ())
    assert len(second.envelope.payload) == 1_000_000


@pytest.fixture
def small_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own limit, lowered from 1 GB so that it can be reached."""
    connect = sqlite3.connect

    def connect_with_limit(*arguments: Any, **options: Any) -> sqlite3.Connection:
        opened: sqlite3.Connection = connect(*arguments, **options)
        opened.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 50_000)
        return opened

    monkeypatch.setattr(sqlite3, "connect", connect_with_limit)


@pytest.mark.usefixtures("small_values")
async def test_a_result_that_is_too_large_is_refused_by_itself(broker: SqliteBroker) -> None:
    """Not as a store that is away, which a worker would wait for without end; its job can be settled otherwise."""
    await broker.enqueue([an_envelope()])
    session = await registered(broker)
    [lease] = await broker.claim(session.id, 1, [], 1)
    too_large = Settlement(id=lease.envelope.id, epoch=lease.epoch, claim=lease.claim, verdict=Succeeded(bytes(60_000)))

    with pytest.raises(TooLarge, match="SQLite allows no value above 1,000,000,000 bytes"):
        await broker.settle([too_large])

    assert await broker.settle([succeeded(lease)]) == [Settled.OK]
