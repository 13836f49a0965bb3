"""A worker to be killed, which uses only the broker's operations: `python -m tests.support.child PLACE CLOCK FAILPOINT`.

It prints the answers that it gets, line by line: `added ID`, `settled ID ok|stale`, `lost`, `done`.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from taskflow.broker.protocol import Broker
from taskflow.model.clock import Clock, Seams
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.errors import BrokerUnavailable, SessionLost
from taskflow.model.session import Beat, Session
from taskflow.model.verdict import Settlement
from tests.support.failpoints import FailingBroker, Failpoint
from tests.support.fileclock import FileClock
from tests.support.processes import HOST
from tests.support.verdicts import succeeded

T = TypeVar("T")
Say = Callable[[str], None]

JOBS: Final = 6
TTL: Final = 20.0


def an_id(name: str | bytes) -> bytes:
    """Return an id that is always the same for a name, so that the other process knows it too."""
    given = name if isinstance(name, bytes) else name.encode()
    return hashlib.blake2b(given, digest_size=16).digest()


def envelopes() -> list[Envelope]:
    return [Envelope(id=an_id(f"job {number}"), job="work", payload=b"") for number in range(JOBS)]


def follow_up(envelope: Envelope) -> Envelope:
    return Envelope(id=an_id(envelope.id), job="after", payload=b"")


def settled_with_follow_up(lease: Lease) -> Settlement:
    return succeeded(lease, follow_ups=(follow_up(lease.envelope),) if lease.envelope.job == "work" else ())


def a_session(name: str) -> Session:
    return Session(id=an_id(f"session {name}"), name=name, ttl=TTL)


async def work(broker: Broker, say: Say) -> None:
    """Send all jobs, then run jobs until none is left or the session is lost."""
    session = a_session("child")
    try:
        await _resent(partial(broker.register, session))
        await _send(broker, say)
        await _work_off(broker, session, say)
        say("done")
    except SessionLost:
        say("lost")


async def _send(broker: Broker, say: Say) -> None:
    whole = envelopes()
    for batch in (whole[: JOBS // 2], whole[JOBS // 2 :]):
        answers = await _resent(partial(broker.enqueue, batch))
        for answer in answers:
            say(f"added {answer.id.hex()}")


async def _work_off(broker: Broker, session: Session, say: Say) -> None:
    request = 1
    while leases := await _resent(partial(broker.claim, session.id, request, (), 2)):
        claims = tuple(lease.claim for lease in leases)
        settlements = [settled_with_follow_up(lease) for lease in leases]
        await _resent(partial(broker.beat, Beat(session=session.id, claims=claims, seen=request)))
        answers = await _resent(partial(broker.settle, settlements))
        for settlement, answer in zip(settlements, answers, strict=True):
            say(f"settled {settlement.id.hex()} {answer.value}")
        await _resent(partial(broker.upkeep, 100))
        request += 1


async def _resent(call: Callable[[], Awaitable[T]]) -> T:
    """Call the function, and once more if the reply was lost: it isn't known whether the first call took effect."""
    try:
        return await call()
    except BrokerUnavailable:
        return await call()


def broker_at(place: str, clock: Clock) -> Broker:
    """Return a broker on the store at `place`, as a harness of tests/support/harnesses.py names it."""
    kind, *where = place.split(" ")
    match kind, where:
        case "sqlite", [path]:
            from taskflow.broker.sqlite import SqliteBroker

            return SqliteBroker(path, seams=Seams(clock))
        case "redis", [port, namespace]:
            from taskflow.broker import redis

            return redis.RedisBroker(redis.RedisTarget(host=HOST, port=int(port)), namespace=namespace, clock=clock)
        case "postgres", [port, namespace]:
            from taskflow.broker import postgres

            server = postgres.PostgresTarget(host=HOST, port=int(port), user="postgres", database="postgres", tls="disable")
            return postgres.PostgresBroker(server, namespace=namespace, clock=clock)
        case _:
            raise ValueError(f"{place!r} is no store of a harness")


async def main(place: str, clock: str, failpoint: str) -> None:
    broker = broker_at(place, FileClock(Path(clock)))
    await work(FailingBroker(broker, Failpoint.parse(failpoint)).as_broker, lambda line: print(line, flush=True))
    await broker.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
