"""Creates the envelopes of flows as the application does: groups of chains, with or without a join."""

from __future__ import annotations

from typing import Any, NamedTuple

from taskflow.model.envelope import Envelope
from taskflow.model.flow import Member, Tie
from tests.support.world import World


class Flow(NamedTuple):
    """A flow. `branches` are the chains of its group, and `join` gets the results of their last jobs."""

    id: bytes
    branches: list[list[Envelope]]
    join: Envelope | None

    @property
    def firsts(self) -> list[Envelope]:
        return [branch[0] for branch in self.branches]

    @property
    def envelopes(self) -> list[Envelope]:
        joins = [] if self.join is None else [self.join]
        return [*(each for branch in self.branches for each in branch), *joins]


def a_flow(world: World, *, members: int = 2, length: int = 1, collects: bool = False, joins: bool = True, **fields: Any) -> Flow:
    """Return a group of `members` chains of `length` jobs, and a join if it `joins`. The queue of each job is its number in its chain, and
    the join's queue is "join"."""
    flow_id, total = world.an_id(), members * length + joins
    whole = (flow_id, total - 1, 0, total - 1)
    join = None
    if joins:
        join = world.an_envelope(queue="join", awaits=members, member=Member(*whole, takes="xs", is_list=True, inputs=members), **fields)
    branches = [_branch(world, flow_id, number, length, total, join, collects, fields) for number in range(members)]
    return Flow(flow_id, branches, join)


def _branch(
    world: World, flow_id: bytes, number: int, length: int, total: int, join: Envelope | None, collects: bool, fields: dict[str, Any]
) -> list[Envelope]:
    begins = number * length
    scope = (begins, begins + length - 1) if collects else (0, total - 1)
    ids = [world.an_id() for _ in range(length)]
    branch = list[Envelope]()
    for at, job_id in enumerate(ids):
        inputs: dict[str, Any] = {"takes": "x", "inputs": 1} if at else {}
        tie: dict[str, Any] = {}
        if at < length - 1:
            tie = {"joins": (ids[at + 1],), "ties": (Tie(0),)}
        elif join is not None:
            tie = {"joins": (join.id,), "ties": (Tie(number, collects),)}
        member = Member(flow_id, begins + at, *scope, **inputs)
        branch.append(world.an_envelope(id=job_id, queue=str(at), awaits=int(at > 0), member=member, **tie, **fields))
    return branch


async def sent(world: World, **given: Any) -> Flow:
    """Add a flow, and return it."""
    flow = a_flow(world, **given)
    await world.enqueue(*flow.envelopes)
    return flow
