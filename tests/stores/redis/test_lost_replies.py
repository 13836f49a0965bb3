"""What took effect and was not answered is sent again, and does nothing twice."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import pytest

from taskflow.broker.protocol import Added, Refused
from taskflow.broker.redis import RedisBroker, RedisTarget
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.errors import BrokerUnavailable
from taskflow.model.ids import IdFactory
from taskflow.model.session import Beat, Session
from taskflow.model.verdict import Settled
from tests.stores.redis.scene import verb_of
from tests.support.binaries import ServerBinary
from tests.support.proxy import DROP_COMMAND, DROP_REPLY, PASS, Command, Fate, Proxy
from tests.support.servers import HOST, RedisServer, redis_binaries
from tests.support.verdicts import succeeded

T = TypeVar("T")

VERBS: Final = ("add", "claim", "succeed")
PAYLOADS: Final = (b"payload", bytes(2_000), bytes(3_000))
"""Large ones go ahead of the call, and are fetched after the claim."""

ENOUGH: Final = 50
"""Replies of each verb that are dropped."""


class Loses:
    """A proxy's rule: of these verbs it loses most replies, and some commands."""

    def __init__(self, seed: int) -> None:
        self.dropped: Counter[str] = Counter()
        self._chance = random.Random(seed)

    def __call__(self, command: Command) -> Fate:
        verb, draw = verb_of(command), self._chance.random()
        if verb not in VERBS or draw > 0.7:
            return PASS
        if draw > 0.6:
            return DROP_COMMAND
        self.dropped[verb] += 1
        return DROP_REPLY


async def resent(verb: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await verb()
        except BrokerUnavailable:
            continue


class Rounds:
    """One session that sends, claims, beats and settles three jobs at a time, each verb until it is answered."""

    def __init__(self, broker: RedisBroker) -> None:
        self.rounds = 0
        self._broker = broker
        self._session = Session(id=os.urandom(16), name="worker")
        self._an_id = IdFactory()

    async def begin(self) -> None:
        await self._broker.register(self._session)

    async def one(self) -> None:
        self.rounds += 1
        envelopes = [Envelope(id=self._an_id(), job="work", payload=payload) for payload in PAYLOADS]
        answers = await resent(lambda: self._broker.enqueue(envelopes))
        assert all(isinstance(answer, Added) or is_own_repeat(answer) for answer in answers)
        leases = await resent(lambda: self._broker.claim(self._session.id, self.rounds, ["default"], 3))
        assert [lease.envelope.id for lease in leases] == [envelope.id for envelope in envelopes]
        assert [lease.envelope.payload for lease in leases] == list(PAYLOADS)
        assert [lease.epoch for lease in leases] == [1, 1, 1]
        await self._beat(leases)
        settlements = [succeeded(lease) for lease in leases]
        assert await resent(lambda: self._broker.settle(settlements)) == [Settled.OK] * 3

    async def _beat(self, leases: list[Lease]) -> None:
        beat = Beat(session=self._session.id, claims=tuple(lease.claim for lease in leases), seen=self.rounds)
        answer = await resent(lambda: self._broker.beat(beat))
        assert (answer.lost, answer.stopping, answer.ghosts) == ((), (), 0)


def is_own_repeat(answer: Refused) -> bool:
    return answer.because == "id" and answer.standing == answer.id


@pytest.mark.parametrize("found", redis_binaries(), ids=lambda found: found.name)
async def test_no_verb_takes_effect_twice_for_a_reply_that_is_lost(found: ServerBinary, capsys: pytest.CaptureFixture[str]) -> None:
    """At least fifty lost replies of each verb, and whatever was sent again left the store as if nothing had been lost."""
    with RedisServer(found.path) as server, Proxy(HOST, server.port, rule=(loses := Loses(seed=7))) as proxy:
        far, near = (RedisBroker(RedisTarget(host=HOST, port=port)) for port in (proxy.port, server.port))
        rounds = Rounds(far)
        await rounds.begin()
        while min(loses.dropped[verb] for verb in VERBS) < ENOUGH:
            await rounds.one()
        totals = (await near.console.metrics()).totals["default"]
        await far.close()
        await near.close()
    with capsys.disabled():
        print(f"\n{found.name}: replies dropped after their effect: {dict(loses.dropped)}; {rounds.rounds} rounds")
    assert totals == {"enqueue": 3 * rounds.rounds, "claim": 3 * rounds.rounds, "succeed": 3 * rounds.rounds}
