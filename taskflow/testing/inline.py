"""Runs jobs where they are sent, for `TaskflowJobs.inline`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import ClassVar, Final

import msgspec

from taskflow.broker.protocol import Added, Refused
from taskflow.model.envelope import Lease
from taskflow.model.record import Status
from taskflow.model.verdict import Retried, Settlement
from taskflow.testing.assertions import SentJob
from taskflow.testing.broker import RecordingBroker
from taskflow.testing.passes import Pass, PassState, runs_inline

DEEPEST: Final = 50
"""How many jobs may run inside one another. One that is sent inside the last of them waits."""


class _Around(msgspec.Struct, frozen=True):
    """The run in which a job is sent: how many runs it is in, and the event loop and the state of the innermost one."""

    depth: int
    loop: asyncio.AbstractEventLoop
    state: PassState


_around: Final[ContextVar[_Around | None]] = ContextVar("taskflow_inline_run", default=None)


class Inline:
    """Runs jobs where they are sent. It may be called from several threads and event loops.

    `ran`       the jobs that have begun
    `failures`  the failures for good, and what else the test should know
    """

    def __init__(
        self,
        broker: RecordingBroker,
        at_work: Callable[[], AbstractAsyncContextManager[PassState]],
        check: Callable[[PassState], Awaitable[None]],
    ) -> None:
        self._broker = broker
        self._at_work = at_work
        self._check = check
        self.ran: list[SentJob] = []
        self.failures: list[Exception] = []

    async def __call__(self, answers: Sequence[Added | Refused | BaseException]) -> None:
        """Run those of the added jobs that are ready, with their retries and follow-ups."""
        added = [answer.id for answer in answers if isinstance(answer, Added)]
        ready = [record for record in await self._broker.read(added) if record is not None and record.status is Status.READY]
        if not ready:
            return
        around, loop = _around.get(), asyncio.get_running_loop()
        depth = 1 if around is None else around.depth + 1
        if depth > DEEPEST:
            job = ready[0].job
            self.failures.append(AssertionError(f"{DEEPEST} jobs run inside one another, and then {job} was sent: does it send itself?"))
            return
        ids = [record.id for record in ready]
        if around is not None and around.loop is loop:
            await self._run(ids, _Around(depth, loop, around.state))
            return
        async with self._at_work() as state:
            await self._run(ids, _Around(depth, loop, state))
            await self._check(state)
        self.failures += state.failures

    async def _run(self, ids: list[bytes], around: _Around) -> None:
        token, inline = _around.set(around), runs_inline.set(True)
        try:
            await _InlinePass(self._broker, around.state, ids, self.ran).run()
        finally:
            runs_inline.reset(inline)
            _around.reset(token)


class _InlinePass(Pass):
    """Runs certain jobs in their order. A retry comes at once, as if its wait had passed."""

    heeds: ClassVar[tuple[str, ...]] = ()

    def __init__(self, broker: RecordingBroker, state: PassState, ids: Sequence[bytes], ran: list[SentJob]) -> None:
        super().__init__(broker, state)
        self._ids = deque(ids)
        self._ran = ran

    async def _leases(self) -> list[Lease]:
        while self._ids and not self._running:
            self._request += 1
            lease = await self._broker.claim_one(self._session.id, self._request, self._ids.popleft())
            if lease is not None:
                if not lease.failures:
                    self._ran.append(SentJob(lease.envelope, lease.created_at))
                return [lease]
        return []

    def _settled(self, settlement: Settlement) -> None:
        if isinstance(settlement.verdict, Retried):
            self._ids.appendleft(settlement.id)
        self._ids += [envelope.id for envelope in settlement.follow_ups]
