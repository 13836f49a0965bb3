"""A producer of a chaos test: `python -m tests.long.chaos.producers SEED SECONDS`.

It writes into the ledger before it sends a job, and when the job was accepted. It may be killed at any time.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import taskflow
from taskflow import (
    BrokerRefused,
    BrokerUnavailable,
    EnqueueFailed,
    Every,
    JobCancelled,
    JobFailed,
    JobHandle,
    KeyConflict,
    StoreFull,
    schedules,
)
from taskflow.app.app import default_app
from taskflow.app.flow import Call
from taskflow.app.sending import send_call
from tests.long.chaos import jobs, tables
from tests.long.chaos.jobs import Result, ledger
from tests.long.chaos.state import EVERY, KEYS, TAG

T = TypeVar("T")

PUT: Final = "chaos.put"
"""The schedule that is stored by a put. The other one is declared."""

GIVES_UP_AFTER: Final = 50.0
"""Seconds for which a call is sent again. A store knows its id for longer than that."""

MAX_AT_ONCE: Final = 60

TROUBLES: Final = (BrokerUnavailable, BrokerRefused)
"""Errors after which a call is sent again. SQLite refuses a call that has long waited for a transaction of the same process."""


class Producer:
    """Sends jobs of every kind, about `rate` times a second."""

    def __init__(self, seed: int, *, rate: float = 15.0, has_transactions: bool = False) -> None:
        self._chance = random.Random(seed)
        self._rate = rate
        self._numbers = iter(range(seed * 1_000_000, (seed + 1) * 1_000_000))
        self._room = asyncio.Semaphore(MAX_AT_ONCE)
        self._watching = set[asyncio.Task[None]]()
        acts: dict[Callable[[], Awaitable[None]], int] = {
            self.plain: 4,
            self.batch: 1,
            self.delayed: 2,
            self.keyed: 5,
            self.retried: 3,
            self.snoozed: 1,
            self.expiring: 1,
            self.cancelled: 3,
            self.long: 1,
        }
        if has_transactions:
            acts |= {self.transaction: 3, self.completed: 2}
        self._acts, self._weights = list(acts), list(acts.values())

    async def produce(self, seconds: float) -> None:
        """Send for this many seconds, and then wait for the answers."""
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            while time.monotonic() < until:
                await self._room.acquire()
                [act] = self._chance.choices(self._acts, self._weights)
                group.create_task(self._act(act))
                await asyncio.sleep(self._chance.expovariate(self._rate))
        if self._watching:
            await asyncio.wait(self._watching, timeout=5.0)

    async def _act(self, act: Callable[[], Awaitable[None]]) -> None:
        try:
            await act()
        finally:
            self._room.release()

    # --- acts ------------------------------------------------------------------------------------------------------

    async def plain(self) -> None:
        job = self._chance.choice((jobs.plain, jobs.threaded))
        options = job.options(priority=self._chance.choice((-1, 0, 1)), tags=(TAG,), queue=self._a_queue())
        await self._send("plain", options.bind(next(self._numbers), self._brief()))

    async def long(self) -> None:
        await self._send("plain", jobs.plain.bind(next(self._numbers), self._chance.uniform(1, 10)))

    async def delayed(self) -> None:
        after = self._chance.uniform(0.1, 5)
        await self._send("delayed", jobs.plain.options(after=after).bind(next(self._numbers), self._brief()), after=after)

    async def keyed(self) -> None:
        call, facts = self._keyed()
        await self._send("keyed", call, **facts)

    async def retried(self) -> None:
        number, fails, attempts = next(self._numbers), self._chance.randrange(5), self._chance.randint(1, 4)
        call = jobs.retried.options(max_attempts=attempts, on_failure=jobs.mourning.bind(number)).bind(number, fails)
        await self._send("retried", call, fails=fails, max_attempts=attempts)

    async def snoozed(self) -> None:
        await self._send("plain", jobs.snoozed.bind(next(self._numbers), self._chance.uniform(0, 3)))

    async def expiring(self) -> None:
        expires = self._chance.uniform(0.05, 2)
        await self._send("expiring", jobs.plain.options(expires=expires).bind(next(self._numbers), self._brief()), expires=expires)

    async def completed(self) -> None:
        await self._send("completed", jobs.completed.bind(next(self._numbers)))

    async def batch(self) -> None:
        calls = [jobs.plain.bind(next(self._numbers), self._brief()) for _ in range(20)]
        for call in calls:
            ledger.write("send", id=call.id, kind="plain", batch=calls[0].id)
        answered = await _until_answered(lambda: taskflow.enqueue(calls))
        for call in calls:
            ledger.write("unknown" if answered is None else "accepted", id=call.id)

    async def cancelled(self) -> None:
        """Some jobs wait, some run, and some have ended when they are cancelled."""
        after, seconds = self._chance.choice(((self._chance.uniform(0, 2), 0.0), (0.0, self._chance.uniform(0, 2)), (30.0, 0.0)))
        call = jobs.plain.options(after=after).bind(next(self._numbers), seconds)
        handle = await self._send("cancelled", call, after=after)
        if handle is None:
            handle = JobHandle.of(call.id, jobs.plain)
        await asyncio.sleep(self._chance.uniform(0, 1))
        while True:
            ledger.write("cancelling", id=call.id)
            try:
                found = await handle.cancel()
            except TROUBLES:
                continue
            ledger.write("cancelled", id=call.id, status=found or "")
            return

    async def transaction(self) -> None:
        """Send one to three jobs, and an order for each, in one transaction of the program."""
        calls: list[tuple[Call[Result], dict[str, Any]]] = [
            self._keyed() if self._chance.random() < 0.2 else (jobs.plain.bind(next(self._numbers), self._brief()), {})
            for _ in range(self._chance.randint(1, 3))
        ]
        await asyncio.to_thread(self._in_transaction, calls, self._chance.choices(("commit", "roll back", "break off"), (6, 2, 1))[0])

    def _in_transaction(self, calls: list[tuple[Call[Result], dict[str, Any]]], how: str) -> None:
        own, batch = tables.of_environment(), calls[0][0].id
        for call, facts in calls:
            ledger.write("send", id=call.id, kind="transactional", batch=batch, **facts)
        is_committing, added, connection = False, list[str](), None
        try:
            connection = own.connect()
            for call, _ in calls:
                own.add_order(connection, call.id)
                [handle] = taskflow.enqueue_sync([call], connection=connection)
                if handle.is_new:
                    added.append(call.id)
                else:
                    ledger.write("accepted", id=call.id, standing=handle.id, batch=batch)
            if how == "commit":
                is_committing = True
                connection.commit()
            elif how == "roll back":
                connection.rollback()
            for call, _ in calls:
                ledger.write("committed" if how == "commit" else "rolled back", id=call.id, status="" if call.id in added else "kept")
        except Exception as error:  # the store is away, the key is busy, the connection is gone
            for call, _ in calls:
                ledger.write("unknown" if is_committing else "rolled back", id=call.id, note=f"{type(error).__name__}: {error}"[:200])
        finally:
            if connection is not None:
                connection.close()

    # --- how it sends ----------------------------------------------------------------------------------------------

    async def _send(self, kind: str, call: Call[Result], **facts: Any) -> JobHandle[Result] | None:
        ledger.write("send", id=call.id, kind=kind, **facts)
        try:
            handle = await _until_answered(lambda: send_call(default_app(), call))
        except (KeyConflict, StoreFull) as error:
            ledger.write("refused", id=call.id, note=type(error).__name__)
            return None
        if handle is None:
            ledger.write("unknown", id=call.id)
            return None
        ledger.write("accepted", id=call.id, standing="" if handle.is_new else handle.id)
        if handle.is_new and self._chance.random() < 0.3:
            self._watch(self._see_end(handle))
        return handle

    def _watch(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def _see_end(self, handle: JobHandle[Result]) -> None:
        while True:
            try:
                number, epoch = await handle.result()
                ledger.write("ended", id=handle.id, status="succeeded", epoch=epoch, note=str(number))
            except TROUBLES:
                continue
            except (JobFailed, JobCancelled) as error:
                reason = error.reason if isinstance(error, JobCancelled) else ""
                ledger.write("ended", id=handle.id, status="cancelled" if reason else "failed", note=reason)
            return

    def _keyed(self) -> tuple[Call[Result], dict[str, Any]]:
        key, conflict = self._chance.choice(KEYS), self._chance.choice(("keep", "replace", "raise"))
        options: Any = {"key": key, "on_conflict": conflict}
        call = jobs.keyed.options(**options, after=self._chance.choice((None, None, 0.5))).bind(next(self._numbers), self._mostly_brief())
        return call, {"key": key, "conflict": conflict}

    def _brief(self) -> float:
        return self._chance.choice((0.0, self._chance.uniform(0, 0.2)))

    def _mostly_brief(self) -> float:
        return self._chance.uniform(1, 6) if self._chance.random() < 0.1 else self._brief()

    def _a_queue(self) -> str:
        return self._chance.choice(("default", "default", "other"))


async def _until_answered(send: Callable[[], Awaitable[T]]) -> T | None:
    """Send the same call again until the store has answered. Return None if it has not answered for long, and may have added it."""
    gives_up_at = time.monotonic() + GIVES_UP_AFTER
    while time.monotonic() < gives_up_at:
        try:
            return await send()
        except TROUBLES:
            await asyncio.sleep(0.1)
        except EnqueueFailed as failed:
            if not isinstance(failed.__cause__, TROUBLES):
                raise
            await asyncio.sleep(0.1)
    return None


async def put_schedule() -> None:
    await schedules.put(PUT, jobs.tick.bind(), Every(EVERY), catch_up="all")


async def main(seed: int, seconds: float) -> None:
    if seed == 0:
        await put_schedule()
        return
    await Producer(seed, has_transactions=bool(os.environ.get(tables.VARIABLE))).produce(seconds)
    await default_app().close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
