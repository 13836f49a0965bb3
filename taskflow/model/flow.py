"""Flows: jobs that are sent together. Some of the jobs wait for others, and get their results.

The jobs of a flow are numbered in the order in which they are built, so that each part of the flow has consecutive numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from taskflow.model.ids import ID_BYTES

MAX_JOBS: Final = 10_000
"""The maximum number of jobs in a flow, apart from those that follow a group."""

MAX_MEMBERS: Final = 2 * MAX_JOBS
"""The maximum total number of jobs in a flow."""

MAX_FLOW_BYTES: Final = 16 << 20
"""The maximum size of the arguments and options of all jobs in a flow, in bytes."""

MAX_RESULTS: Final = 64 << 20
"""The maximum total size of the results that one job gets, in bytes."""

MAX_NOTES_AT_ONCE: Final = 16
"""The maximum number of notes (stored inputs) that the end of a job drops in the same step. Upkeep drops the others."""

NUMBER_BYTES: Final = 4
_MAX_NUMBER: Final = (1 << 8 * NUMBER_BYTES) - 1


class Member(NamedTuple):
    """A job's place in its flow.

    `flow`     the flow's id, 16 bytes
    `number`   the job's number in the flow, from 0
    `first`    the lowest number of the jobs that its failure cancels, if they have not begun; its own number if there are none
    `last`     the highest number of these jobs
    `takes`    the name of the parameter that gets the results of the jobs it awaits; None if it takes no results
    `is_list`  True if the parameter gets a list of the results, in the order of the inputs; False if it gets the only result
    `inputs`   how many results the job gets; 0 if it takes none
    """

    flow: bytes
    number: int
    first: int
    last: int
    takes: str | None = None
    is_list: bool = False
    inputs: int = 0


class Tie(NamedTuple):
    """How a job in a flow contributes to one of the jobs in its `joins`.

    `number`    the index of the input that gets the result, from 0; None if the result is not passed on
    `collects`  True if a failure counts too, and is passed on in place of the result. Otherwise only a success counts
    """

    number: int | None = None
    collects: bool = False


def numbered(record_id: bytes, number: int) -> bytes:
    """Return an id and a number as bytes that sort by both: a flow's id and a job's number, or a job's id and an input's number."""
    return record_id + min(max(number, 0), _MAX_NUMBER).to_bytes(NUMBER_BYTES, "big")


def number_in(place: bytes) -> int:
    """Return the number in bytes that `numbered` returned."""
    return int.from_bytes(place[-NUMBER_BYTES:], "big")


# --- notes ------------------------------------------------------------------------------------------------------------

_RESULT, _FAILURE = b"\0", b"\1"
_MAX_MESSAGE: Final = 2_000


class FailureNote(NamedTuple):
    """How a job ended without success. `type` is the error's type; if it is empty, the job was cancelled, and `message` is the reason.
    `job_id` is the job that failed: this job, or the one whose failure cancelled it."""

    type: str
    message: str
    job_id: bytes


def result_note(result: bytes) -> bytes:
    return _RESULT + result


def failure_note(failure: FailureNote) -> bytes:
    shortened = failure._replace(message=failure.message[:_MAX_MESSAGE].encode(errors="replace").decode())
    return _FAILURE + msgspec.msgpack.encode(shortened)


def read_note(note: bytes) -> bytes | FailureNote:
    """Return the encoded result, or the failure, in a note. Raises ValueError if it cannot be read."""
    if note.startswith(_RESULT):
        return note[1:]
    if note.startswith(_FAILURE):
        return msgspec.msgpack.decode(note[1:], type=FailureNote)
    raise ValueError(f"expected a result or a failure, got {note[:40]!r}")


# --- checks -----------------------------------------------------------------------------------------------------------


def check_member(member: Member, joins: Sequence[bytes], ties: Sequence[Tie]) -> None:
    """Raise ValueError if a job's place in its flow is impossible."""
    if not 0 <= member.first <= member.number <= member.last < MAX_MEMBERS or len(ties) != len(joins) or len(member.flow) != ID_BYTES:
        raise ValueError(
            f"{member!r}, ties={ties!r}: expected 0 <= first <= number <= last < {MAX_MEMBERS:,}, a flow id of {ID_BYTES} bytes, and one "
            f"tie per join ({len(joins)})"
        )
    are_possible = not [tie for tie in ties if tie.number is not None and not 0 <= tie.number < MAX_MEMBERS]
    if not (are_possible and 0 <= member.inputs <= MAX_MEMBERS):
        raise ValueError(f"{member!r}, ties={ties!r}: expected numbers below {MAX_MEMBERS:,}, and at most as many inputs")
    if (member.takes is None) != (member.inputs == 0 and not member.is_list):
        raise ValueError(f"{member!r}: expected takes= if, and only if, the job receives results")
