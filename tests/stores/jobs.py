"""The jobs and sessions of these tests."""

from __future__ import annotations

from typing import Any, Final

from taskflow.broker.protocol import Broker
from taskflow.model.envelope import Envelope
from taskflow.model.ids import IdFactory
from taskflow.model.record import Record, Status
from taskflow.model.session import Session

new_id: Final = IdFactory()


def an_envelope(**fields: Any) -> Envelope:
    return Envelope(**{"id": new_id(), "job": "work", "payload": b"\x01payload", **fields})


def envelopes(number: int, **fields: Any) -> list[Envelope]:
    return [an_envelope(**fields) for _ in range(number)]


async def registered(broker: Broker, name: str = "worker", **fields: Any) -> Session:
    session = Session(id=new_id(), name=name, **fields)
    await broker.register(session)
    return session


async def record_of(broker: Broker, job: Envelope) -> Record:
    [record] = await broker.read([job.id])
    assert record is not None
    return record


async def statuses(broker: Broker, *jobs: Envelope) -> list[Status | None]:
    return [None if record is None else record.status for record in await broker.read([job.id for job in jobs])]
