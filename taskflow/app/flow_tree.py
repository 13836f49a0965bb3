"""A flow as operators see it: a tree with each job above the jobs that it waits for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from taskflow.app.bulk_actions import CallBroker
from taskflow.model.ids import id_text
from taskflow.model.record import Record, Status

MAX_BESIDE: Final = 20
"""The maximum number of jobs shown below a job that waits for them."""
MAX_LEVEL: Final = 30
"""Jobs that are deeper in the tree are shown at this level."""
AT_ONCE: Final = 1_000

URGENCY: Final = (Status.FAILED, Status.RUNNING, Status.CANCELLED, Status.READY, Status.SCHEDULED, Status.HELD, Status.SUCCEEDED)
"""If a job waits for more jobs than can be shown, jobs are chosen by status, in this order."""


class TreeLine(NamedTuple):
    """A line of the tree, at depth `level`: one job or, if `record` is None, a `text` about several jobs."""

    level: int
    record: Record | None
    text: str = ""

    @property
    def note(self) -> str:
        """The text about the line's job, or the reason why the job waits or has ended. Empty for a line about several jobs."""
        if self.record is None:
            return ""
        if self.text:
            return self.text
        if self.record.status is Status.HELD and self.record.awaits:
            return f"awaits {self.record.awaits:,}"
        return (self.record.reason or self.record.waiting_for or "").partition("\n")[0]


async def flow_records(call: CallBroker, flow: bytes) -> list[Record]:
    """Return those jobs of a flow that the store still keeps, in the order of their numbers."""
    found, first, last = list[Record](), 0, -1
    while first > last:  # a damaged record may have any number
        last = first
        page = await call(lambda broker, first=first: broker.admin.flow(flow, first=first, limit=AT_ONCE))  # type: ignore[misc]
        found += page
        first = 1 + max((record.member.number for record in page if record.member is not None), default=-1)
    return found


async def flow_of(call: CallBroker, named: bytes) -> tuple[bytes, list[Record]]:
    """Return the id and the jobs of a flow, given its id or the id of one of its jobs. The list is empty if neither exists."""
    flow = await flow_id_of(call, named)
    return flow, await flow_records(call, flow)


async def flow_id_of(call: CallBroker, named: bytes) -> bytes:
    """Return the id of a flow, given its id or the id of one of its jobs."""
    [record] = await call(lambda broker: broker.read([named]))
    return named if record is None or record.member is None else record.member.flow


def to_retry(records: Sequence[Record]) -> list[bytes]:
    """Return the ids of the flow's jobs that ended without success, except those that are restored when another job is retried."""
    return [
        record.id
        for record in records
        if record.status in (Status.FAILED, Status.CANCELLED)
        and (record.cancelled_by is None or (record.member is not None and record.cancelled_by == record.member.flow))
    ]


def tree_of(records: Sequence[Record]) -> Iterator[TreeLine]:
    """Yield the flow's last jobs, each followed by the jobs that it waits for. The tree below a job is shown only once."""
    before, known, shown = defaultdict[bytes, list[Record]](list), {record.id for record in records}, set[bytes]()
    for record in records:
        for join in record.joins:
            before[join].append(record)
    ends = [record for record in records if known.isdisjoint(record.joins)]
    lines = _beside(ends, 0)
    while lines:
        line = lines.pop()
        if line.record is None or line.record.id not in shown:
            yield line
        elif before[line.record.id]:
            yield line._replace(text="as above")
        if line.record is not None and line.record.id not in shown:
            shown.add(line.record.id)
            lines += _beside(before[line.record.id], min(line.level + 1, MAX_LEVEL))


def _beside(records: Sequence[Record], level: int) -> list[TreeLine]:
    """Return the lines of sibling jobs, the last one first. If there are many, the least urgent ones share a line."""
    some, others = list(records), list[Record]()
    if len(some) > MAX_BESIDE:
        some.sort(key=lambda record: URGENCY.index(record.status))
        some, others = some[:MAX_BESIDE], some[MAX_BESIDE:]
    summary = [TreeLine(level, None, f"and {summary_of(others)}")] if others else []
    return [*summary, *(TreeLine(level, record) for record in reversed(some))]


def summary_of(records: Sequence[Record]) -> str:
    """Return a phrase that counts the jobs, in all and by status."""
    counts = Counter(record.status for record in records)
    jobs = "1 job" if len(records) == 1 else f"{len(records):,} jobs"
    return f"{jobs}: {', '.join(f'{counts[status]:,} {status}' for status in Status if counts[status])}"


def flow_json(flow: bytes, records: Sequence[Record]) -> dict[str, Any]:
    """Convert a flow to JSON. In each job, `waits_for` has the numbers of the jobs that it waits for."""
    before, numbers = defaultdict[bytes, list[int]](list), [record.member.number if record.member else 0 for record in records]
    for number, record in zip(numbers, records, strict=True):
        for join in record.joins:
            before[join].append(number)
    jobs = [
        {
            "number": number,
            "id": id_text(record.id),
            **{name: getattr(record, name) for name in ("status", "job", "queue", "awaits", "reason")},
            "waits_for": before[record.id],
            "cancelled_by": None if record.cancelled_by is None else id_text(record.cancelled_by),
        }
        for number, record in zip(numbers, records, strict=True)
    ]
    return {"id": id_text(flow), "jobs": jobs}
