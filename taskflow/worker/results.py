"""Gives a job in a flow the results of the jobs that it awaits, as one of its arguments, before it runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from taskflow.broker.protocol import Notes
from taskflow.model.codec.failure import failure_body
from taskflow.model.codec.payload import Content, open_payload, with_argument
from taskflow.model.codec.wire import pack
from taskflow.model.envelope import Lease
from taskflow.model.errors import DecodeError, TaskflowError
from taskflow.model.flow import MAX_RESULTS, Member, read_note

ReadNotes = Callable[[bytes, int], Awaitable[Notes]]
"""`Broker.notes`."""


class ResultsMissing(TaskflowError):
    """The results of the jobs that a job awaited are too large, or are no longer in the store."""

    __module__ = "taskflow"  # the name that a job's record shows


async def with_results(lease: Lease, read: ReadNotes) -> Lease:
    """Return the lease of a job with the results among its arguments. They are not decoded: the run does that, as the job is annotated.

    Raises ResultsMissing, DecodeError, or the errors of the broker.
    """
    envelope, member = lease.envelope, lease.envelope.member
    assert member is not None
    assert member.takes is not None
    values = await _values(envelope.id, member, read)
    payload = with_argument(envelope.payload, member.takes, values, is_list=member.is_list)
    filled = msgspec.structs.replace(envelope, payload=payload, member=member._replace(takes=None))
    return msgspec.structs.replace(lease, envelope=filled)


async def _values(job_id: bytes, member: Member, read: ReadNotes) -> list[bytes]:
    found, size = dict[int, bytes](), 0
    first: int | None = 0 if member.inputs else None
    while first is not None:
        page = await read(job_id, first)
        found.update(page.notes)
        size += sum(len(note) for _, note in page.notes)
        if size > MAX_RESULTS:
            raise ResultsMissing(
                f"the results of the {member.inputs:,} jobs that this one awaited have more than {MAX_RESULTS:,} bytes, the most: "
                "return references to large data, such as ids"
            )
        first = page.next
    missing = [number for number in range(member.inputs) if number not in found]
    if missing:
        raise ResultsMissing(f"the store has lost {len(missing):,} of {member.inputs:,} results, the first is number {missing[0]}")
    return [_body(found[number]) for number in range(member.inputs)]


def _body(note: bytes) -> bytes:
    try:
        read = read_note(note)
    except ValueError as error:
        raise DecodeError(f"a result cannot be read: {error}") from error
    if not isinstance(read, bytes):
        return failure_body(read)
    if not read:  # middleware has returned Succeeded(b"")
        return pack(None)
    content, body = open_payload(read)
    if content is not Content.MSGPACK:
        raise DecodeError("a result is in JSON, in which taskflow writes none")
    return body
