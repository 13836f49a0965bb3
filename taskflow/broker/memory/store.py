"""A store of records in this process's memory. Its methods are atomic, because the broker calls them under a lock."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

from taskflow.broker.engine import handover
from taskflow.broker.engine.records import BURIED, CANCELLED, FAILED, INDEXES, READY, RUNNING, SCHEDULED, SUCCEEDED, Flag, Kind, Position
from taskflow.broker.engine.seam import (
    MAX_FORGOTTEN,
    Addition,
    Claimed,
    Effect,
    Ended,
    Faded,
    HandedOver,
    Put,
    Record,
    Ref,
    Rev,
    Run,
    Scan,
    awaits_nothing,
    dispatch,
)
from taskflow.broker.memory.records import RecordStore, Stored
from taskflow.model import wording
from taskflow.model.flow import result_note
from taskflow.model.ids import ID_BYTES

CLAIM_NUMBER_BYTES: Final = 4
NOTES_INDEX: Final = next(number for number, index in enumerate(INDEXES) if index.name == "notes")


class MemoryStore(RecordStore):
    """The complete store. Its hot operations (fast paths) decide by headers alone, without decoding bodies."""

    def perform(self, effect: Effect) -> Any:
        """Perform a store call that an operation yielded, and return the answer."""
        return dispatch(self, effect)

    def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> Claimed | None:
        state = self._records.get(Ref(Kind.SESSION, session))
        if state is None or state.header["dead_at"] is not None:
            return None
        now = self._clock.wall()
        prefix = request.to_bytes(8, "big")
        if request <= state.header["request"]:
            until = (session, prefix + b"\xff" * CLAIM_NUMBER_BYTES)
            held = self._indexes["leases"].scan(Scan("leases", limit, (session,), after=(session, prefix), until=until))
            return Claimed([self._known(ref) for _, ref in held] if request == state.header["request"] else [], now)
        taken = list(itertools.islice(self._claimable(queues, request, now, limit), limit))
        self._lease(state, session, request, taken)
        for queue in {self._records[ref].header["queue"] for ref in taken} if len(taken) >= limit else ():
            if self._indexes["status"].size((queue, READY)):
                self.readied[queue] += 1  # wakes another worker
        leased = [(ref, self._records[ref]) for ref in taken]
        return Claimed([Record(ref, job.rev, dict(job.header), job.sent, job.state, job.content) for ref, job in leased], now)

    def claim_job(self, session: bytes, request: int, job_id: bytes) -> Record | None:
        """Lease a particular job, whatever is ahead of it in its queue. Return None if it isn't READY or SCHEDULED, if it's SCHEDULED and
        has limits or a tenant, or if its queue is paused. `taskflow.testing` uses this to run the jobs that a test has sent."""
        state, ref = self._records[Ref(Kind.SESSION, session)], Ref(Kind.JOB, job_id)
        stored = self._records.get(ref)
        if stored is None or stored.header["status"] not in (READY, SCHEDULED) or self._is_paused(stored.header["queue"]):
            return None
        if stored.header["status"] == SCHEDULED and stored.header["flags"] & Flag.ADMITTED:  # only the engine may make it READY
            return None
        if stored.header["status"] == SCHEDULED:
            self._change(ref, "due", self._new_rev(), {"status": READY, "due_at": self._clock.wall()})
        self._lease(state, session, request, [ref])
        return self._known(ref)

    def _lease(self, state: Stored, session: bytes, request: int, refs: Sequence[Ref]) -> None:
        state.header["request"] = request
        lease = {
            "status": RUNNING,
            "session": session,
            "claimed_at": self._clock.wall(),
            "claimed_steady": self._clock.steady(),
            "started_at": None,
            "worker": state.header["name"],
        }
        rev, prefix = self._new_rev(), request.to_bytes(8, "big")
        for number, ref in enumerate(refs):
            lease["epoch"] = self._records[ref].header["epoch"] + 1
            lease["claim"] = prefix + number.to_bytes(CLAIM_NUMBER_BYTES, "big")
            self._change(ref, "claim", rev, lease)

    def _claimable(self, queues: Sequence[str], request: int, now: int, limit: int) -> Iterator[Ref]:
        ready = self._indexes["ready"]
        if not queues:
            queues = sorted({prefix[0] for prefix in ready.prefixes()})
            turn = request % len(queues) if queues else 0
            queues = [*queues[turn:], *queues[:turn]]
        for queue in dict.fromkeys(queues):
            scan = None if self._is_paused(queue) else Scan("ready", limit, (queue,))
            while scan is not None:
                found = ready.scan(scan)
                for _, ref in found:
                    expires_at = self._records[ref].header["expires_at"]
                    if expires_at is None or expires_at > now:
                        yield ref
                scan = scan._replace(after=found[-1][0]) if len(found) == limit else None

    def _is_paused(self, queue: str) -> bool:
        return Ref(Kind.QUEUE, queue.encode()) in self._records

    def _known(self, ref: Ref) -> Record:
        record = self._record(ref, with_content=True)
        assert record is not None
        return record

    def add(self, jobs: Sequence[Put]) -> list[bool] | str:
        are_new = [put.ref not in self._records for put in jobs]
        if not self._has_room(sum(are_new)):
            return self._is_full()
        rev = self._new_rev()
        for put, is_new in zip(jobs, are_new, strict=True):
            if is_new:
                self._put(put, rev)
                self._totals[put.header["queue"], "enqueue"] += 1
        return are_new

    def succeed(self, runs: Sequence[Run]) -> Ended:
        now, rev, awaited = self._clock.wall(), self._new_rev(), Counter[bytes]()
        answers = [self._succeed_one(run, now, rev, awaited) for run in runs]
        refs = [Ref(Kind.JOB, job_id) for job_id in awaited]
        for ref in refs:
            self._add(Addition(ref, "awaits", -awaited[ref.id]))
        found = [(ref.id, self._records.get(ref)) for ref in refs]
        return Ended(answers, [job_id for job_id, stored in found if stored is None or awaits_nothing(stored.header)])

    def _succeed_one(self, run: Run, now: int, rev: Rev, awaited: Counter[bytes]) -> bool | None:
        ref = Ref(Kind.JOB, run.id)
        stored = self._records.get(ref)
        if stored is None:
            return False
        header, fence = stored.header, run.epoch.to_bytes(8, "big") + run.session + run.claim + b"\0"
        if header["status"] != RUNNING or (header["epoch"], header["session"], header["claim"]) != run[1:4]:
            if run.awaited_by is not None:
                awaited[run.awaited_by] += 0  # a resent call returns the same `released` again
            return bool(header["settled"] == fence)
        key = None if run.key is None else Ref(Kind.KEY, run.key)
        if key is not None and (of_key := self._records.get(key)) is not None and of_key.header == {"holder": run.id, "next": None}:
            ties = Flag.TIES & ~Flag.KEYED
        else:
            key, ties = None, Flag.TIES
        note = Ref(Kind.NOTE, run.note) if run.note else None
        has_tie = run.awaited_by is not None and bool(header["flags"] & Flag.AWAITED)
        if header["flags"] & (ties & ~Flag.AWAITED if has_tie else ties) or (note is not None and note in self._records):
            return None
        if has_tie and note is not None:
            self._put_note(note, result_note(run.result), rev)
        if has_tie and run.awaited_by is not None:
            awaited[run.awaited_by] += 1
        if key is not None:
            self._drop(key)
        stored.content = run.result
        ended = {"status": SUCCEEDED, "session": None, "claim": None, "settled": fence, "ended_at": now}
        ended |= {"started_at": now - run.ran_for, "fade_at": now + run.keep_for}
        self._change(ref, "succeed", rev, ended)
        return True

    def _put_note(self, ref: Ref, note: bytes, rev: Rev) -> None:
        """Store a new note, which is a result for an awaiting job, as `_put` would, but several times as fast."""
        self._records[ref] = stored = Stored({"size": len(note)})
        stored.rev, stored.state, stored.places = rev, note, [(NOTES_INDEX, (ref.id,))]
        self._numbered[NOTES_INDEX].add((ref.id,), ref)

    def hand_over(self, runs: Sequence[Run], gate_ids: Sequence[bytes]) -> HandedOver:
        return handover.by_step(self.perform, runs, gate_ids)

    def promote(self, limit: int) -> tuple[int, int | None]:
        now, rev = self._clock.wall(), self._new_rev()
        due = self._indexes["due"].scan(Scan("due", limit + 1))
        ready = [ref for (due_at, _), ref in due if due_at <= now][:limit]
        for ref in ready:
            header = self._records[ref].header
            if header["status"] == SCHEDULED:
                self._change(ref, "due", rev, {"status": READY})
            else:
                self._change(ref, "release", rev, {"status": READY, "due_at": max(header["due_at"], now)})
        return len(ready), due[len(ready)][0][0] if len(due) > len(ready) else None

    def fade(self, limit: int, max_kept: int, repeat_for: int) -> Faded:
        now, rev = self._clock.wall(), self._new_rev()
        buried, left = 0, dict[Ref, bool]()
        surplus = self._over_cap(max_kept, limit + 1)
        for queue, ref in surplus[:limit]:
            if self._bury(ref, rev, repeat_for, left, is_surplus=True):
                buried += 1
                self._totals[queue, wording.DROPPED_OVER_CAP] += 1
        room = limit - buried - len(left)
        most = room + MAX_FORGOTTEN
        fading = self._indexes["fading"].scan(Scan("fading", most + 1, until=(now, b"\xff" * ID_BYTES)))
        has_more = len(surplus) > limit or len(fading) > most
        for _, ref in fading[:most]:
            if self._records[ref].header["status"] == BURIED:
                self._drop(ref)
            elif room:
                room -= 1
                buried += self._bury(ref, rev, repeat_for, left, is_surplus=False)
            else:
                has_more = True
                break
        return Faded(buried, has_more, left)

    def _over_cap(self, max_kept: int, limit: int) -> list[tuple[str, Ref]]:
        """Return up to `limit` ended jobs beyond `max_kept` per queue, oldest first, with their queues. Failed jobs count separately."""
        found = list[tuple[str, Ref]]()
        for queue in sorted({group.prefix[0] for group in self._indexes["status"].groups(())}):
            for statuses in ((SUCCEEDED, CANCELLED), (FAILED,)):
                surplus = sum(self._indexes["status"].size((queue, status)) for status in statuses) - max_kept
                if surplus > 0:
                    oldest = sorted(itertools.chain(*(self._ended(status, queue, surplus) for status in statuses)))
                    found += [(queue, ref) for _, ref in oldest[:surplus]]
        return found[:limit]

    def _ended(self, status: int, queue: str, limit: int) -> Iterator[tuple[Position, Ref]]:
        return ((position[2:], ref) for position, ref in self._indexes["ended"].scan(Scan("ended", limit, (status, queue))))

    def _bury(self, ref: Ref, rev: Rev, repeat_for: int, left: dict[Ref, bool], *, is_surplus: bool) -> bool:
        stored = self._records[ref]
        if stored.header["flags"] & Flag.KEPT_APART:
            left.setdefault(ref, is_surplus)
            return False
        stored.content = stored.state = stored.sent = None
        forgotten_at = stored.header["ended_at"] + repeat_for
        self._change(ref, "drop", rev, {"status": BURIED, "cause": None, "fade_at": forgotten_at})
        if forgotten_at <= self._clock.wall():
            self._drop(ref)
        return True
