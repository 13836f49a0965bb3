"""A worker: the pipe from claim to settlement, and its attendants."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from taskflow.app.app import App
from taskflow.app.current import default_app
from taskflow.broker.protocol import Broker
from taskflow.model.envelope import Lease
from taskflow.model.errors import BrokerError
from taskflow.model.record import Status
from taskflow.model.seams import Seams
from taskflow.model.session import Beat, BeatAnswer, Session
from taskflow.model.verdict import Failed, HandedBack, Settlement
from taskflow.worker.executor import CANCELLED, LOST, WINDING_DOWN, Executor
from taskflow.worker.fetcher import Fetcher
from taskflow.worker.holdings import Holdings
from taskflow.worker.keeper import Keeper
from taskflow.worker.queues import QueueChoice
from taskflow.worker.settler import Settler
from taskflow.worker.upkeep import Upkeep

log: Final = logging.getLogger("taskflow.worker")

DRAIN_LOOK: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """`grace`: seconds that runs have to finish when winding down. `ttl`: seconds without a beat after which others may take the jobs."""

    queues: QueueChoice = field(default_factory=QueueChoice)
    concurrency: int = 100
    grace: float = 25.0
    ttl: float = 20.0
    drain_horizon: float = 60.0


@dataclass
class Tally:
    """What a worker's runs came to."""

    ended: int = 0
    failed: int = 0
    retried: int = 0


class Worker:
    """Works jobs while its block lasts, then winds down: ``async with Worker(concurrency=50): ...``"""

    def __init__(
        self, *, queues: str | None = None, concurrency: int = 100, app: App | None = None, options: WorkerOptions | None = None
    ) -> None:
        choice = QueueChoice.parse(queues) if queues else QueueChoice()
        self.options = options or WorkerOptions(queues=choice, concurrency=concurrency)
        self.tally = Tally()
        self._app = app or default_app()
        self._seams = Seams()
        self._lives: _Life | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        broker = self._app.broker()
        lifespan = self._app.settings.lifespan
        state = await self._stack.enter_async_context(lifespan()) if lifespan is not None else None
        self._pool = ThreadPoolExecutor(self.options.concurrency, thread_name_prefix="taskflow-job")
        executor = Executor(self._app.registry, middleware=self._app.settings.middleware, pool=self._pool, seams=self._seams, state=state)
        self._broker = broker
        self._executor = executor
        await self._begin()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lives is not None:
            await self._lives.wind_down(self.options.grace)
        self._pool.shutdown(wait=False, cancel_futures=True)
        await self._stack.aclose()

    async def _begin(self) -> None:
        self._lives = _Life(self._broker, self._executor, self.options, self._seams, self.tally, on_lost=self._begin_again)
        await self._lives.begin()

    def _begin_again(self) -> None:
        """The session is dead: what it held belongs to others now. A new one takes its place."""
        self._rebirth = asyncio.get_running_loop().create_task(self._reborn())

    async def _reborn(self) -> None:
        lost = self._lives
        if lost is not None:
            await lost.abandon()
        await self._begin()

    async def drained(self) -> None:
        """Until its queues have nothing READY or RUNNING anywhere, and nothing SCHEDULED within the horizon."""
        while not await self._is_drained():  # noqa: ASYNC110  # what other workers do is seen only by looking
            await asyncio.sleep(DRAIN_LOOK)

    async def _is_drained(self) -> bool:
        names = self.options.queues.names
        for queue in await self._broker.console.queues():
            if names and queue.name not in names:
                continue
            if queue.counts[Status.READY] or queue.counts[Status.RUNNING]:
                return False
            if queue.next_due_in is not None and queue.next_due_in <= self.options.drain_horizon:
                return False
        return True


class _Life:
    """One session of a worker, from its registration to its end."""

    def __init__(self, broker: Broker, executor: Executor, options: WorkerOptions, seams: Seams, tally: Tally, *, on_lost: Any) -> None:
        self._broker = broker
        self._executor = executor
        self._options = options
        self._seams = seams
        self._tally = tally
        self._on_lost = on_lost
        self._session = Session(
            id=secrets.token_bytes(16),
            name=f"{socket.gethostname()}:{os.getpid()}",
            ttl=options.ttl,
            queues=options.queues.names,
            concurrency=options.concurrency,
        )
        self._holdings = Holdings(options.concurrency)
        self._settler = Settler(broker, self._holdings)
        self._fetcher = Fetcher(broker, self._session.id, options.queues, self._holdings, self._start)
        self._runs: set[asyncio.Task[None]] = set()
        self._attendants: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._broker.register(self._session)
        self._keeper = Keeper(
            self._broker.sibling(),
            self._session,
            self._holdings,
            seen=lambda: self._fetcher.request,
            on_answer=lambda answer: self._in_loop(self._heed, answer),
            on_lost=lambda why: self._in_loop(self._lose, why),
            start_thread=self._seams.start_thread,
        )
        self._keeper.start()
        upkeep = Upkeep(self._broker, self._seams.chance)
        self._attendants = [self._attend(self._settler.run()), self._attend(upkeep.run()), self._attend(self._fetcher.run())]

    async def wind_down(self, grace: float) -> None:
        """Stop claiming, let runs finish for the grace time, cancel and hand back what is left, leave."""
        settling, *others = self._attendants
        await _end(others)
        if self._runs:
            await asyncio.wait(self._runs, timeout=grace)
        for holding in self._holdings.all():
            holding.ask_to_stop(WINDING_DOWN)
        if self._runs:
            await asyncio.wait(self._runs, timeout=5.0)
        await self._until_settled(5.0)
        await _end([settling])
        await self._keeper.stop()
        await self._leave()

    async def abandon(self) -> None:
        """The session is dead: cancel what runs; what had ended is still offered, and the store decides."""
        settling, *others = self._attendants
        await _end(others)
        for holding in self._holdings.all():
            holding.ask_to_stop(LOST)
        if self._runs:
            await asyncio.wait(self._runs, timeout=5.0)
        await self._until_settled(5.0)
        await _end([settling])
        await self._keeper.stop()

    def _start(self, lease: Lease) -> None:
        holding = self._holdings.add(lease)
        task = self._loop.create_task(self._run(holding))
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)

    async def _run(self, holding: Any) -> None:
        settlement: Settlement | None = None
        try:
            settlement = await self._executor.run(holding)
        finally:
            # A cancellation that arrives outside of the executor's care still gives the job back.
            settlement = settlement or _handed_back(holding.lease)
            self._count(settlement)
            self._settler.offer(settlement)

    def _count(self, settlement: Settlement) -> None:
        self._tally.ended += settlement.verdict.is_final
        self._tally.failed += isinstance(settlement.verdict, Failed)

    def _heed(self, answer: BeatAnswer) -> None:
        for claim in answer.stopping:
            if (holding := self._holdings.get(claim)) is not None:
                holding.ask_to_stop(CANCELLED)
        for claim in answer.lost:
            if (holding := self._holdings.get(claim)) is not None:
                holding.ask_to_stop(LOST)
                self._holdings.remove(claim)

    def _lose(self, why: str) -> None:
        log.error("the session is lost: %s", why)
        self._on_lost()

    def _in_loop(self, function: Any, *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            log.debug("the worker's loop is closed")

    def _attend(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._loop.create_task(coroutine)

    async def _until_settled(self, patience: float) -> None:
        give_up_at = time.monotonic() + patience
        while len(self._holdings) and time.monotonic() < give_up_at:
            try:
                async with asyncio.timeout(max(0.0, give_up_at - time.monotonic())):
                    await self._holdings.wait_for_change()
            except TimeoutError:
                return

    async def _leave(self) -> None:
        try:
            await self._broker.beat(Beat(session=self._session.id, leaving=True))
        except BrokerError as error:
            log.warning("the session could not take its leave, and will lapse: %s", error)


def _handed_back(lease: Lease) -> Settlement:
    return Settlement(id=lease.envelope.id, epoch=lease.epoch, claim=lease.claim, verdict=HandedBack())


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
