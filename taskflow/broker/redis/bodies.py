"""Large payloads, which are kept apart from their jobs and go past the scripts: see `fields.MARK`.

They are sent ahead of the call that adds their jobs, and fade unless it keeps them, so that none is left of a call that never came. What
a claim, or a reader, finds references in it fetches them for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

from msgspec.structs import replace

from taskflow.broker.redis.fields import MARK
from taskflow.broker.redis.wire import Command
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.record import Record

log: Final = logging.getLogger("taskflow")

INLINE: Final = 512
"""Bytes of a payload that stays in its job. To add, claim and settle a job with a kilobyte takes the server some 17 µs so, and 12 apart;
with ten, 110 and 23. But a lone job begins a round trip later. Measured with `redis-payload` of benchmarks/, and adding in bulk."""

FADES_IN: Final = 600
"""Seconds for which a payload waits for the call that it was sent ahead of."""

FETCHED_AT_ONCE: Final = 4 * 1024 * 1024
"""Bytes, about."""

REFERENCE_BYTES: Final = len(MARK) + 4


class Ask(Protocol):
    """How a broker sends a command."""

    async def __call__(self, *command: Any) -> Any: ...


def is_large(payload: bytes) -> bool:
    """Also one that would be taken for a reference: no codec of ours makes such."""
    size = len(payload)  # asked of every call: no function is called for it
    return size > INLINE or (size == REFERENCE_BYTES and payload.startswith(MARK))


def reference_to(payload: bytes) -> bytes:
    return MARK + len(payload).to_bytes(4)


def is_reference(payload: bytes) -> bool:
    return len(payload) == REFERENCE_BYTES and payload.startswith(MARK)


class Bodies:
    """Of the jobs under one prefix."""

    def __init__(self, ask: Ask, prefix: str) -> None:
        self._ask = ask
        self._prefix = f"{prefix}b:".encode()

    def ahead(self, large: Iterable[Envelope]) -> list[Command]:
        """A call that is sent again leaves alone what is there."""
        return [("SET", self._prefix + envelope.id, envelope.payload, "NX", "EX", FADES_IN) for envelope in large]

    async def with_payloads(self, leases: list[Lease]) -> list[Lease]:
        """The leases, whole."""
        apart = {
            lease.envelope.id: payload
            for lease in leases
            if len(payload := lease.envelope.payload) == REFERENCE_BYTES and is_reference(payload)  # hardly ever called
        }
        if not apart:
            return leases
        payloads = await self._fetch(apart)
        for place, lease in enumerate(leases):
            envelope = lease.envelope
            if envelope.id in apart:
                payload = payloads.get(envelope.id, b"")
                if not payload:
                    log.error("the payload of job %s (%s) is gone from the server: it cannot run", envelope.id.hex(), envelope.job)
                leases[place] = replace(lease, envelope=replace(envelope, payload=payload))
        return leases

    async def in_records(self, records: dict[bytes, Record]) -> dict[bytes, Record]:
        """The records, whole: without a payload where it has gone meanwhile, as it does when a job succeeds."""
        apart = {job_id: record.payload for job_id, record in records.items() if record.payload and is_reference(record.payload)}
        if not apart:
            return records
        payloads = await self._fetch(apart)
        return records | {job_id: replace(records[job_id], payload=payloads.get(job_id)) for job_id in apart}

    async def _fetch(self, references: dict[bytes, bytes]) -> dict[bytes, bytes]:
        fetched: dict[bytes, bytes] = {}
        for ids in _portions(references):
            payloads = await self._ask("MGET", *(self._prefix + job_id for job_id in ids))
            fetched.update((job_id, payload) for job_id, payload in zip(ids, payloads, strict=True) if payload is not None)
        return fetched


def _portions(references: dict[bytes, bytes]) -> Iterator[Sequence[bytes]]:
    portion, size = list[bytes](), 0
    for job_id, reference in references.items():
        portion.append(job_id)
        size += int.from_bytes(reference[len(MARK) :])
        if size >= FETCHED_AT_ONCE:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion
