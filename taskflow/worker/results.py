"""Adds the results of the awaited jobs to the arguments of a job in a flow, before the job runs."""

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
"""The signature of `Broker.notes`."""


class ResultsMissing(TaskflowError):
    """The results of the jobs that a job awaited are too large, or are no longer in the store."""

    __module__ = "taskflow"  # the name that a job's record shows


async def with_results(lease: Lease, read: ReadNotes) -> Lease:
    """Return the lease with the results added to the job's arguments. The run decodes them later, as the job's annotations require.

    Raises ResultsMissing, DecodeError, or the broker's errors.
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
                f"the results of the {member.inputs:,} jobs that this job awaited exceed the maximum of {MAX_RESULTS:,} bytes: "
                "return references to large data, such as ids"
            )
        first = page.next
    missing = [number for number in range(member.inputs) if number not in found]
    if missing:
        raise ResultsMissing(f"the store has lost {len(missing):,} of {member.inputs:,} results, the first of them number {missing[0]}")
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
        raise DecodeError("a result is stored as JSON, which taskflow never uses for results")
    return body
