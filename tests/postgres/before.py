"""A client of the versions of the schema before this one: it calls the verbs that have others beside them now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg

from taskflow.broker.postgres import PostgresBroker, packing
from taskflow.broker.postgres.server import ANSWER_WITHIN
from taskflow.broker.protocol import Added, Refused
from taskflow.model.clock import to_seconds
from taskflow.model.envelope import ClaimId, Envelope, Lease, unpack_extras
from taskflow.model.verdict import Settled, Settlement


class BrokerOfBefore(PostgresBroker):
    """It has looked at the schema, and knows nothing of another. Columns are whole, leases whole rows, and all is settled alike."""

    def __init__(self, like: PostgresBroker) -> None:
        super().__init__(like.server)
        self._is_prepared = True

    async def call(self, name: str, *arguments: Any, columns: str = "*", within: float = ANSWER_WITHIN) -> list[asyncpg.Record]:
        return await super().call(name, *arguments, columns=columns.replace("left(spoilt, 4096), ", ""), within=within)

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        row = await self.call_one("enqueue", self.wall(), None, *packing.envelope_columns(envelopes))
        answers = row["answers"] or [b""] * len(envelopes)
        return [packing.added_or_refused(*pair) for pair in zip(envelopes, answers, strict=True)]

    async def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        rows = await self.call("claim", *self.times(), session, request, list(queues), limit)
        rows.sort(key=lambda row: row["number"])
        return [lease_of(row) for row in rows]

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        if not settlements:
            return []
        *columns, _ = packing.settlement_columns(settlements)  # without progress, which came later
        row = await self.call_one("settle", self.wall(), *columns)
        return [Settled.OK if is_ok else Settled.STALE for is_ok in row["answers"]]


class BrokerOfVersion5(BrokerOfBefore):
    """As versions 2 to 5 settle: successes by a verb of their own, in whole columns."""

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        plain = [settlement for settlement in settlements if packing.is_plain(settlement)]
        if not plain:
            return await super().settle(settlements)
        ids, fences, ran_for, keep_for, results = packing.success_columns(plain)
        lengths = len(ids) // len(plain), len(fences) // len(plain)
        columns = [
            *([packed[n * size : (n + 1) * size] for n in range(len(plain))] for packed, size in zip((ids, fences), lengths, strict=True)),
            *(column * (len(plain) // len(column)) for column in (ran_for, keep_for, results)),
        ]
        [row] = await self.call("succeed", self.wall(), *columns)
        done = {settlement.id for settlement in plain} if row["done"] is None else set(row["done"])
        left = iter(await super().settle([settlement for settlement in settlements if settlement.id not in done]))
        return [Settled.OK if settlement.id in done else next(left) for settlement in settlements]


def lease_of(row: Any) -> Lease:
    names = ("created_at", "failures", "crashes", "snoozes", "hand_backs")
    parked_at = row["parked_at"]
    return Lease(
        envelope=Envelope(
            id=row["id"],
            job=row["job"],
            payload=row["payload"] or b"",
            queue=row["queue"],
            priority=row["priority"],
            key=row["key"],
            **unpack_extras(row["extras"]),
        ),
        epoch=row["epoch"],
        claim=ClaimId(row["session"], row["request"], row["number"]),
        parked_for=0.0 if parked_at is None else to_seconds(row["claimed_at"] - parked_at),
        **{name: row[name] for name in names},
    )
