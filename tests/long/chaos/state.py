"""The store at the end of a chaos test, as the judge reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from taskflow.broker.admin import View
from taskflow.broker.protocol import Broker
from taskflow.model.codec import decode_value
from taskflow.model.envelope import CAUSED_BY
from taskflow.model.ids import id_text, key_digest
from taskflow.model.record import Record, Status
from taskflow.model.schedule import SCHEDULE
from taskflow.model.schedule_plan import scheduled_for
from tests.long.chaos.tables import Tables
from tests.support.listing import listed

KEYED: Final = "chaos.keyed"
"""The job whose calls have keys."""

KEYS: Final = tuple(f"key-{number}" for number in range(6))
TAG: Final = "chaos"
EVERY: Final = 2
"""The interval of the schedules in seconds."""

READS: Final = 20


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """One job. `result_epoch` is the epoch in its result, None if it has no result that can be read."""

    status: str
    job: str = "chaos.plain"
    reason: str = ""
    epoch: int = 1
    failures: int = 0
    crashes: int = 0
    max_attempts: int = 10
    result_epoch: int | None = None
    schedule: str = ""
    instant: float = 0.0
    caused_by: str = ""


class Fired(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule."""

    name: str
    every: float
    fired: int
    missed: int = 0


class State(msgspec.Struct, kw_only=True):
    """The whole state. `orders` and `effects` are from the user's tables, None if there are none. `held_keys` are keys that a job seems to
    have."""

    jobs: dict[str, Stored]
    counts: dict[str, int]
    totals: dict[str, int]
    leases: int = 0
    sessions: int = 0
    held_keys: tuple[str, ...] = ()
    schedules: tuple[Fired, ...] = ()
    orders: set[str] | None = None
    effects: dict[str, int] | None = None
    problems: tuple[str, ...] = ()


async def read_state(broker: Broker, tables: Tables | None) -> State:
    """Read everything while no process changes it. Only time does: a cancelled job that is dropped meanwhile is counted and not listed."""
    reads = 0
    while True:
        while (await broker.upkeep(1_000)).dropped:
            pass
        state, reads = await _read(broker, tables), reads + 1
        if sum(state.counts.values()) == len(state.jobs) or reads == READS:
            return state


async def _read(broker: Broker, tables: Tables | None) -> State:
    admin = broker.admin
    counts, totals = Counter[str](), Counter[str]()
    for queue in await admin.queues():
        counts.update({status.value: number for status, number in queue.counts.items()})
    for events in (await admin.metrics()).totals.values():
        totals.update(events)
    records = await listed(admin, View(statuses=(Status.CANCELLED,)))
    records += await listed(admin, View(statuses=tuple(status for status in Status if status is not Status.CANCELLED)))
    holders = await broker.holders([key_digest("default", KEYED, key) for key in KEYS])
    sessions, findings = await admin.workers(), await admin.examine()
    return State(
        jobs={id_text(record.id): _stored(record) for record in records},
        counts=dict(+counts),
        totals=dict(totals),
        leases=sum(session.leases for session in sessions),
        sessions=len(sessions),
        held_keys=tuple(key for key, holder in zip(KEYS, holders, strict=True) if holder is not None),
        schedules=tuple(
            Fired(name=schedule.name, every=EVERY, fired=schedule.fired, missed=schedule.missed) for schedule in await admin.schedules()
        ),
        orders=tables.orders() if tables else None,
        effects=dict(tables.effects()) if tables else None,
        problems=(
            *_untagged(records, await listed(admin, View(tag=TAG))),
            *[found.says for found in findings if found.level == "problem"],
        ),
    )


def _untagged(records: Sequence[Record], tagged: Sequence[Record]) -> Iterator[str]:
    there, found = {record.id for record in records if TAG in record.tags}, {record.id for record in tagged}
    for job_id in there ^ found:
        yield f"{id_text(job_id)} is {'missing from' if job_id in there else 'wrongly in'} the list of its tag"


def _stored(record: Record) -> Stored:
    instant = scheduled_for(record.headers)
    return Stored(
        status=record.status.value,
        job=record.job,
        reason=record.reason or "",
        epoch=record.epoch,
        failures=record.failures,
        crashes=record.crashes,
        max_attempts=record.max_attempts,
        result_epoch=_epoch_in(record) if record.status is Status.SUCCEEDED else None,
        schedule=record.headers.get(SCHEDULE, ""),
        instant=instant.timestamp() if instant is not None else 0.0,
        caused_by=record.headers.get(CAUSED_BY, ""),
    )


def _epoch_in(record: Record) -> int | None:
    try:
        _, epoch = decode_value(record.result or b"")
    except Exception:
        return None
    return int(epoch)
