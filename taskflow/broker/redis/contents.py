"""Stores large payloads and results under separate keys, so that no script reads them.

They are sent ahead of the call that writes their records, and expire unless it keeps them, so a call that never arrives leaves nothing
behind. The key is the job's id and the revision that the call writes, so no other call replaces it. Records hold references; this module
fetches the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from taskflow.broker.engine.seam import Record
from taskflow.broker.redis.connect.connection import Command, TooLong
from taskflow.broker.redis.connect.pool import ConnectionPool
from taskflow.broker.redis.layout import MARK, REFERENCE_BYTES
from taskflow.broker.redis.records import is_reference
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.stored_values import MAX_RAW

INLINE: Final = 512
"""Payloads of up to this many bytes stay in their jobs. Storing a payload apart saves server time: adding, claiming and settling a job with
10 KB takes 110 µs inline and 23 µs apart. But a single job then starts one round trip later."""

INLINE_RESULT: Final = 2_048
"""Results of up to this many bytes stay in their jobs: a waiting caller receives such a result with the message that the job has ended."""

EXPIRES_IN: Final = 600
"""Seconds after which a content expires if its call has not arrived."""

FETCHED_AT_ONCE: Final = 4 * 1024 * 1024
"""The approximate maximum number of bytes that one command fetches."""

AROUND_EACH: Final = 32
"""An upper bound for the bytes that a reply adds to each content."""


def is_apart(content: bytes, most: int = INLINE) -> bool:
    """Return True if the content must be stored apart, because it is large or looks like a reference."""
    size = len(content)
    return size > most or (size == REFERENCE_BYTES and content.startswith(MARK))


def reference_to(content: bytes, rev: bytes) -> bytes:
    return MARK + len(content).to_bytes(4, "big") + rev


def ahead(prefix: bytes, contents: Mapping[bytes, bytes]) -> list[Command]:
    """Return the commands that store contents, keyed by id and revision. If a call is resent, they do not replace stored ones (NX)."""
    return [("SET", prefix + key, content, "NX", "EX", EXPIRES_IN) for key, content in contents.items()]


class Contents:
    """Fetches the contents under one prefix."""

    def __init__(self, pool: Callable[[], ConnectionPool], prefix: str) -> None:
        """`pool` is a function that returns the running event loop's connections."""
        self._pool = pool
        self.prefix = f"{prefix}c:".encode()

    async def forget(self, contents: Mapping[bytes, bytes]) -> None:
        """Delete contents that were sent ahead of a call that has failed."""
        if contents:
            await self._pool().ask("UNLINK", *(self.prefix + key for key in contents))

    async def fill(self, records: Sequence[Record]) -> list[Record]:
        """Return the records with contents in place of references. One that is gone or damaged is noted as damage."""
        references = {
            (record.ref.id + record.content[6:]): int.from_bytes(record.content[2:6], "big")
            for record in records
            if record.content is not None and is_reference(record.content)
        }
        if not references:
            return list(records)
        found: dict[bytes, bytes | None] = {}
        for portion in _portions(references):
            found |= await self._fetch(portion)
        return [self._filled(record, references, found) for record in records]

    def _filled(self, record: Record, sizes: Mapping[bytes, int], found: Mapping[bytes, bytes | None]) -> Record:
        if record.content is None or not is_reference(record.content):
            return record
        key = record.ref.id + record.content[6:]
        content, size = found[key], sizes[key]
        if content is not None and len(content) == size:
            return record._replace(content=content)
        problem = f"expected {size} bytes, got {_got(content, size)}"
        shown = (content or b"")[:MAX_RAW]
        lines = [*([record.damage] if record.damage else []), f"content\t{problem}: {shown!r}"]
        return record._replace(content=content or None, damage="\n".join(lines))

    async def _fetch(self, sizes: Mapping[bytes, int]) -> dict[bytes, bytes | None]:
        """Fetch contents with one command. If the reply is late or too long, or a length wrong, fetch each alone, up to one byte more."""
        keys = [self.prefix + key for key in sizes]
        try:
            most = sum(sizes.values()) + AROUND_EACH * (len(sizes) + 1)
            found = await self._pool().ask("MGET", *keys, most=most)
        except (TooLong, BrokerUnavailable):  # a server that copies half a gigabyte may answer late or cut the connection
            found = []
        if [None if content is None else len(content) for content in found] != list(sizes.values()):
            found = await self._pool().ask_each([("GETRANGE", key, 0, size) for key, size in zip(keys, sizes.values(), strict=True)])
        return dict(zip(sizes, found, strict=True))


def _got(content: bytes | None, size: int) -> str:
    if not content:
        return "none"
    return str(len(content)) if len(content) <= size else "more"


def _portions(references: dict[bytes, int]) -> Iterator[dict[bytes, int]]:
    portion, size = dict[bytes, int](), 0
    for key, its in references.items():
        portion[key] = its
        size += its
        if size >= FETCHED_AT_ONCE:
            yield portion
            portion, size = {}, 0
    if portion:
        yield portion
