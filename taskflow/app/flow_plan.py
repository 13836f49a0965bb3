"""Arranges a flow's jobs as a tree, numbers them, and ties each to the jobs that wait for it. Nothing is sent here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from taskflow.app.job_type import BareCall
from taskflow.model.flow import MAX_FLOW_BYTES, MAX_JOBS, MAX_MEMBERS, Member, Tie

MAX_DEPTH: Final = 50
"""The maximum depth of nested groups."""
TIE_BYTES: Final = 24
"""The bytes that a tie between two jobs adds to the size of a flow."""


class Step(NamedTuple):
    """A job of a flow. `takes` is the parameter that the results fill, or None if the job only waits."""

    call: BareCall[Any]
    takes: str | None = None


class Fan(NamedTuple):
    """Branches that run side by side. If `collects` is True, one branch may fail without affecting the others."""

    branches: tuple[Chain, ...]
    collects: bool


class Chain(NamedTuple):
    """Steps and fans that run one after another.

    `jobs`, `joins`     the number of its jobs, and the number of those that follow a group
    `size`              the bytes of the jobs and of the ties between them
    `entries`, `exits`  the number of jobs that begin the chain, and the number of those that end it
    `depth`             how deeply groups are nested; 0 without a group
    """

    parts: tuple[Step | Fan, ...]
    jobs: int
    size: int
    entries: int
    exits: int
    depth: int = 0
    joins: int = 0

    @property
    def ends_in_list(self) -> bool:
        return isinstance(self.parts[-1], Fan)

    def calls(self) -> Iterator[BareCall[Any]]:
        for part in self.parts:
            if isinstance(part, Step):
                yield part.call
            else:
                for branch in part.branches:
                    yield from branch.calls()

    def then(self, other: Chain) -> Chain:
        """Return a chain in which `other` follows this one. Raises ValueError if the result is too large."""
        return _checked(
            Chain(
                (*self.parts, *other.parts),
                self.jobs + other.jobs,
                self.size + other.size + TIE_BYTES * self.exits * other.entries,
                self.entries or other.entries,
                other.exits,
                max(self.depth, other.depth),
                self.joins + other.joins + (self.ends_in_list and not isinstance(other.parts[0], Fan)),
            )
        )


def chain_of_step(step: Step) -> Chain:
    """Return a chain of one job. Raises ValueError if the job cannot be in a flow."""
    envelope = step.call.envelope
    if envelope.key is not None:
        raise ValueError(no_key(envelope.job, envelope.key_text))
    return Chain((step,), 1, len(envelope.payload) + len(envelope.on_failure or b""), 1, 1)


def no_key(job: str, key: str | None) -> str:
    """Return the message for a job with a key. If a live job had that key, the call would add no job, and the flow would wait forever."""
    return f'{job} has the key {key!r}, but a job in a flow cannot have a key: .options(key="") removes it'


def chain_of_fan(branches: Sequence[Chain], *, collects: bool) -> Chain:
    """Return a chain of one group. Raises ValueError if it is too large."""
    jobs, size = sum(each.jobs for each in branches), sum(each.size for each in branches)
    depth = 1 + max((each.depth for each in branches), default=0)
    entries, joins = sum(each.entries for each in branches), sum(each.joins for each in branches)
    return _checked(Chain((Fan(tuple(branches), collects),), jobs, size, entries, len(branches), depth, joins))


def _checked(chain: Chain) -> Chain:
    if chain.jobs - chain.joins > MAX_JOBS or chain.jobs > MAX_MEMBERS:
        most = f"it can have at most {MAX_JOBS:,}, apart from those that follow a group"
        raise ValueError(f"a flow of {chain.jobs:,} jobs: {most}; send several flows, or enqueue() the calls")
    if chain.size > MAX_FLOW_BYTES:
        large = f"a flow of {chain.size:,} bytes: it can have at most {MAX_FLOW_BYTES:,}"
        raise ValueError(f"{large}; pass references to large data, such as ids, and put a job between two large groups")
    if chain.depth > MAX_DEPTH:
        raise ValueError(f"groups nested {chain.depth} deep: expected at most {MAX_DEPTH}")
    return chain


class Incoming(NamedTuple):
    """The jobs that end before a part of a chain begins.

    `sources`   their numbers
    `is_list`   True if the part takes their results as a list
    `collects`  True if it takes their failures, too
    `passes`    False if it only waits for them, because an empty group is in between
    """

    sources: tuple[int, ...] = ()
    is_list: bool = False
    collects: bool = False
    passes: bool = True


class Plan(NamedTuple):
    """A flow that is ready to be sent.

    `flow`   the id of the flow
    `calls`  the calls of its jobs, by number
    `last`   the jobs that end the flow
    """

    flow: bytes
    calls: list[BareCall[Any]]
    last: Incoming


def plan_of(chain: Chain, new_id: Callable[[], bytes], start: Mapping[str, Any] = {}) -> Plan:
    """Number the jobs of a flow, and tie each to the jobs that wait for it. All jobs get new ids, so that a flow can be sent again. `start`
    has additional envelope fields for the jobs that begin the flow."""
    flow, placed = new_id(), list[_Placed]()
    last = _place(placed, flow, chain, Incoming(), (0, chain.jobs - 1))
    ids = [new_id() for _ in placed]
    calls = list[BareCall[Any]]()
    for job_id, (call, member, awaits, joins, ties) in zip(ids, placed, strict=True):
        more = {"awaits": awaits, "joins": tuple([ids[other] for other in joins]), "ties": tuple(ties), **({} if awaits else start)}
        calls.append(call.stamped(msgspec.structs.replace(call.envelope, id=job_id, member=member, **more)))
    return Plan(flow, calls, last)


class _Placed(NamedTuple):
    """A job with its place in the flow. `joins` has the numbers of the jobs that wait for it, each with its tie in `ties`."""

    call: BareCall[Any]
    member: Member
    awaits: int
    joins: list[int]
    ties: list[Tie]


def _place(placed: list[_Placed], flow: bytes, chain: Chain, incoming: Incoming, scope: tuple[int, int]) -> Incoming:
    """Add the jobs of a chain to those that are placed already, and return those that end it. A failure cancels the jobs with numbers in
    `scope` (first, last). The numbers within each branch of a group are consecutive."""
    for part in chain.parts:
        if isinstance(part, Step):
            number, has_inputs = len(placed), part.takes is not None and incoming.passes
            for place, source in enumerate(incoming.sources):
                placed[source].joins.append(number)
                placed[source].ties.append(Tie(place if has_inputs else None, incoming.collects))
            inputs = len(incoming.sources) if has_inputs else 0
            member = Member(flow, number, *scope, part.takes, incoming.is_list and part.takes is not None, inputs)
            placed.append(_Placed(part.call, member, len(incoming.sources), [], []))
            incoming = Incoming((number,))
        elif part.branches:
            sources = list[int]()
            for branch in part.branches:
                own = (len(placed), len(placed) + branch.jobs - 1) if part.collects else scope
                sources += _place(placed, flow, branch, incoming, own).sources
            incoming = Incoming(tuple(sources), is_list=True, collects=part.collects)
        else:
            incoming = incoming._replace(is_list=True, passes=False)
    return incoming
