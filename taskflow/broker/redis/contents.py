"""Stores large payloads and results under separate keys, so that no script reads them.

They are sent ahead of the call that writes their records, and expire unless it keeps them, so a call that never arrives leaves nothing
behind. The key is the job's id and the revision that the call writes, so no other call replaces it. Records hold references; this module
fetches the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from taskflow.broker.engine.seam import Record
from taskflow.broker.redis.connections import Command, ConnectionPool
from taskflow.broker.redis.layout import MARK, REFERENCE_BYTES
from taskflow.broker.redis.records import is_reference
from taskflow.model.job_schema import LARGE
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
        sizes = {_key(each): int.from_bytes(each.content[2:6], "big") for each in records if each.content and is_reference(each.content)}
        if not sizes:
            return list(records)
        last = [*sizes][-1]
        found = dict[bytes, bytes | None]()
        portion, size = list[bytes](), 0
        for key in sizes:
            if sizes[key] <= LARGE:
                portion.append(key)
                size += sizes[key]
            if portion and (size >= FETCHED_AT_ONCE or key == last):
                fetches = [("GETRANGE", self.prefix + each, 0, sizes[each]) for each in portion]  # a byte more shows that it is longer
                found |= zip(portion, await self._pool().ask_each(fetches), strict=True)
                portion, size = [], 0
        is_apart = [each.content is not None and is_reference(each.content) for each in records]
        return [
            _filled(each, found.get(_key(each)), sizes[_key(each)]) if apart else each
            for each, apart in zip(records, is_apart, strict=True)
        ]


def _key(record: Record) -> bytes:
    """Return the key, after "c:", of a content that is stored apart."""
    assert record.content is not None
    return record.ref.id + record.content[6:]


def _filled(record: Record, content: bytes | None, size: int) -> Record:
    if content is not None and len(content) == size:
        return record._replace(content=content)
    got = "more" if content is not None and len(content) > size else len(content or b"")
    problem = f"content\texpected {size} bytes, got {got}: {(content or b'')[:MAX_RAW]!r}"
    return record._replace(content=content or None, damage="\n".join(filter(None, (record.damage, problem))))
