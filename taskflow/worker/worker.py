"""A worker: lives one session after another until its block ends."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from types import TracebackType
from typing import Any, Final, Self

from taskflow.app.app import App
from taskflow.app.context import JobContext
from taskflow.app.current import default_app
from taskflow.model.errors import BrokerUnavailable, ConfigurationError
from taskflow.model.seams import Seams
from taskflow.model.verdict import Discarded, Failed, Verdict
from taskflow.worker.children.pool import Children
from taskflow.worker.drain import Drain
from taskflow.worker.events import BrokerTrouble, Ended, Event, Events, NotCounted, Unwritable
from taskflow.worker.executor import Executor
from taskflow.worker.holdings import Holding
from taskflow.worker.life import Life
from taskflow.worker.options import WorkerOptions
from taskflow.worker.queues import QueueChoice
from taskflow.worker.stalls import Bounds, Eyes, StallWatch
from taskflow.worker.threads import Threads
from taskflow.worker.vitals import Signs, Vitals

DRAIN_LOOK: Final = 0.05
LONGEST_PAUSE: Final = 5.0
SHORT_LIFE: Final = 0.25
FAILURES: Final = (Failed, Discarded)


class Tally:
    """What a worker's runs have come to: a subscriber to its events.

    `runs`    how many there were
    `ended`   how many of them ended their job, `failed` how many ended it FAILED; less those that the store is known not to have counted
    """

    def __init__(self) -> None:
        self.runs = 0
        self.ended = 0
        self.failed = 0

    def __call__(self, event: Event) -> None:
        if type(event) is Ended:  # of all events by far the most
            self.runs += 1
            verdict = event.verdict
            self.ended += verdict.is_final
            self.failed += isinstance(verdict, FAILURES)
            return
        match event:
            case NotCounted(_, verdict):
                self._count(verdict, -1)
            case Unwritable(_, verdict, instead):
                self._count(verdict, -1)
                self._count(instead, 1)

    def _count(self, verdict: Verdict, times: int) -> None:
        self.ended += times * verdict.is_final
        self.failed += times * isinstance(verdict, FAILURES)


class Worker:
    """Works jobs while its block lasts, then winds down: ``async with Worker(concurrency=50): ...``

    `vitals` may be asked from any thread whether it is `live()` and `ready()`, for the application's own health checks.

    `queues`       as on the command line: "mail,default" strictly in that order, "mail=3,default=1" weighted; or a list of such names; None
                   is every queue
    `concurrency`  jobs at one time
    `grace`        seconds that runs have to finish when the block ends

    Installs no signal handlers and never ends the process. Raises ConfigurationError for what it cannot be told, BrokerUnavailable when the
    broker does not answer at the start, and what the application's lifespan raises, as it is.
    """

    def __init__(
        self,
        *,
        queues: str | Sequence[str] | None = None,
        concurrency: int = 100,
        grace: float = 25.0,
        app: App | None = None,
        options: WorkerOptions | None = None,
        seams: Seams | None = None,
    ) -> None:
        self.options = options or WorkerOptions(queues=_choice(queues), concurrency=concurrency, grace=grace)
        self.tally = Tally()
        self.has_forced = False
        self._app = app or default_app()
        self._seams = seams or Seams()
        self._events = Events(self.tally, *self.options.subscribers)
        self._hurry = asyncio.Event()
        self._is_finishing = False
        self._stack = AsyncExitStack()
        self._life: Life | None = None
        self._lost: Life | None = None
        self._to_abandon: Life | None = None
        self._watch: StallWatch | None = None
        self.vitals = Vitals(lambda: self._watch, self._signs, self.options.ttl)
        self._rebirth: asyncio.Task[None] | None = None
        self._abandoning: asyncio.Task[None] | None = None
        self._past_lives: dict[asyncio.Task[None], Life] = {}

    async def __aenter__(self) -> Self:
        if self._app.is_in_child:
            raise ConfigurationError(
                'a child process of a worker (runs_in="process") has come to start a worker, by importing the main module: '
                'what only the command shall do belongs there under `if __name__ == "__main__":`'
            )
        async with AsyncExitStack() as stack:
            lifespan = self._app.settings.lifespan
            state = await stack.enter_async_context(lifespan()) if lifespan is not None else None
            self._threads = Threads(self.options.concurrency, self._seams.start_thread, self._note_freed)
            stack.callback(self._threads.close)
            self._children = self._no_children_yet()
            stack.push_async_callback(self._children.close)
            self._app.registry.resolve()
            self._state = state
            stack.callback(self._end_watch)
            self._watch = self._a_watch()
            self._watch.start()
            self._life = await self._begin()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # The lifespan ends in the task that began it, and outside of our scope: task groups and scopes of its own want that.
        try:
            await self._wind_down()
        finally:
            await self._stack.aclose()

    def hurry(self) -> None:
        """Cut the grace time short: cancel what runs, now or as soon as the worker winds down."""
        self._hurry.set()

    async def finish(self) -> None:
        """Take nothing new any more, and return when all that runs here has ended and the broker knows, however long that takes. Runs that
        are another's by then, since the session was lost, are cancelled. May be cancelled: then the block's end winds down as ever."""
        self._is_finishing = self.vitals.is_winding_down = True
        while (life := await self._present_life()) is not None and not await life.finish():
            pass
        if self._past_lives:
            await asyncio.wait(list(self._past_lives))

    async def drained(self) -> None:
        """Until its queues have nothing READY or RUNNING anywhere, and nothing SCHEDULED within the horizon.

        What waits in a paused queue, or is parked for a worker that knows it, is left there. While the broker is away it is asked again.
        """
        drain = Drain(self._app.broker(), self._app.registry, self.options)
        times = 0
        while True:
            try:
                if await drain.is_over():
                    return
                times = 0
            except BrokerUnavailable as error:
                times += 1
                self._events.tell(BrokerTrouble("a look at the queues", str(error), times))
            await asyncio.sleep(DRAIN_LOOK if not times else min(LONGEST_PAUSE, 0.1 * 2**times))

    def _no_children_yet(self) -> Children:
        options = self.options
        return Children(self._app, options.children, modules=options.modules, tell=self._events.tell, start_thread=self._seams.start_thread)

    # --- what is seen from other threads ------------------------------------------------------------------

    def _a_watch(self) -> StallWatch:
        eyes = Eyes(
            holding_of=self._holding_of,
            slow=self._slow,
            beats=self._beats,
            on_silent=self._note_silence,
            on_limit=self._give_up,
        )
        return StallWatch(self._events, self._seams.start_thread, Bounds(self.options.stall_limit, self.options.ttl), eyes)

    def _end_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()

    def _holding_of(self, run: JobContext) -> Holding | None:
        lives = [life for life in (self._life, *self._past_lives.values()) if life is not None]
        return next((holding for life in lives if (holding := life.holding_of(run)) is not None), None)

    def _slow(self) -> tuple[Holding, float] | None:
        """What held up the interpreter may have cost the session too."""
        found = [life.slow for life in (self._life, self._lost) if life is not None and life.slow is not None]
        return max(found, key=lambda one: one[1], default=None)

    def _signs(self) -> Signs | None:
        life = self._life
        return None if life is None else life.signs()

    def _beats(self) -> object:
        signs = self._signs()
        return object() if signs is None else (self._life, signs.beaten_at)

    def _note_silence(self) -> None:
        if (life := self._life) is not None:
            life.fall_silent("its keeper has not beaten for longer than the ttl")

    def _give_up(self, is_told: bool) -> None:
        """Others take its jobs when the ttl is over; should the loop ever move again, it goes on under a new session."""
        if (life := self._life) is not None:
            life.fall_silent(f"the event loop stood still for {self.options.stall_limit:g} s")
        if self.options.on_stall_limit is not None:
            self.options.on_stall_limit(is_told)

    # --- its sessions -----------------------------------------------------------------------------------

    async def _begin(self) -> Life:
        executor = Executor(
            self._app.registry,
            middleware=self._app.settings.middleware,
            threads=self._threads,
            seams=self._seams,
            state=self._state,
            children=self._children,
        )
        life = Life(self._app.broker(), executor, self._threads, self.options, self._seams, self._events, on_lost=self._on_lost)
        await life.begin()
        return life

    def _note_freed(self) -> None:
        if (life := self._life) is not None:
            life.look_again()

    def _on_lost(self) -> None:
        """The session is dead, and what it held belongs to others: another session takes its place."""
        self._rebirth = asyncio.get_running_loop().create_task(self._begin_again())
        self._rebirth.add_done_callback(self._note_rebirth)

    def _note_rebirth(self, rebirth: asyncio.Task[None]) -> None:
        """Cancelled by a stranger, a job that cancels every task there is, it would leave a worker without a session for ever."""
        if rebirth.cancelled() and not self.vitals.is_winding_down:
            self._on_lost()

    async def _present_life(self) -> Life | None:
        """None when it was lost, and none follows."""
        if self._rebirth is not None:
            await asyncio.wait([self._rebirth])
        return self._life

    async def _begin_again(self) -> None:
        if self._life is not None:
            self._lost = self._to_abandon = self._life
            self._life = None
        await self._abandon_lost()
        if self._lost is not None and self._lost.age < SHORT_LIFE:
            await asyncio.sleep(SHORT_LIFE)  # what ended it at once, no descriptors left for example, will not have changed yet
        times = 0
        while self._life is None and not self._is_finishing:
            try:
                self._life = await self._begin()
            except Exception as error:  # no thread left for a keeper, for example: to give up would be to live on and do nothing
                times += 1
                self._events.tell(BrokerTrouble("a new session", str(error), times))
                await asyncio.sleep(min(LONGEST_PAUSE, 0.1 * 2**times) * (0.5 + self._seams.chance.random()))

    async def _abandon_lost(self) -> None:
        """Whatever comes of it, what follows must be. But a stranger's cancellation is no end of it."""
        while (lost := self._to_abandon) is not None:
            if self._abandoning is None or self._abandoning.done():
                self._abandoning = asyncio.get_running_loop().create_task(self._abandon(lost))
            await asyncio.wait([self._abandoning])
            if not self._abandoning.cancelled():
                self._to_abandon = None

    async def _abandon(self, lost: Life) -> None:
        await lost.abandon()
        self._settle_verdicts(lost)

    def _settle_verdicts(self, lost: Life) -> None:
        settling = asyncio.get_running_loop().create_task(lost.settle_verdicts())
        self._past_lives[settling] = lost
        settling.add_done_callback(self._note_settled)

    def _note_settled(self, settling: asyncio.Task[None]) -> None:
        lost = self._past_lives.pop(settling)
        if settling.cancelled() and not self.vitals.is_winding_down:  # by a stranger
            self._settle_verdicts(lost)

    async def _wind_down(self) -> None:
        """Shielded, since half of it would leave a session that beats and works nothing. A cancellation that comes meanwhile cuts the grace
        time short; all the rest of it is bounded."""
        with _shielded():
            closing = asyncio.get_running_loop().create_task(self._close())
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                self.hurry()
                await closing
                raise

    async def _close(self) -> None:
        self.vitals.is_winding_down = True
        if self._rebirth is not None:
            self._rebirth.cancel()
            await asyncio.gather(self._rebirth, return_exceptions=True)
        await self._abandon_lost()
        began_at = time.monotonic()
        if self._life is not None:
            self.has_forced = not await self._life.wind_down(self._hurry)
        await self._end_past_lives(max(0.0, self.options.last_words - (time.monotonic() - began_at)))

    async def _end_past_lives(self, patience: float) -> None:
        """All at one time. Their last verdicts have had the time of this life's end, and have `patience` seconds more: it may have been
        short, and the broker may be back this moment."""
        past = dict(self._past_lives)
        for settling in past:
            settling.cancel()
        await asyncio.gather(*past, return_exceptions=True)
        await asyncio.gather(*(life.end(patience) for life in past.values()))


def worker_lifespan(
    *,
    own: Callable[[Any], AbstractAsyncContextManager[Any]] | None = None,
    queues: str | Sequence[str] | None = None,
    concurrency: int = 100,
    grace: float = 25.0,
) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    """A worker in the lifespan of a Starlette or FastAPI application, inside of the application's own, whose state is passed on.

    ``Starlette(lifespan=worker_lifespan(own=lifespan, concurrency=50))``
    """

    @asynccontextmanager
    async def lifespan(application: Any) -> AsyncIterator[Any]:
        async with AsyncExitStack() as stack:
            state = await stack.enter_async_context(own(application)) if own is not None else None
            await stack.enter_async_context(Worker(queues=queues, concurrency=concurrency, grace=grace))
            yield state

    return lifespan


def _choice(queues: str | Sequence[str] | None) -> QueueChoice:
    if queues is None:
        return QueueChoice()
    if not isinstance(queues, Sequence) or not all(isinstance(name, str) for name in queues):
        raise ConfigurationError(
            f'queues={queues!r}: it takes names, in strict order ("mail,default", ["mail", "default"]) or weighted ("mail=3,default=1")'
        )
    try:
        return QueueChoice.parse(queues if isinstance(queues, str) else ",".join(queues))
    except ValueError as error:
        raise ConfigurationError(f"queues={queues!r}: {error}") from error


def _shielded() -> AbstractContextManager[object]:
    """From the scopes of anyio that this may be in, whose cancellation comes again and again. There is none where nobody has loaded it; and
    nothing is loaded here, at an end: what stood in its place may have been replaced since."""
    anyio = sys.modules.get("anyio")
    try:
        return nullcontext() if anyio is None else anyio.CancelScope(shield=True)
    except ImportError:  # it loads its parts when they are first used, which nobody has done
        return nullcontext()
