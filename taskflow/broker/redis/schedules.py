"""Packs definitions and firings of schedules into arguments for the scripts in schedules.lua, and decodes their replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taskflow.broker.redis.enqueue import Texts, job_item
from taskflow.broker.redis.jobs import UNKNOWN, shown
from taskflow.broker.redis.large_payloads import is_large
from taskflow.broker.redis.packing import pack
from taskflow.model.clock import to_microseconds
from taskflow.model.schedule import Definition, Firing, Offer, ScheduleRecord, ScheduleState
from taskflow.model.stored_values import text


def pack_definitions(definitions: Sequence[Definition], session: bytes | None, age: float) -> bytes:
    """Pack definitions for the script `define`."""
    return pack([session or False, to_microseconds(age), definitions])


def pack_firings(firings: Sequence[Firing]) -> bytes:
    """Pack firings for the script `fire` or `advance`. Large payloads must be sent ahead: see `large_payloads`."""
    texts, apart = Texts(), list[bytes]()
    packed = [_firing(firing, texts, apart) for firing in firings]
    return pack([list(texts), packed, apart])


def _firing(firing: Firing, texts: Texts, apart: list[bytes]) -> list[object]:
    item: object = False
    if firing.envelope is not None:
        if is_apart := is_large(firing.envelope.payload):
            apart.append(firing.envelope.id)
        item = job_item(firing.envelope, texts, apart=is_apart)
    instants = [False if instant is None else instant for instant in (firing.expected, firing.next_at, firing.look_at)]
    return [firing.name, firing.digest, *instants, firing.missed, item]


def read_offers(offered: Sequence[Any], now: int) -> tuple[Offer, ...]:
    """Decode the offers in a reply of the script `upkeep`. A schedule whose name is not UTF-8 is left out."""
    offers = list[Offer]()
    for i in range(0, len(offered), 5):
        name, digest, body, next_at, since = offered[i : i + 5]
        try:
            offers.append(Offer(name=text(name), digest=digest, body=body, next_at=next_at, since=since, now=now))
        except UnicodeDecodeError:
            continue
    return tuple(offers)


def schedule_records(rows: Sequence[Sequence[Any]]) -> list[ScheduleRecord]:
    """Decode the reply of the script `schedules`, which leaves out any schedule that it cannot read."""
    return [_record(*row) for row in rows]


def _record(name: bytes, digest: bytes, body: bytes, declared: Any, paused: Any, *rest: Any) -> ScheduleRecord:
    *times_and_counts, declarers = rest
    state = ScheduleState(shown(name), digest, body, bool(declared), None, bool(paused), *times_and_counts)
    return state.record(UNKNOWN if declarer is None else shown(declarer) for declarer in declarers)
