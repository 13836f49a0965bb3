"""Stores large payloads and results separately from their jobs, so that no script reads them: see `fields.MARK`.

They are sent ahead of the call that adds or settles their jobs. They expire unless that call keeps them, so a call that never arrives
leaves nothing behind. Claims and reads return references, and this module fetches the bytes.

A result is first stored under its settlement's fence, which no other lease has. So a worker that has lost its lease never
replaces another worker's result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

from msgspec.structs import replace

from taskflow.broker.redis.connect.connection import Command, TooLong
from taskflow.broker.redis.connect.pool import ConnectionPool
from taskflow.broker.redis.fields import MARK
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.record import Record
from taskflow.model.stored_values import MAX_RAW, Unreadable

INLINE: Final = 512
"""Payloads of up to this many bytes stay in their jobs. Storing a payload apart saves server time: adding,
claiming and settling a job with 1 KB takes 17 µs inline and 12 µs apart; with 10 KB, 110 µs and 23 µs. But
a single job then starts one round trip later. Measured with `redis-payload` in benchmarks/, adding in bulk.
"""

INLINE_RESULT: Final = 2_048
"""Results of up to this many bytes stay in their jobs. Storing a result apart saves server time: settling and reading a job with 2 KB takes
39 µs inline and 25 µs apart; with 10 KB, 125 µs and 38 µs. But a waiting caller receives an inline result with the message that the job has
ended, and makes two round trips for a separate one.
"""

EXPIRES_IN: Final = 600
"""Seconds after which a payload or result expires if its call has not arrived."""

FETCHED_AT_ONCE: Final = 4 * 1024 * 1024
"""The approximate maximum number of payload bytes that one command fetches."""

AROUND_EACH: Final = 32
"""An upper bound for the bytes that a reply adds to each payload."""

REFERENCE_BYTES: Final = len(MARK) + 4


def is_large(payload: bytes) -> bool:
    """Return True if the payload must be stored apart, because it is large or looks like a reference. No payload from
    our codec looks like one."""
    size = len(payload)  # runs for every job, so it calls no function
    return size > INLINE or (size == REFERENCE_BYTES and payload.startswith(MARK))


def is_large_result(result: bytes) -> bool:
    return len(result) > INLINE_RESULT or is_reference(result)


def reference_to(payload: bytes) -> bytes:
    return MARK + len(payload).to_bytes(4)


def is_reference(payload: bytes) -> bool:
    return len(payload) == REFERENCE_BYTES and payload.startswith(MARK)


def size_in(reference: bytes) -> int:
    return int.from_bytes(reference[len(MARK) :])


class LargePayloads:
    """Stores and fetches the large payloads and results of the jobs under one prefix."""

    def __init__(self, pool: Callable[[], ConnectionPool], prefix: str) -> None:
        """`pool` is a function that returns the running event loop's connections."""
        self._pool = pool
        self._prefixes = {"payload": f"{prefix}b:".encode(), "result": f"{prefix}o:".encode()}

    def ahead(self, large: Iterable[Envelope]) -> list[Command]:
        """Return the commands that store these envelopes' payloads. If a call is resent, they do not replace stored payloads (NX)."""
        prefix = self._prefixes["payload"]
        return [("SET", prefix + envelope.id, envelope.payload, "NX", "EX", EXPIRES_IN) for envelope in large]

    def results_ahead(self, results: Mapping[bytes, bytes]) -> list[Command]:
        """Return the commands that store results under the fences of their settlements. The script `settle` moves them
        to the keys of their jobs."""
        return [("SET", self._prefixes["result"] + fence, result, "EX", EXPIRES_IN) for fence, result in results.items()]

    async def with_payloads(self, leases: list[Lease]) -> list[Lease]:
        """Return the leases with payloads in place of references."""
        references = {
            lease.envelope.id: payload
            for lease in leases
            if len(payload := lease.envelope.payload) == REFERENCE_BYTES and is_reference(payload)  # rarely true
        }
        if not references:
            return leases
        payloads, problems = await self._fetch(references)
        for place, lease in enumerate(leases):
            job_id = lease.envelope.id
            if job_id in references:
                whole = replace(lease, envelope=replace(lease.envelope, payload=payloads.get(job_id, b"")))
                leases[place] = _noted(whole, problems[job_id]) if job_id in problems else whole
        return leases

    async def in_records(self, records: dict[bytes, Record]) -> dict[bytes, Record]:
        """Return the records with payloads and results in place of references.
        A payload that no longer exists, as after a success, becomes None."""
        whole = dict(records)
        for column in self._prefixes:
            references = {job_id: value for job_id, record in records.items() if (value := getattr(record, column)) and is_reference(value)}
            values: dict[bytes, bytes] = {}
            problems: dict[bytes, Unreadable] = {}
            for ids in _portions(references):
                await self._fetch_each(column, ids, [size_in(references[job_id]) for job_id in ids], values, problems)
            for job_id in references:
                if column == "payload" and job_id not in values:
                    whole[job_id] = replace(whole[job_id], payload=None)
                    continue
                read = replace(whole[job_id], **{column: values.get(job_id, b"")})
                whole[job_id] = _noted(read, problems[job_id]) if job_id in problems else read
        return whole

    async def _fetch(self, references: dict[bytes, bytes]) -> tuple[dict[bytes, bytes], dict[bytes, Unreadable]]:
        """Fetch payloads. Return those that exist, and the problem with each one that is missing or damaged.

        One command fetches a whole portion. If the reply is late or too long, or a payload's length differs
        from its reference, the payloads are fetched one by one, each up to one byte beyond its length.
        """
        payloads: dict[bytes, bytes] = {}
        problems: dict[bytes, Unreadable] = {}
        for ids in _portions(references):
            sizes = [size_in(references[job_id]) for job_id in ids]
            try:
                most = sum(sizes) + AROUND_EACH * (len(sizes) + 1)
                found = await self._pool().ask("MGET", *(self._prefixes["payload"] + job_id for job_id in ids), most=most)
            except (TooLong, BrokerUnavailable):  # a server that copies half a gigabyte may answer late or cut the connection
                found = []
            if None not in found and [*map(len, found)] == sizes:
                payloads.update(zip(ids, found, strict=True))
            else:
                await self._fetch_each("payload", ids, sizes, payloads, problems)
        return payloads, problems

    async def _fetch_each(
        self, column: str, ids: Sequence[bytes], sizes: Sequence[int], values: dict[bytes, bytes], problems: dict[bytes, Unreadable]
    ) -> None:
        asked = [("GETRANGE", self._prefixes[column] + job_id, 0, size) for job_id, size in zip(ids, sizes, strict=True)]
        for job_id, size, value in zip(ids, sizes, await self._pool().ask_each(asked), strict=True):
            problem = _problem(value, size)
            if problem:
                problems[job_id] = Unreadable(column, problem, (value or b"")[:MAX_RAW])
            if value != b"":
                values[job_id] = value or b""


def _problem(value: bytes | None, size: int) -> str:
    """Return what is wrong with a value that should have `size` bytes, or "" if nothing is.
    None means that its key is not a string; an empty value means that it is missing."""
    if value is None:
        return "its key is not a string"
    if not value:
        return "it is gone from the server"
    got = len(value) if len(value) <= size else "more"
    return "" if got == size else f"expected {size} bytes, got {got}"


_Read = TypeVar("_Read", Lease, Record)


def _noted(read: _Read, unreadable: Unreadable) -> _Read:
    return replace(read, unreadable=(*read.unreadable, unreadable))


def _portions(references: dict[bytes, bytes]) -> Iterator[Sequence[bytes]]:
    portion, size = list[bytes](), 0
    for job_id, reference in references.items():
        portion.append(job_id)
        size += size_in(reference)
        if size >= FETCHED_AT_ONCE:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion
