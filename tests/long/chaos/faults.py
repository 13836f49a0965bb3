"""The processes of a chaos test, and the faults that hit them and their store, at random but from a seed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from tests.cli.processes import Running, Shell
from tests.cli.supervised import is_alive, pids
from tests.long.chaos import tables
from tests.long.chaos.ledger import VARIABLE, Ledger
from tests.long.chaos.places import Place

ROOT: Final = Path(__file__).parents[3]

PRODUCERS: Final = 2
SUPERVISED: Final = 2


class Fleet:
    """Two workers under a supervisor, a third, lone worker, and producers. `ttl` is the workers'."""

    def __init__(self, shell: Shell, place: Place, ledger: Ledger, ttl: float, seed: int) -> None:
        self.place, self.ledger, self.ttl = place, ledger, ttl
        self._shell = shell
        self._seeds = iter(range(seed * 1_000 + 1, (seed + 1) * 1_000))
        self._ends_at = 0.0
        self.producers = list[Running]()

    def begin(self, seconds: float) -> None:
        """Start everything. The producers send for this many seconds."""
        self._ends_at = time.monotonic() + seconds
        self._start("producers", "-m", "tests.long.chaos.producers", "0", "0").end()
        self.supervisor, self.lone = self.start_supervisor(), self.start_lone()
        self.producers = [self.start_producer() for _ in range(PRODUCERS)]

    def start_supervisor(self) -> Running:
        return self._worker("fleet", "--processes", str(SUPERVISED))

    def start_lone(self) -> Running:
        return self._worker("lone")

    def start_producer(self) -> Running:
        seconds = max(0.0, self._ends_at - time.monotonic())
        return self._start("producers", "-m", "tests.long.chaos.producers", str(next(self._seeds)), str(seconds))

    def workers(self) -> list[int]:
        """Return the processes of all workers that are alive."""
        return [pid for pid in (*pids(self.supervisor), self.lone.process.pid) if is_alive(pid)]

    def _worker(self, client: str, *arguments: str) -> Running:
        options = ("--ttl", str(self.ttl), "--grace", "2", "--concurrency", "8", "--start-timeout", "60", "--log-level", "info")
        return self._start(client, "-m", "taskflow", "worker", "tests.long.chaos.jobs", *options, *arguments)

    def _start(self, client: str, *arguments: str) -> Running:
        environment = {
            **self._shell.environment,
            "TASKFLOW_BROKER": self.place.urls[client],
            "PYTHONPATH": str(ROOT),
            VARIABLE: str(self.ledger.path),
            tables.VARIABLE: self.place.urls["users"] if self.place.has_tables else "",
        }
        return self._shell.start(*arguments, env=environment)


class Chaos:
    """Begins a fault every second or so until it is over. Each fault ends by itself, and leaves nothing broken."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self._fleet = fleet
        self._place, self._ledger, self._ttl = fleet.place, fleet.ledger, fleet.ttl
        self._chance = random.Random(seed)
        self._locks = {victim: asyncio.Lock() for victim in ("store", "supervisor", "producers", "proxies")}
        self._stopped = set[int]()
        faults: dict[Callable[[], Coroutine[Any, Any, None]], int] = {
            self.kill_worker: 4,
            self.stop_worker: 4,
            self.stop_and_kill_worker: 1,
            self.kill_supervisor: 1,
            self.deploy: 1,
            self.kill_producer: 2,
            self.take_store_away: 3,
        }
        if self._place.proxies:
            faults |= {self.cut: 4, self.slow: 2, self.lose: 3, self.partition: 3}
        self._faults, self._weights = list(faults), list(faults.values())

    async def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            while time.monotonic() < until:
                [fault] = self._chance.choices(self._faults, self._weights)
                group.create_task(fault())
                await asyncio.sleep(self._chance.uniform(0.3, 2.5))

    # --- processes -------------------------------------------------------------------------------------------------

    async def kill_worker(self) -> None:
        if victims := self._victims():
            await self._kill(self._chance.choice(victims))

    async def stop_worker(self) -> None:
        """Stop a worker for a shorter time than the ttl, or for longer than the lease can live."""
        if victims := self._victims():
            async with self._stop(self._chance.choice(victims)):
                await asyncio.sleep(self._ttl * self._chance.choice((0.1, 0.5, 1.5, 2.2)))

    async def stop_and_kill_worker(self) -> None:
        if victims := self._victims():
            pid = self._chance.choice(victims)
            async with self._stop(pid):
                await asyncio.sleep(self._ttl * self._chance.uniform(0.5, 1.5))
                await self._kill(pid)

    async def kill_supervisor(self) -> None:
        """Its workers end with it."""
        async with self._alone_with("supervisor") as is_alone:
            if is_alone:
                for pid in pids(self._fleet.supervisor):
                    if is_alive(pid):
                        self._ledger.write("killed", pid=pid, note="with its supervisor")
                self._ledger.write("killed", pid=self._fleet.supervisor.process.pid, note="supervisor")
                self._fleet.supervisor.signal(signal.SIGKILL)
                await asyncio.to_thread(self._fleet.supervisor.process.wait)
                self._fleet.supervisor = self._fleet.start_supervisor()
                await asyncio.sleep(3)

    async def deploy(self) -> None:
        """The supervisor replaces its workers one by one; the lone worker winds down."""
        async with self._alone_with("supervisor") as is_alone:
            if is_alone and "working as" in self._fleet.supervisor.said:
                self._ledger.write("fault", pid=self._fleet.supervisor.process.pid, note="deploy")
                self._fleet.supervisor.signal(signal.SIGHUP)
                await asyncio.sleep(3)
        lone = self._fleet.lone
        if "working as" in lone.said and lone.process.pid not in self._stopped:
            lone.signal(signal.SIGTERM)
            await self._replace(lone)

    async def kill_producer(self) -> None:
        async with self._alone_with("producers") as is_alone:
            if is_alone:
                number = self._chance.randrange(len(self._fleet.producers))
                self._ledger.write("killed", pid=self._fleet.producers[number].process.pid, note="producer")
                self._fleet.producers[number].signal(signal.SIGKILL)
                self._fleet.producers[number] = self._fleet.start_producer()
                await asyncio.sleep(2)

    async def _kill(self, pid: int) -> None:
        self._ledger.write("killed", pid=pid)
        _signal(pid, signal.SIGKILL)
        if pid == (lone := self._fleet.lone).process.pid:
            await self._replace(lone)

    async def _replace(self, lone: Running) -> None:
        """Start another lone worker when this one has ended, unless another fault has done so."""
        await asyncio.to_thread(lone.process.wait)
        await asyncio.sleep(self._chance.uniform(0, 2))
        if self._fleet.lone is lone:
            self._fleet.lone = self._fleet.start_lone()

    @asynccontextmanager
    async def _stop(self, pid: int) -> AsyncIterator[None]:
        self._stopped.add(pid)
        self._ledger.write("stopped", pid=pid)
        _signal(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(pid, signal.SIGCONT)
            self._ledger.write("continued", pid=pid)
            self._stopped.discard(pid)

    def _victims(self) -> list[int]:
        """Return the workers that are not stopped already, except one, which is left alone so that jobs run."""
        awake = [pid for pid in self._fleet.workers() if pid not in self._stopped]
        return awake if len(awake) > 1 else []

    # --- the store and the way there ---------------------------------------------------------------------------------

    async def take_store_away(self) -> None:
        async with self._alone_with("store") as is_alone:
            if is_alone:
                async with self._cut_off(0, "the store is away"):
                    await self._place.be_away(self._chance.choice((0.1, 1.0, 0.6 * self._ttl, 1.3 * self._ttl)), self._chance)
                await asyncio.sleep(self._ttl)

    async def cut(self) -> None:
        client = self._chance.choice(list(self._place.proxies))
        self._ledger.write("fault", note=f"connections of {client} are cut", pid=0)
        await asyncio.to_thread(self._place.proxies[client].cut_all)

    async def slow(self) -> None:
        proxy = self._place.proxies[self._chance.choice(list(self._place.proxies))]
        proxy.latency = self._chance.uniform(0.01, 0.3)
        await asyncio.sleep(self._chance.uniform(1, 5))
        proxy.latency = 0.0

    async def lose(self) -> None:
        """Commands and replies get lost, where the proxy can tell them apart."""
        self._place.loses = self._chance.choice((0.01, 0.1))
        await asyncio.sleep(self._chance.uniform(0.5, 3))
        self._place.loses = 0.0

    async def partition(self) -> None:
        """A client is refused, or not answered, for shorter or longer than a lease lives. The others go on."""
        async with self._alone_with("proxies") as is_alone:
            if not is_alone:
                return
            client = self._chance.choice(list(self._place.proxies))
            proxy = self._place.proxies[client]
            lone = self._fleet.lone.process.pid
            victims = {"lone": [lone], "fleet": [pid for pid in self._fleet.workers() if pid != lone]}.get(client, [])
            is_silent = client != "users" and self._chance.random() < 0.5
            async with contextlib.AsyncExitStack() as stack:
                for pid in victims:
                    await stack.enter_async_context(self._cut_off(pid, f"{client} {'not answered' if is_silent else 'refused'}"))
                await asyncio.to_thread(proxy.blackhole if is_silent else proxy.refuse)
                if not is_silent:
                    await asyncio.to_thread(proxy.cut_all)
                await asyncio.sleep(self._ttl * self._chance.choice((0.1, 0.7, 1.6)))
                await asyncio.to_thread(proxy.heal if is_silent else proxy.listen_again)

    @asynccontextmanager
    async def _cut_off(self, pid: int, note: str) -> AsyncIterator[None]:
        self._ledger.write("cut off", pid=pid, note=note)
        yield
        self._ledger.write("healed", pid=pid, note=note)

    @asynccontextmanager
    async def _alone_with(self, victim: str) -> AsyncIterator[bool]:
        """Yield True if no other fault hits the victim. Otherwise there is nothing to do."""
        lock = self._locks[victim]
        if lock.locked():
            yield False
            return
        async with lock:
            yield True


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
