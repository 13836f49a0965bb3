"""The rules of the state machine: what may happen to a broker next.

Some rules combine several steps, because single steps hardly ever meet: a lapse, its reaping and the next lease have to follow one another
before a zombie can do harm.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from typing import Any, ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from taskflow.broker.admin import View
from taskflow.model.envelope import Envelope, Lease, OnConflict
from taskflow.model.session import Beat, Report
from taskflow.model.verdict import Progress, Settlement
from tests.conformance.compared import TIGHT, ComparedBroker, Snapshot
from tests.conformance.draws import (
    CAUSES_OF_DEATH,
    ENDS_OF_WORKERS,
    FILTERS,
    LIMITS,
    PICK,
    QUEUES,
    SETTLEMENTS,
    WorkerModel,
    envelope_fields,
    verdicts,
)
from tests.support.harnesses import Capability, StoreHarness
from tests.support.verdicts import handed_back

T = TypeVar("T")


def step(**draws: Any) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Any]:
    """Make a rule from a coroutine function. Each of its steps is counted under its name."""

    def decorate(act: Callable[..., Coroutine[Any, Any, None]]) -> Any:
        @wraps(act)
        def take(machine: BrokerMachine, *drawn: Any, **more: Any) -> None:
            machine.taken[act.__name__] += 1
            machine._run(act(machine, *drawn, **more))

        made: Any = rule(**draws)
        return made(take)

    return decorate


class BrokerMachine(RuleBasedStateMachine):
    """One example is one store, which begins empty. `harness` is its kind; `is_compared` says whether a model runs beside it."""

    harness: ClassVar[type[StoreHarness]]
    is_compared: ClassVar[bool | None] = None
    taken: ClassVar[Counter[str]] = Counter()
    sent: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._compared = self._run(self._opened())
        self._workers: list[WorkerModel] = []
        self._envelopes: list[Envelope] = []
        self._leases: list[Lease] = []
        self._settlements: list[Settlement] = []
        self._snapshot: Snapshot | None = None

    async def _opened(self) -> ComparedBroker:
        return ComparedBroker(self.harness, rules=TIGHT, is_compared=self.is_compared)

    def teardown(self) -> None:
        type(self).sent += self._compared.steps
        self._run(self._compared.close())
        self._runner.close()

    def _run(self, steps: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(steps)

    @initialize()
    def two_workers(self) -> None:
        self._run(self._register("w0"))
        self._run(self._register("w1"))

    # --- enqueue -------------------------------------------------------------------------------------------------------

    @step(batch=st.lists(envelope_fields(), min_size=1, max_size=3))
    async def enqueue(self, batch: list[dict[str, Any]]) -> None:
        await self._enqueue([self._an_envelope(fields) for fields in batch])

    async def _enqueue(self, envelopes: list[Envelope]) -> None:
        self._envelopes += envelopes
        await self._compared.enqueue(envelopes)

    def _an_envelope(self, fields: dict[str, Any]) -> Envelope:
        given = dict(fields)
        if "ago" in given:
            given["at"] = self._compared.clock.wall() + round(given.pop("ago") * 1_000_000)
        if "join" in given:
            held = [envelope for envelope in self._envelopes if envelope.awaits]
            pick = given.pop("join")
            given["joins"] = (held[pick % len(held)].id,) if held else ()
        return self._compared.world.an_envelope(**given)

    @precondition(lambda self: self._envelopes)
    @step(pick=PICK)
    async def resend_enqueue(self, pick: int) -> None:
        envelope = self._envelopes[-1 - pick % len(self._envelopes)]
        if not self._compared.may_have_forgotten(envelope.id):
            await self._compared.enqueue([envelope])

    @step(queue=st.sampled_from(QUEUES), members=st.integers(1, 3))
    async def join(self, queue: str, members: int) -> None:
        """Enqueue a held job and all that it awaits, in one batch."""
        held = self._an_envelope({"queue": queue, "awaits": members})
        joiners = [self._compared.world.an_envelope(queue=queue, joins=(held.id,)) for _ in range(members)]
        await self._enqueue([held, *joiners])

    # --- sessions ------------------------------------------------------------------------------------------------------

    @step(name=st.sampled_from(("w0", "w1", "w2")))
    async def register(self, name: str) -> None:
        await self._register(name)

    async def _register(self, name: str) -> None:
        session = self._compared.world.an_unregistered_session(name)
        self._workers = [
            *self._workers[-5:],
            WorkerModel(session),
        ]  # kept small: the oldest worker is forgotten, as by its process
        await self._compared.do("register", session)

    @precondition(lambda self: self._workers)
    @step(pick=PICK)
    async def register_again(self, pick: int) -> None:
        worker = self._worker(pick)
        if not self._compared.may_have_forgotten(worker.session.id):
            await self._compared.do("register", worker.session)

    def _worker(self, pick: int) -> WorkerModel:
        return self._workers[pick % len(self._workers)]

    # --- claim ---------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self._workers)
    @step(pick=PICK, queues=st.sampled_from(((), ("a",), ("b", "a"))), limit=LIMITS, is_received=st.sampled_from((True, True, False)))
    async def claim(self, pick: int, queues: Sequence[str], limit: int, is_received: bool) -> None:
        await self._claim(self._worker(pick), queues, limit, is_received=is_received)

    async def _claim(self, worker: WorkerModel, queues: Sequence[str] = (), limit: int = 5, *, is_received: bool = True) -> None:
        worker.asked += 1
        worker.asked_for = (queues, limit)
        leases = await self._compared.claim(worker.session, worker.asked, queues, limit)
        self._receive(worker, leases, is_received=is_received)

    def _receive(self, worker: WorkerModel, leases: list[Lease] | None, *, is_received: bool) -> None:
        if leases is not None:
            self._leases += leases
        if leases is not None and is_received:
            worker.seen = worker.asked
            worker.holds.update((lease.claim, lease) for lease in leases)

    @precondition(lambda self: any(worker.asked for worker in self._workers))
    @step(pick=PICK)
    async def resend_claim(self, pick: int) -> None:
        asked = [worker for worker in self._workers if worker.asked]
        worker = asked[pick % len(asked)]
        leases = await self._compared.claim(worker.session, worker.asked, *worker.asked_for)
        self._receive(worker, leases, is_received=True)

    @precondition(lambda self: any(worker.asked > 1 for worker in self._workers))
    @step(pick=PICK)
    async def late_claim(self, pick: int) -> None:
        asked = [worker for worker in self._workers if worker.asked > 1]
        worker = asked[pick % len(asked)]
        leases = await self._compared.claim(worker.session, worker.asked - 1, (), 5)
        self._leases += leases or []

    # --- beat ----------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self._workers)
    @step(pick=PICK, progress=st.sampled_from((None, Progress(0.5, "half"))), what=st.sampled_from(("all", "all", "some", "nothing")))
    async def beat(self, pick: int, progress: Progress | None, what: str) -> None:
        """The worker names all its leases; or fewer, if it sent the heartbeat before the last answers came; or none, if it has given up
        all."""
        worker = self._worker(pick)
        if what == "nothing":
            worker.holds.clear()
            worker.seen = worker.asked
        await self._beat(worker, progress, is_stale=what == "some")

    async def _beat(self, worker: WorkerModel, progress: Progress | None = None, *, is_stale: bool = False) -> None:
        claims = tuple(worker.holds)
        reports = tuple(Report(claim, 0.5, progress) for claim in claims[:1])
        seen = max(0, worker.seen - is_stale)
        named = tuple(claim for claim in claims if claim.request <= seen)
        await self._compared.beat(Beat(session=worker.session.id, claims=named, seen=seen, reports=reports))

    @precondition(lambda self: len(self._workers) > 1)
    @step(pick=PICK)
    async def leave(self, pick: int) -> None:
        worker = self._worker(pick)
        await self._compared.beat(Beat(session=worker.session.id, claims=tuple(worker.holds), seen=worker.seen, leaving=True))

    @precondition(lambda self: len(self._workers) > 1)
    @step(pick=PICK, cause=CAUSES_OF_DEATH)
    async def die(self, pick: int, cause: str) -> None:
        """The worker's supervisor reports its death, which may or may not be true: what the worker settles afterwards is a zombie's."""
        await self._die(self._worker(pick), cause)

    async def _die(self, worker: WorkerModel, cause: str) -> None:
        await self._compared.beat(Beat.of_death(worker.session.id, cause))

    # --- settle --------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self._leases)
    @step(picks=st.lists(PICK, min_size=1, max_size=3), verdict=verdicts(), follow_up=st.one_of(st.none(), envelope_fields()))
    async def settle(self, picks: list[int], verdict: tuple[str, dict[str, Any]], follow_up: dict[str, Any] | None) -> None:
        """Settle any lease that ever existed, the latest first: zombies settle too."""
        leases = {self._leases[-1 - pick % len(self._leases)].claim: self._leases[-1 - pick % len(self._leases)] for pick in picks}
        await self._settle([self._settlement(lease, verdict, follow_up) for lease in leases.values()])

    def _settlement(self, lease: Lease, verdict: tuple[str, dict[str, Any]], follow_up: dict[str, Any] | None = None) -> Settlement:
        name, arguments = verdict
        follow_ups = () if follow_up is None else (self._an_envelope(follow_up),)
        return SETTLEMENTS[name](lease, follow_ups=follow_ups, **arguments)

    async def _settle(self, settlements: list[Settlement]) -> None:
        self._settlements += settlements
        self._envelopes += [follow_up for settlement in settlements for follow_up in settlement.follow_ups]
        await self._send_settlements(settlements)
        for worker in self._workers:
            for settlement in settlements:
                worker.holds.pop(settlement.claim, None)

    @precondition(lambda self: self._workers)
    @step(pick=PICK, limit=LIMITS, verdict=verdicts(), is_resent=st.booleans())
    async def work(self, pick: int, limit: int, verdict: tuple[str, dict[str, Any]], is_resent: bool) -> None:
        """Claim, and settle every lease of the worker, twice when the reply is lost."""
        worker = self._worker(pick)
        await self._claim(worker, limit=limit)
        settlements = [self._settlement(lease, verdict) for lease in worker.holds.values()]
        if settlements:
            await self._settle(settlements)
        if settlements and is_resent:
            await self._send_settlements(settlements)

    @precondition(lambda self: self._settlements)
    @step(pick=PICK)
    async def resend_settle(self, pick: int) -> None:
        settlement = self._settlements[-1 - pick % len(self._settlements)]
        await self._send_settlements([settlement])

    async def _send_settlements(self, settlements: list[Settlement]) -> None:
        """For a job that it may have forgotten a store answers OK or STALE."""
        of_known = [settlement for settlement in settlements if not self._compared.may_have_forgotten(settlement.id)]
        if of_known:
            await self._compared.settle(of_known)

    # --- operators -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self._envelopes)
    @step(picks=st.lists(PICK, min_size=1, max_size=2))
    async def cancel(self, picks: list[int]) -> None:
        await self._compared.cancel([self._envelopes[-1 - pick % len(self._envelopes)].id for pick in picks])

    @step(queue=st.sampled_from(QUEUES), is_pause=st.booleans())
    async def pause_or_resume(self, queue: str, is_pause: bool) -> None:
        await self._compared.do("pause" if is_pause else "resume", queue)

    @precondition(lambda self: self._envelopes)
    @step(picks=st.lists(PICK, min_size=1, max_size=3))
    async def retry(self, picks: list[int]) -> None:
        await self._compared.do("retry", [self._envelopes[-1 - pick % len(self._envelopes)].id for pick in picks])

    @precondition(lambda self: self._envelopes)
    @step(picks=st.lists(PICK, min_size=1, max_size=3))
    async def run_now(self, picks: list[int]) -> None:
        await self._compared.do("run_now", [self._envelopes[-1 - pick % len(self._envelopes)].id for pick in picks])

    @step(job_filter=FILTERS)
    async def purge(self, job_filter: View) -> None:
        await self._compared.do("purge", job_filter)

    @step(view=FILTERS, limit=st.sampled_from((1, 3, 100)))
    async def page(self, view: View, limit: int) -> None:
        await self._compared.page(view, limit)

    @precondition(lambda self: any(envelope.key for envelope in self._envelopes))
    @step(pick=PICK)
    async def holders(self, pick: int) -> None:
        keys = [envelope.key for envelope in self._envelopes if envelope.key is not None]
        await self._compared.do("holders", [keys[-1 - pick % len(keys)], keys[0], bytes(16)])

    # --- time and mishaps ----------------------------------------------------------------------------------------------

    @step(limit=st.sampled_from((0, 1, 3, 1_000, 1_000)))
    async def upkeep(self, limit: int) -> None:
        await self._compared.do("upkeep", limit)

    @step(seconds=st.sampled_from((0.001, 1.0, 5.0, 11.0, 35.0)), is_tended=st.booleans())
    async def pass_time(self, seconds: float, is_tended: bool) -> None:
        self._compared.clock.advance(seconds)
        if is_tended:
            await self._compared.do("upkeep", 1_000)

    @step(seconds=st.sampled_from((-3_600.0, -10.0, -1.0, 1.0, 10.0)))
    async def set_the_clock(self, seconds: float) -> None:
        self._compared.clock.skew(seconds)

    @precondition(lambda self: self._workers)
    @step(pick=PICK, other=PICK, verdict=verdicts(), is_bounded=st.booleans())
    async def lapse_reap_reclaim(self, pick: int, other: int, verdict: tuple[str, dict[str, Any]], is_bounded: bool) -> None:
        """A worker sleeps and is reaped, and another claims its jobs; then it wakes and settles them as if nothing had happened."""
        worker, successor = self._worker(pick), self._worker(other)
        await self._enqueue([self._compared.world.an_envelope(queue="a") for _ in range(2)])
        await self._claim(worker)
        await self._sleep(worker)
        await self._compared.do("upkeep", 1 if is_bounded else 1_000)
        await self._claim(successor)
        if worker.holds:
            await self._settle([self._settlement(lease, verdict) for lease in worker.holds.values()])

    async def _sleep(self, worker: WorkerModel) -> None:
        """Let the worker sleep past its ttl, while the others send heartbeats."""
        for _ in range(2):
            self._compared.clock.advance(worker.session.ttl * 0.6)
            for each in self._workers:
                if each is not worker:
                    await self._beat(each)

    @step(queue=st.sampled_from(QUEUES), how=st.lists(ENDS_OF_WORKERS, min_size=1, max_size=4), is_cancelled=st.booleans())
    async def lose_workers(self, queue: str, how: list[str], is_cancelled: bool) -> None:
        """One worker after the other has the same job, and is lost silently, is reported dead, or hands the job back."""
        envelope = self._an_envelope({"queue": queue, "priority": 5, "max_attempts": 1})
        await self._enqueue([envelope])
        for number, end in enumerate(how, 1):
            await self._register("w1")
            worker = self._workers[-1]
            await self._claim(worker, (queue,), 1)
            if is_cancelled and number == len(how):
                await self._compared.cancel([envelope.id])
            if end == "hands back" and worker.holds:
                await self._settle([handed_back(lease) for lease in worker.holds.values()])
            elif end == "dies":
                await self._die(worker, f"exit code {number}")
            else:
                await self._sleep(worker)
            await self._compared.do("upkeep", 1_000)
            self._compared.clock.advance(5.0)
            await self._compared.do("upkeep", 1_000)

    @precondition(lambda self: self._workers)
    @step(pick=PICK, seconds=st.sampled_from((15.0, 50.0)))
    async def outage(self, pick: int, seconds: float) -> None:
        """No worker sends a heartbeat for long; then one comes back."""
        worker = self._worker(pick)
        self._compared.clock.advance(seconds)
        await self._beat(worker)
        await self._compared.do("upkeep", 1_000)

    @step(mishap=st.sampled_from(("save", "save", "lose", "lose", "restart", "reboot")))
    async def mishap(self, mishap: str) -> None:
        if mishap == "save":
            self._snapshot = self._compared.snapshot()
        if mishap == "lose" and self._snapshot is not None:
            await self._compared.restore(self._snapshot)
        if mishap == "restart" and self._compared.can(Capability.RESTART):
            await self._compared.restart()
        if mishap == "reboot" and self._compared.can(Capability.BOOT):
            self._compared.clock.reboot()
            await self._register("w9")
            await self._compared.do("upkeep", 1_000)

    @precondition(lambda self: self._workers)
    @step(pick=PICK, other=PICK, verdict=verdicts(), is_settled=st.booleans())
    async def lose_a_claim(self, pick: int, other: int, verdict: tuple[str, dict[str, Any]], is_settled: bool) -> None:
        """The store forgets that it leased jobs, leases them again, and the first worker settles."""
        worker, successor = self._worker(pick), self._worker(other)
        snapshot = self._compared.snapshot()
        await self._claim(worker)
        settlements = [self._settlement(lease, verdict) for lease in worker.holds.values()]
        if is_settled and settlements:
            await self._settle(settlements)
        await self._compared.restore(snapshot)
        await self._claim(successor)
        if settlements:
            await self._settle(settlements)

    @precondition(lambda self: self._workers)
    @step(pick=PICK, queue=st.sampled_from(QUEUES), verdict=verdicts(), is_cancelled=st.booleans())
    async def replace_behind_a_run(self, pick: int, queue: str, verdict: tuple[str, dict[str, Any]], is_cancelled: bool) -> None:
        """A job with a key runs, two replacements arrive one after the other, and the run ends with the verdict."""
        worker = self._worker(pick)
        first, *others = (self._compared.world.an_envelope(queue=queue, key="k1", on_conflict=OnConflict.REPLACE) for _ in range(3))
        await self._enqueue([first])
        await self._claim(worker, (queue,))
        for other in others:
            await self._enqueue([other])
        if is_cancelled:
            await self._compared.cancel([first.id])
            await self._beat(worker)
            await self._beat(worker)
        held = [lease for lease in worker.holds.values() if lease.envelope.id == first.id]
        if held:
            await self._settle([self._settlement(lease, verdict) for lease in held])
        await self._enqueue([self._compared.world.an_envelope(queue=queue, key="k1")])

    @precondition(lambda self: self._workers)
    @step(
        pick=PICK,
        queue=st.sampled_from(QUEUES),
        verdict=verdicts(),
        conflicts=st.lists(st.sampled_from(OnConflict), min_size=1, max_size=2),
    )
    async def cancel_and_run_again(self, pick: int, queue: str, verdict: tuple[str, dict[str, Any]], conflicts: list[OnConflict]) -> None:
        """A job with a key runs and is asked to stop, others with that key arrive, and the run ends with the verdict."""
        worker = self._worker(pick)
        first = self._compared.world.an_envelope(queue=queue, key="k1")
        await self._enqueue([first])
        await self._claim(worker, (queue,))
        await self._compared.cancel([first.id])
        for on_conflict in conflicts:
            await self._enqueue([self._compared.world.an_envelope(queue=queue, key="k1", on_conflict=on_conflict)])
        held = [lease for lease in worker.holds.values() if lease.envelope.id == first.id]
        if held:
            await self._settle([self._settlement(lease, verdict) for lease in held])
        await self._claim(worker, (queue,))
