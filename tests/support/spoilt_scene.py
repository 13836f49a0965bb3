"""A store in which one value of some jobs and sessions is corrupt, beside valid ones, and a worker that processes all of it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import pytest

from taskflow import JobHandle, Worker, job
from taskflow.app.app import App, default_app
from taskflow.app.events import Event
from taskflow.broker.admin import View
from taskflow.broker.paging import pages
from taskflow.cli import job_actions, jobs
from taskflow.cli.parser import a_parser
from taskflow.cli.status import queues, status as status_of_store, workers
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.errors import SessionLost
from taskflow.model.ids import id_text
from taskflow.model.record import Record, Status
from taskflow.model.rules import Backoff
from taskflow.model.session import Report, Session
from taskflow.model.verdict import Failed, Parked, Progress, Retried, RunError, Settlement, Succeeded, Verdict
from taskflow.worker.events import BrokerCallFailed, SessionEnded
from taskflow.worker.options import WorkerOptions
from tests.support.spoiling import Spoiler, Spoilt, spoil_one
from tests.support.world import World

TIMEOUT: Final = 10.0
ERROR: Final = RunError("app.Error", "it went wrong", "Traceback ...", 1)


@job(name="tests.spoilt.work")
async def work(n: int, data: bytes = b"") -> int:
    return n


@job(name="tests.spoilt.rare")
async def rare(n: int) -> int:
    """Only victims have this job name, so that corrupting the name affects no other job."""
    return n


class Scene:
    """One store with a valid job of each kind in `expected`, a victim of each kind, and what was `spoilt` in the victims."""

    def __init__(self, world: World, spoiler: Spoiler, seed: int) -> None:
        self.world = world
        self.spoiler = spoiler
        self.chance = random.Random(seed)
        self.expected = dict[bytes, Status]()
        self.spoilt = list[Spoilt]()
        self.events = list[Event]()
        self._doomed: Session
        self._numbers = iter(range(1_000))

    # --- what is there before ------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Add valid jobs and victims in turn; then corrupt one value of each victim, and let the session that holds some of them lapse."""
        world = self.world
        self._doomed, cursed = await world.a_session("doomed"), await world.a_session("cursed")
        for make, status in self._kinds():
            self.expected[await make()] = status
        held = await self._running(cursed)
        self.expected[held] = Status.SUCCEEDED
        victims = [await make() for make, _ in self._kinds(is_victim=True)]
        for owner in [*victims, cursed.id]:
            if (one := spoil_one(self.spoiler, owner, self.chance)) is not None:
                self.spoilt.append(one)
        for _ in range(2):  # a session whose last heartbeat is unreadable gets one more ttl
            await world.lapse(self._doomed)
            await world.upkeep()
        if any(one.owner == cursed.id and one.value.place.endswith(("ttl", "lapses_at")) for one in self.spoilt):
            with contextlib.suppress(SessionLost):  # a valid ttl of a year is no damage that a store could detect
                await world.die(cursed)

    def _kinds(self, *, is_victim: bool = False) -> list[tuple[Callable[[], Awaitable[bytes]], Status]]:
        """Return for each kind of job how to create it, and the status in which a valid one ends."""
        rich: dict[str, Any] = {
            "priority": 5,
            "max_attempts": 3,
            "timeout": 60.0,
            "keep_result": 1_000.0,
            "retry": Backoff(base=2.0),
            "headers": {"tenant": "blå"},
            "expires": 10_000.0,
        }
        succeeded, failed, cancelled = Status.SUCCEEDED, Status.FAILED, Status.CANCELLED
        kinds: list[tuple[Callable[[], Awaitable[bytes]], Status]] = [
            (self._add, succeeded),
            (lambda: self._add(**rich), succeeded),
            (lambda: self._add(data=bytes(200_000)), succeeded),
            (lambda: self._add(key=self.chance.randbytes(16)), succeeded),
            (lambda: self._add(after=5.0), succeeded),
            (lambda: self._settled(Retried(ERROR, 5.0)), succeeded),
            (lambda: self._settled(Parked("a worker that knows it", 5.0)), succeeded),
            (self._running, succeeded),
            (self._asked_to_stop, cancelled),
            (lambda: self._settled(Failed(ERROR)), failed),
            (lambda: self._settled(Succeeded(work.codec.encode_result(7))), succeeded),
            (self._cancelled, cancelled),
            (self._awaited, succeeded),
        ]
        return [*kinds, (lambda: self._add(is_rare=True, queue="rare"), succeeded)] if is_victim else kinds

    def _envelope(self, *, is_rare: bool = False, data: bytes = b"", **fields: Any) -> Envelope:
        number = next(self._numbers)
        call = rare.bind(number) if is_rare else work.bind(number, data)
        return msgspec.structs.replace(call.envelope, id=self.world.an_id(), **fields)

    async def _add(self, **fields: Any) -> bytes:
        envelope = self._envelope(**fields)
        await self.world.enqueue(envelope)
        return envelope.id

    async def _lease(self, session: Session | None = None) -> Lease:
        """Create a job, and lease it to a session that will lapse."""
        envelope = self._envelope(queue="taken")
        await self.world.enqueue(envelope)
        [lease] = await self.world.claim(session or self._doomed, ["taken"])
        return lease

    async def _settled(self, verdict: Verdict) -> bytes:
        lease = await self._lease()
        await self.world.settle(
            Settlement(id=lease.envelope.id, epoch=lease.epoch, claim=lease.claim, verdict=verdict, ran_for=0.5, keep_for=10_000.0)
        )
        return lease.envelope.id

    async def _running(self, session: Session | None = None) -> bytes:
        lease = await self._lease(session)
        report = Report(lease.claim, 0.25, Progress(0.5, "half of it"))
        await self.world.beat(session or self._doomed, lease, seen=0, reports=[report])
        return lease.envelope.id

    async def _asked_to_stop(self) -> bytes:
        job_id = await self._running()
        await self.world.cancel(job_id)
        return job_id

    async def _cancelled(self) -> bytes:
        job_id = await self._add(queue="taken")
        await self.world.cancel(job_id)
        return job_id

    async def _awaited(self) -> bytes:
        held = self._envelope(awaits=1)
        before = self._envelope(joins=(held.id,))
        await self.world.enqueue(held, before)
        self.expected[before.id] = Status.SUCCEEDED
        return held.id

    # --- a worker, and commands beside it ------------------------------------------------------------------------

    async def run(self) -> None:
        """Let a worker and every command process everything. Raises AssertionError for results that the contract does not allow."""
        app = default_app()
        with app.using(self.world.broker):
            app.flag(broker="memory://")  # for commands, which print the broker's URL
            options = WorkerOptions(concurrency=20, ttl=2.0, grace=5.0, subscribers=(self.events.append,))
            async with Worker(options=options):
                await self._until(self._all_ended, "valid jobs have not ended")
                await self._until(self._at_rest, "the store does not come to rest")
                await self._check_results()
                await self._check_victims()
                await self._commands(app)
        assert [event for event in self.events if isinstance(event, SessionEnded)] == []

    async def _until(self, is_so: Callable[[], Awaitable[Any]], complaint: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        while wrong := await is_so():
            assert time.monotonic() < deadline, f"{complaint}: {wrong}"
            await asyncio.sleep(0.02)

    async def _all_ended(self) -> dict[str, Any]:
        """Return the jobs that have not ended as expected."""
        records = await self.world.broker.read(list(self.expected))
        found = {job_id: record.status if record else None for job_id, record in zip(self.expected, records, strict=True)}
        return {id_text(job_id): (found[job_id], status) for job_id, status in self.expected.items() if found[job_id] is not status}

    async def _at_rest(self) -> dict[str, str]:
        """Return the queues of the jobs that are READY or RUNNING.

        Counts are not checked, because those of a job with an unreadable record stay wrong until `taskflow doctor --rebuild`. A SQLite file
        does not count a job that another program has moved to another queue, so a worker of all queues does not find it.
        """
        await self.world.upkeep()
        unfound = {one.owner for one in self.spoilt if self.world.harness.name == "sqlite" and one.value.place == "jobs.queue"}
        view = View(statuses=(Status.READY, Status.RUNNING))
        left = [record async for records in pages(self.world.broker.admin, view) for record in records]
        return {id_text(record.id): record.queue for record in left if record.status is Status.RUNNING or record.id not in unfound}

    async def _check_results(self) -> None:
        for job_id, status in self.expected.items():
            if status is Status.SUCCEEDED:
                assert isinstance(await JobHandle.of(id_text(job_id), work).result(timeout=0), int)

    async def _check_victims(self) -> None:
        """Check that each victim is listed and has ended, unless its id or the time for which it is kept was changed."""
        await self._listed()  # Redis sets a job aside as FAILED when it first reads it, which may be behind the pages of FAILED jobs
        listed = await self._listed()
        for one in self.spoilt:
            record = listed.get(one.owner)
            if record is None:
                assert self.spoiler.may_hide(one.value) or not _is_job(one), f"{one}: it is listed no longer"
            elif record.unreadable and one.value.place != "jobs.queue":
                assert record.status.is_ended, f"{record.status}: {record.unreadable}"

    async def _listed(self) -> dict[bytes, Record]:
        """Return all records by page, as a command reads them."""
        found = dict[bytes, Record]()
        async for records in pages(self.world.broker.admin, View(), limit=7):
            repeated = [(id_text(record.id), found[record.id].status, record.status) for record in records if record.id in found]
            assert not repeated, f"a page repeats what another had: {repeated}"
            found.update({record.id: record for record in records})
        return found

    async def _commands(self, app: App) -> None:
        await self.world.broker.admin.pause("later")
        later = [await self._add(queue="later") for _ in range(3)]
        ids = [id_text(record_id) for record_id in await self._listed()]
        for command in (
            ["status"],
            ["status", "--json"],
            ["queues"],
            ["jobs"],
            ["jobs", "--json"],
            ["jobs", *ids],
            ["jobs", *ids, "--json"],
        ):
            await self._command(app, command)
        await self.world.broker.admin.examine()
        await self._command(app, ["retry", "--all"])
        await self._until(self._at_rest_but_for_later, "the store does not come to rest after the retry")
        await self._command(app, ["cancel", "--all"])
        assert [await self.world.status(job_id) for job_id in later] == [Status.CANCELLED] * 3
        await self._until(self._at_rest, "the store does not come to rest after the cancellation")
        await self._command(app, ["purge", "--all"])
        left = await self._listed()
        assert not left, f"the purge has left {[(record.status, record.unreadable) for record in left.values()]}"

    async def _at_rest_but_for_later(self) -> dict[str, str]:
        return {job_id: queue for job_id, queue in (await self._at_rest()).items() if queue != "later"}

    async def _command(self, app: App, argv: list[str]) -> None:
        arguments = a_parser().parse_args(argv)
        looks = {"jobs": jobs.jobs, "status": status_of_store, "queues": queues, "workers": workers}
        does = job_actions._act if argv[0] in ("retry", "cancel", "purge") else looks[argv[0]].args[0]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = await does(app, arguments)
        assert code in (0, 1), f"{argv} has ended with {code}"

    def report(self) -> str:
        """Return what was corrupted, and what the worker logged about it."""
        said = {f"{type(event).__name__}: {event.why}" for event in self.events if isinstance(event, BrokerCallFailed | SessionEnded)}
        return "".join(f"\n  {one}" for one in sorted(said)) + "".join(
            f"\n  {id_text(one.owner) if len(one.owner) == 16 else one.owner!r} {one}" for one in self.spoilt
        )


def _is_job(one: Spoilt) -> bool:
    return one.value.place.startswith("jobs.")


@asynccontextmanager
async def _a_spoiler(world: World) -> AsyncIterator[Spoiler]:
    spoiler = world.harness.spoiler()
    if spoiler is None:
        pytest.skip(f"{world.harness.name}: its jobs are objects that nobody else can write")
    try:
        yield spoiler
    finally:
        spoiler.close()


async def go_through(world: World, seed: int) -> int:
    """Prepare and run one scene in an empty store. Return the number of corrupted values."""
    async with _a_spoiler(world) as spoiler:
        scene = Scene(world, spoiler, seed)
        await scene.prepare()
        try:
            await scene.run()
        except Exception as error:
            error.add_note(f"seed {seed}, spoilt:{scene.report()}")
            raise
        return len(scene.spoilt)
