"""The broker and the admin interface, for any store: each method runs an operation of the engine."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

import msgspec

from taskflow.broker.admin import FailureGroupRecord, Finding, LimitInfo, Metrics, Page, QueueInfo, Rebuilt, Redone, View
from taskflow.broker.engine import admin, history, job_pauses, jobs, limits, maintenance, pages, schedules, sessions
from taskflow.broker.engine.seam import Claimed, Operation
from taskflow.broker.paging import ScanRequest, ScanResult, page
from taskflow.broker.protocol import Added, Notes, Refused, UpkeepResult
from taskflow.broker.wakeups import Waiter
from taskflow.model.audit import Action, ActionRecord
from taskflow.model.envelope import Envelope, Lease
from taskflow.model.errors import BrokerError, BrokerRefused
from taskflow.model.limits import Gate
from taskflow.model.measures import MeasuresRecord
from taskflow.model.printable import one_line
from taskflow.model.record import Record, Status
from taskflow.model.rules import Rules
from taskflow.model.schedule import Amendment, Definition, Firing, ScheduleRecord
from taskflow.model.session import Beat, BeatAnswer, Session, SessionRecord
from taskflow.model.verdict import Settled, Settlement

T = TypeVar("T")


class EngineBroker(ABC):
    """A broker over a store. A subclass defines how the store runs an operation, how it claims, and how it wakes listeners."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.assumes_new = True
        self.rebuilds = False
        """True if the caller will recompute the indexes, so missing ones don't matter."""

    @abstractmethod
    async def run(self, operation: Operation[T]) -> T:
        """Run an operation on the store, and return its result."""

    @abstractmethod
    async def claim_records(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> Claimed | None: ...

    @abstractmethod
    async def examine(self) -> list[Finding]: ...

    @abstractmethod
    async def rebuild(self) -> Rebuilt: ...

    @abstractmethod
    def listen(self, topics: Sequence[str]) -> Waiter: ...

    @property
    def admin(self) -> EngineAdmin:
        return EngineAdmin(self)

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        answers = await self.run(jobs.enqueue(envelopes, self.rules, assumes_new=self.assumes_new))
        self.assumes_new = jobs.are_new(answers)
        return answers

    async def register(self, session: Session) -> tuple[str, ...]:
        return await self.run(sessions.register(session, self.rules))

    async def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> list[Lease]:
        return sessions.leases_of(await self.claim_records(session, request, queues, limit))

    async def beat(self, beat: Beat) -> BeatAnswer:
        return await self.run(sessions.beat(beat, self.rules))

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        return await self.run(jobs.settle(settlements, self.rules))

    async def cancel(self, ids: Sequence[bytes]) -> list[Status | None]:
        return await self.run(jobs.cancel(ids, self.rules))

    async def read(self, ids: Sequence[bytes]) -> list[Record | None]:
        return await self.run(jobs.read(ids))

    async def notes(self, job: bytes, first: int = 0) -> Notes:
        return await self.run(jobs.notes(job, first))

    async def holders(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return await self.run(jobs.holders(keys, self.rules))

    async def upkeep(self, limit: int, *, ends: bool = False) -> UpkeepResult:
        return await self.run(maintenance.upkeep(limit, ends, self.rules))

    async def define(self, definitions: Sequence[Definition], session: bytes | None = None, age: float = 0.0) -> list[bool]:
        return await self.run(schedules.define(definitions, session, age, self.rules))

    async def fire(self, firings: Sequence[Firing]) -> list[Added | Refused | None]:
        return await self.run(schedules.fire(firings, self.rules))


class EngineAdmin:
    def __init__(self, broker: EngineBroker) -> None:
        self._broker = broker
        self._run = broker.run
        self._rules = broker.rules

    async def queues(self) -> list[QueueInfo]:
        return await self._run(admin.queues())

    async def page(self, view: View, *, cursor: str | None = None, limit: int = 100) -> Page:
        return await page(self._scan, view, cursor, limit)

    async def _scan(self, request: ScanRequest) -> ScanResult:
        return await self._run(pages.scan(request))

    async def workers(self) -> list[SessionRecord]:
        return await self._run(admin.workers(self._rules))

    async def retry(self, ids: Sequence[bytes]) -> list[Redone]:
        return await self._run(admin.retry(ids, self._rules))

    async def flow(self, flow: bytes, *, first: int = 0, limit: int = 1_000) -> list[Record]:
        return await self._run(admin.flow(flow, first, limit))

    async def flows(self, limit: int = 20) -> list[Record]:
        return await self._run(admin.newest_flows(limit))

    async def cancel_flow(self, flow: bytes) -> int:
        return await self._run(admin.cancel_flow(flow, self._rules))

    async def run_now(self, ids: Sequence[bytes]) -> list[Status | None]:
        return await self._run(admin.run_now(ids, self._rules))

    async def failure_groups(self, *, queue: str | None = None, job: str | None = None, limit: int = 100) -> list[FailureGroupRecord]:
        return await self._run(admin.failure_groups(queue, job, limit))

    async def failed_ids(self, fingerprint: bytes) -> list[bytes]:
        return await self._run(admin.failed_ids(fingerprint))

    async def purge(self, view: View, *, limit: int = 1_000) -> int:
        return await self._run(admin.purge(view, limit, self._rules))

    async def drop(self, ids: Sequence[bytes]) -> list[Status | None]:
        return await self._run(admin.drop(ids, self._rules))

    async def pause(self, queue: str) -> None:
        await self._run(admin.pause(queue, self._rules, is_paused=True))

    async def resume(self, queue: str) -> None:
        await self._run(admin.pause(queue, self._rules, is_paused=False))

    async def pause_job(self, job: str) -> None:
        await self._run(job_pauses.pause(job, self._rules, is_paused=True))

    async def resume_job(self, job: str) -> bool:
        await self._run(job_pauses.pause(job, self._rules, is_paused=False))
        return await self._run(job_pauses.release(job, self._rules))

    async def paused_jobs(self) -> list[str]:
        return await self._run(job_pauses.names())

    async def schedules(self, names: Sequence[str] | None = None) -> list[ScheduleRecord]:
        return await self._run(schedules.records(names))

    async def amend_schedule(self, name: str, amendment: Amendment) -> bool:
        return await self._run(schedules.amend(name, amendment, self._rules))

    async def record_action(self, action: Action) -> None:
        await self._run(admin.record_action(action, self._rules))

    async def actions(self, *, before: int | None = None, limit: int = 100) -> list[ActionRecord]:
        return await self._run(admin.actions(before, limit))

    async def limits(self, limit: str | None = None, *, job: bytes | None = None) -> list[LimitInfo]:
        return await self._run(limits.records(limit, job))

    async def set_limit(self, gate: Gate, *, is_set: bool) -> None:
        await self._run(limits.set_number(gate, self._rules, is_set=is_set))

    async def metrics(self) -> Metrics:
        return await self._run(admin.metrics())

    async def record_measures(self, record_id: bytes, measures: bytes) -> None:
        await self._run(history.record(record_id, measures, self._rules))

    async def history(self, since: datetime, until: datetime) -> list[MeasuresRecord]:
        return await self._run(history.read(since, until))

    async def examine(self) -> list[Finding]:
        findings = await self._broker.examine()
        with contextlib.suppress(BrokerError):  # the findings or the next commands show why
            wrong = await self._run(limits.miscounted())
            if wrong and (wrong := wrong & await self._run(limits.miscounted())):  # a difference that stays isn't a change in progress
                says = f"{len(wrong):,} limit(s) with a wrong number of taken slots: stop the workers, and run `taskflow doctor --rebuild`"
                findings.append(Finding("limits", "problem", says))
        return findings

    async def rebuild(self) -> Rebuilt:
        self._broker.rebuilds = True
        living = [one_line(worker.session.name) for worker in await self.workers() if worker.is_alive]
        if living:
            raise BrokerRefused(
                f"{len(living):,} running worker(s): {', '.join(living[:5])}{', ...' * (len(living) > 5)}. "
                "Stop them with SIGTERM or your service manager, and run this again"
            )
        rebuilt = await self._broker.rebuild()
        gates = await self._run(limits.recount(self._rules))
        return msgspec.structs.replace(rebuilt, corrected=rebuilt.corrected | ({"slots of limits": gates} if gates else {}))
