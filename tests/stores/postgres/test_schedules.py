"""Schedules beside other connections and other programs: each instant is fired once, and a row that is locked or spoilt harms no other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import asyncpg
import pytest

from taskflow.broker.protocol import Added, Broker, Refused
from taskflow.model.envelope import OnConflict
from taskflow.model.schedule import Amendment, Definition, Firing, Offer
from taskflow.model.session import Beat
from taskflow.model.stored_values import LATEST
from tests.stores.jobs import an_envelope
from tests.stores.postgres.counts import SESSION, Call, Store
from tests.support.waiting import until

DETECTED_TIMEOUT: Final = 0.7
"""Seconds. Less than those after which the server looks for deadlocks."""

SOON: Final = 2.0
"""Seconds. Less than those after which an operation gives up waiting for a lock."""


def a_definition(name: str, version: int = 1) -> Definition:
    return Definition(name, bytes([version]) * 16, b"body")


def a_firing(offer: Offer, **more: Any) -> Firing:
    at = offer.now + 60_000_000
    return Firing(name=offer.name, digest=offer.digest, expected=offer.next_at, next_at=at, look_at=at, envelope=an_envelope(**more))


@pytest.mark.parametrize("verb", ["define", "fire", "fire with keys"])
async def test_several_schedules_and_keys_are_locked_in_one_order(broker: Broker, stranger: asyncpg.Connection, verb: str) -> None:
    """Otherwise a transaction that locks them in that order would wait for an operation that waits for it."""
    table, ids = "schedules", [b"a", b"b"]
    assert await broker.define([a_definition("a"), a_definition("b")]) == [True] * 2
    offers = sorted((await broker.upkeep(10)).offers, key=lambda offer: offer.name, reverse=True)
    firings = [a_firing(offer) for offer in offers]
    if verb == "fire with keys":
        table, ids = "keys", [bytes([number]) * 16 for number in (1, 2)]
        await broker.enqueue([an_envelope(key=key) for key in ids])
        firings = [a_firing(offer, key=key, on_conflict=OnConflict.REPLACE) for offer, key in zip(offers, ids[::-1], strict=True)]
    lock = f"SELECT * FROM taskflow.{table} WHERE id = $1 FOR UPDATE"
    await stranger.execute("BEGIN")
    await stranger.fetch(lock, ids[0])
    call = broker.define([a_definition("b", 2), a_definition("a", 2)]) if verb == "define" else broker.fire(firings)
    waits: asyncio.Task[Sequence[Added | Refused | bool | None]] = asyncio.create_task(call)
    blocked = "EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')"
    await until(lambda: stranger.fetchval(f"SELECT pg_stat_clear_snapshot() IS NOT NULL AND {blocked}"))
    async with asyncio.timeout(DETECTED_TIMEOUT):
        await stranger.fetch(lock, ids[1])
    await stranger.execute("COMMIT")
    assert all(await waits)


async def test_upkeep_and_beats_do_not_wait_for_a_schedule_that_somebody_has_locked(broker: Broker, stranger: asyncpg.Connection) -> None:
    """Other due schedules are offered. The locked one is offered, or put to sleep, once it is free."""
    await broker.define([a_definition("locked"), a_definition("other")], SESSION)
    await stranger.execute("BEGIN; SELECT * FROM taskflow.schedules WHERE id = 'locked' FOR UPDATE")
    async with asyncio.timeout(SOON):
        [offer] = (await broker.upkeep(10)).offers
        assert offer.name == "other"
        await broker.beat(Beat(session=SESSION, leaving=True))
        await broker.upkeep(10)
    assert [record.asleep_since is None for record in await broker.admin.schedules()] == [True, False]

    await stranger.execute("ROLLBACK")
    assert (await broker.upkeep(10)).offers == ()
    assert [record.asleep_since is None for record in await broker.admin.schedules()] == [False, False]


STATES: Final = ("NULL", "''", "'\\xc1'", "decode(repeat('00', 1000), 'hex')", "decode(repeat('c0', 80000000), 'hex')")

ADMITTED: Final = (
    *(f"offer_at = {n}" for n in (-(1 << 63), 0, LATEST, (1 << 63) - 1, "NULL")),
    *(f"is_paused = {n}" for n in (-1, 1, 2)),
    *(f"rev = {n}" for n in (0, -(1 << 63))),
    *(f"state = {state}" for state in STATES),
    "sent = state, content = state",
)


@pytest.mark.parametrize("change", ADMITTED, ids=lambda change: change[:30])
async def test_a_value_that_the_server_admits_stops_no_schedule_beside_it(
    broker: Broker, stranger: asyncpg.Connection, change: str
) -> None:
    """Nor upkeep, nor the listing, nor the end of a session that declares them."""
    await broker.define([a_definition("spoilt"), a_definition("other")], SESSION)
    assert await stranger.execute(f"UPDATE taskflow.schedules SET {change} WHERE id = 'spoilt'") == "UPDATE 1"

    offers = {offer.name: offer for _ in range(2) for offer in (await broker.upkeep(10)).offers}
    answers = await broker.fire([a_firing(offer) for offer in offers.values()])

    assert isinstance(answers[list(offers).index("other")], Added)
    assert "other" in {record.name for record in await broker.admin.schedules()}
    for amendment in (Amendment.PAUSE, Amendment.RESUME):
        assert await broker.admin.amend_schedule("other", amendment)
        await broker.admin.amend_schedule("spoilt", amendment)
    await broker.define([a_definition(name, 2) for name in ("spoilt", "other")], SESSION)
    [record] = await broker.admin.schedules(["other"])
    assert record.digest == a_definition("other", 2).digest
    await broker.beat(Beat(session=SESSION, leaving=True))
    await broker.upkeep(10)
    [record] = await broker.admin.schedules(["other"])
    assert record.asleep_since is not None


async def test_a_store_without_schedules_costs_upkeep_and_a_look_one_probe_each_time(store: Store) -> None:
    """That many schedules cost no more is shown in test_plans.py."""
    store.counted = "^(schedules|declared)(_|$)"
    calls: Sequence[Call] = (lambda broker: broker.upkeep(10), lambda broker: broker.beat(Beat(session=SESSION, looks=True)))
    for call in calls:
        assert await store.costs(call, times=2) == [{"schedules_offers": (1, 0)}] * 2
