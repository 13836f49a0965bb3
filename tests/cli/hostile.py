"""Text that controls a terminal or forges log lines, and a broker that has it in every field that it can return."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from taskflow.broker.admin import FailureGroupRecord, Finding, LimitedJob, LimitInfo, Metrics, Page, QueueInfo, Redone, View
from taskflow.broker.migrations import Migration, Upgrade
from taskflow.broker.protocol import Added, Refused
from taskflow.model.audit import Action, ActionRecord
from taskflow.model.envelope import Envelope
from taskflow.model.errors import BrokerRefused
from taskflow.model.ids import id_text
from taskflow.model.record import Record, Status
from taskflow.model.schedule import SCHEDULE, SCHEDULED_FOR, Amendment, ScheduleRecord
from taskflow.model.schedule_plan import SchedulePlan
from taskflow.model.session import Session, SessionRecord
from taskflow.model.stored_values import Unreadable
from taskflow.model.timetable import CronTimes, OwnTimes
from taskflow.model.verdict import Progress, RunError

FORGED = "2026-01-01 00:00:00,000 INFO    all is well"
HOSTILE = f"\x1b]52;c;aGk=\x07\x1b[2J\rover\b\n{FORGED}\n\x9b31m\u202eevil\u2066\u2028\u2029\x7f\x85\x00\t\ufeff\U000e0041\ud800"
HUGE = 10**30


def assert_safe(*outputs: str) -> None:
    """Assert that no character controls a terminal, and that no line begins with a stored text."""
    for output in outputs:
        for line in output.split("\n"):
            assert not line.startswith(FORGED[:10]), line
            unsafe = [c for c in line if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
            assert not unsafe, (unsafe, line)


class HostileBroker:
    """Contains a job in each status, an unreadable one, and one with odd numbers, instants and id. It is its own admin."""

    def __init__(self, text: str = HOSTILE) -> None:
        self._text = text
        self.records = [_record(bytes([number]) * 16, status, text) for number, status in enumerate(Status, 1)]
        self.records.append(_odd_record(text))
        self.records.reverse()
        self.acted_on: list[bytes] = []

    @property
    def admin(self) -> HostileBroker:
        return self

    async def close(self) -> None: ...

    async def enqueue(self, envelopes: Sequence[Envelope]) -> list[Added | Refused]:
        raise BrokerRefused(self._text)

    async def read(self, ids: Sequence[bytes]) -> list[Record | None]:
        by_id = {record.id: record for record in self.records}
        return [by_id.get(job_id) for job_id in ids]

    async def cancel(self, ids: Sequence[bytes]) -> list[Status | None]:
        self.acted_on += ids
        return [None if record is None else record.status for record in await self.read(ids)]

    async def queues(self) -> list[QueueInfo]:
        return [QueueInfo(name=self._text, is_paused=True, counts=dict.fromkeys(Status, HUGE), oldest_ready_for=1e300)]

    async def page(self, view: View, *, cursor: str | None = None, limit: int = 100) -> Page:
        first = 0 if cursor is None else int(cursor)
        more = None if first + limit >= len(self.records) else str(first + limit)
        return Page(records=self.records[first : first + limit], cursor=more, examined=limit, stopped_early=False)

    async def workers(self) -> list[SessionRecord]:
        session = Session(id=bytes(16), name=self._text, queues=(self._text,), concurrency=HUGE)
        never = datetime.max.replace(tzinfo=UTC)
        return [SessionRecord(session=session, registered_at=never, seconds_since_beat=float("inf"), leases=HUGE, is_dying=True)]

    async def retry(self, ids: Sequence[bytes]) -> list[Redone]:
        self.acted_on += ids
        return [Redone.KEY_TAKEN for _ in ids]

    async def purge(self, job_filter: View, *, limit: int = 1_000) -> int:
        purged = min(limit, len(self.records) - len(self.acted_on))
        self.acted_on += [record.id for record in self.records[:purged]]
        return purged

    async def drop(self, ids: Sequence[bytes]) -> list[Status | None]:
        return await self.cancel(ids)

    async def pause(self, queue: str) -> None:
        raise BrokerRefused(self._text)

    async def resume(self, queue: str) -> None: ...

    async def paused_jobs(self) -> list[str]:
        return [self._text]

    async def schedules(self, names: Sequence[str] | None = None) -> list[ScheduleRecord]:
        bodies = {
            self._text: b"\xff",
            "east": _body(CronTimes("@daily", "Asia/Tokyo")),
            "west": _body(CronTimes("@daily", "America/Lima")),
            "endless": _body(OwnTimes("Tides"), jitter=float("inf")),
            "odd": _body(OwnTimes(self._text.replace("\ud800", ""))),
        }
        return [_schedule(name, body) for name, body in bodies.items()]

    async def amend_schedule(self, name: str, amendment: Amendment) -> bool:
        return False

    async def failure_groups(self, *, queue: str | None = None, job: str | None = None, limit: int = 100) -> list[FailureGroupRecord]:
        never, counts = datetime.max.replace(tzinfo=UTC), {self._text: HUGE}
        sample = self.records[0].id
        return [FailureGroupRecord(fingerprint=bytes(8), count=HUGE, first=never, last=never, jobs=counts, deploys=counts, sample=sample)]

    async def limits(self, limit: str | None = None, *, job: bytes | None = None) -> list[LimitInfo]:
        holder = LimitedJob(id=id_text(bytes(16)), job=self._text, queue=self._text, is_running=True)
        numbers: dict[str, Any] = {
            "n": HUGE,
            "is_set": True,
            "running": HUGE,
            "waiting": HUGE,
            "per": None,
            "burst": HUGE,
            "opens_in": 1e300,
        }
        return [LimitInfo(limit=self._text, key=self._text, holders=(holder,), next=(holder,), **numbers)]

    async def record_action(self, action: Action) -> None: ...

    async def actions(self, *, before: int | None = None, limit: int = 100) -> list[ActionRecord]:
        text = self._text
        odd = Action(id=b"", by=text, kind=text, names=(text,), named=HUGE, which={text: text}, affected=HUGE, stopped=text, reason=text)
        return [ActionRecord(number=HUGE, at=datetime.max.replace(tzinfo=UTC), action=odd)]

    async def metrics(self) -> Metrics:
        return Metrics(totals={self._text: {self._text: HUGE}})

    async def examine(self) -> list[Finding]:
        return [Finding("place", "problem", self._text)]


class HostileMigratingBroker(HostileBroker):
    """A hostile broker with tables to migrate."""

    async def pending(self) -> Upgrade:
        return Upgrade(place=self._text, version=1, migrations=(Migration(2, "make the tables"),))

    async def migrate(self) -> Upgrade:
        return await self.pending()

    async def sql(self) -> str:
        return "SELECT 1;\n"


def _body(times: CronTimes | OwnTimes, **fields: Any) -> bytes:
    return SchedulePlan(times=times, template=Envelope(id=bytes(16), job="work", payload=b""), **fields).to_definition("").body


def _schedule(name: str, body: bytes) -> ScheduleRecord:
    never = datetime.max.replace(tzinfo=UTC)
    return ScheduleRecord(
        name=name,
        digest=bytes(16),
        body=body,
        is_declared=True,
        is_paused=False,
        next_at=never,
        last_at=datetime.min.replace(tzinfo=UTC),
        fired_at=never,
        last_id=bytes([1]) * 16,
        fired=HUGE,
        skipped=HUGE,
        missed=HUGE,
        declarers=(name, name),
        asleep_since=None,
    )


def _record(job_id: bytes, status: Status, text: str, **more: Any) -> Record:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    fields: dict[str, Any] = {
        "id": job_id,
        "job": text,
        "queue": text,
        "status": status,
        "priority": 0,
        "max_attempts": 1,
        "created_at": now,
        "due_at": now,
        "worker": text,
        "progress": Progress(0.5, text),
        "reason": text,
        "waiting_for": text,
        "errors": (RunError(text, text, text),),
        "headers": {text: text, SCHEDULE: text, SCHEDULED_FOR: "0001-01-01T00:00+14:00[Asia/Tokyo]"},
    }
    return Record(**fields | more)


def _odd_record(text: str) -> Record:
    return _record(
        b"\xffan id of 19 bytes",
        Status.FAILED,
        text,
        priority=-HUGE,
        max_attempts=0,
        epoch=HUGE,
        created_at=datetime.min.replace(tzinfo=UTC),
        due_at=datetime.max.replace(tzinfo=UTC),
        errors=(),
        unreadable=(Unreadable(text, text, b"\x1b[2J\n"), Unreadable("headers", "TypeError: expected bytes", b"")),
    )
