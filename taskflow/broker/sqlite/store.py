"""The store of records in a file: the operations of the engine, and the verbs for jobs without ties, which know headers alone."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, TypeVar

from taskflow.broker.engine.records import BURIED, CANCELLED, FAILED, READY, RUNNING, SCHEDULED, SUCCEEDED, Flag, Kind
from taskflow.broker.engine.seam import KEEP, MOST_FORGOTTEN, Claimed, Effect, Faded, Operation, Put, Record, Ref, Run, dispatch
from taskflow.broker.sqlite.changes import RecordChanger, new_rev
from taskflow.broker.sqlite.counts import READY_QUEUES
from taskflow.broker.sqlite.hot_statements import (
    ADD,
    ADDED,
    ALL_READY,
    BURY,
    CLAIMED,
    DUE,
    FADING,
    FIRST_READY,
    FORGET,
    FREE_KEYS,
    IDS,
    KEPT,
    LEASE,
    LEASES,
    MAX_EPOCH,
    MOVED,
    NEXT_DUE,
    NUMBER_OF_READY_QUEUES,
    OLDEST,
    PROMOTE,
    SUCCEED,
    TAKE_REQUEST,
)
from taskflow.broker.sqlite.rows import read_rows, record_packing, rev_of
from taskflow.broker.sqlite.statements import Statements, change_rows, filled_up, insert_rows
from taskflow.broker.sqlite.store_file import SpaceLimits
from taskflow.model import wording
from taskflow.model.clock import Clock


class MaintainedRecords(RecordChanger):
    """Readies due jobs, and buries those that need not be kept."""

    def promote(self, limit: int) -> tuple[int, int | None]:
        self.forget()
        now = self.clock.wall()
        next_due = self._next_due()
        if next_due is None or next_due > now or limit <= 0:
            return 0, next_due
        rows = read_rows(self.connection, self.sql, DUE, MOVED, (now, limit))
        self._change(PROMOTE, (new_rev(), now), rows)
        for (queue, status), number in Counter([(row[3], row[1]) for row in rows]).items():
            self.count(queue, "due" if status == SCHEDULED else "release", number)
            self.count_move(queue, status, READY, number)
            self.announcement.ready[queue] += number
        return len(rows), self._next_due()

    def _next_due(self) -> int | None:
        row = self.connection.execute(self.sql[NEXT_DUE]).fetchone()
        return None if row is None else int(row[0])

    def fade(self, limit: int, most_kept: int, repeat_for: int) -> Faded:
        self.forget()
        self.flush()
        now, left = self.clock.wall(), dict[Ref, bool]()
        surplus = self._over_cap(most_kept, limit + 1)
        buried = self._bury(surplus[:limit], now, repeat_for, left, is_surplus=True)
        rest = limit - buried - len(left)
        fading = read_rows(self.connection, self.sql, FADING, MOVED, (now, rest + MOST_FORGOTTEN + 1))
        has_more = len(surplus) > limit or len(fading) > rest + MOST_FORGOTTEN
        fading.sort(key=itemgetter(0))
        fading_jobs = [row for row in fading if row[1] != BURIED]
        if len(fading_jobs) > rest:
            has_more, fading = True, fading[: fading.index(fading_jobs[rest])]
        self._change(FORGET, (), [row for row in fading[: rest + MOST_FORGOTTEN] if row[1] == BURIED])
        buried += self._bury(fading_jobs[:rest], now, repeat_for, left, is_surplus=False)
        return Faded(buried, has_more, left)

    def _over_cap(self, most_kept: int, limit: int) -> list[list[Any]]:
        """Return the oldest ended jobs of queues that have too many of them, at most `limit`."""
        found, kept = list[list[Any]](), Counter[tuple[str, bool]]()
        for queue, what, n in self.connection.execute(self.sql[KEPT]).fetchall():
            kept[queue, what == f"={FAILED}"] += n
        for (queue, has_failed), n in sorted(kept.items()):
            if n > most_kept and len(found) < limit:
                surplus = min(n - most_kept, limit - len(found))
                statuses = (FAILED, FAILED) if has_failed else (SUCCEEDED, CANCELLED)
                values = (statuses[0], queue, surplus, statuses[1], queue, 0 if has_failed else surplus, surplus)
                rows = read_rows(self.connection, self.sql, OLDEST, MOVED, values)
                found += rows
        return found

    def _bury(self, rows: Sequence[list[Any]], now: int, repeat_for: int, left: dict[Ref, bool], *, is_surplus: bool) -> int:
        """Bury jobs without tags, and return their number. The others are added to `left`."""
        plain = list[list[Any]]()
        for row in rows:
            if row[4] & Flag.TAGGED:
                left.setdefault(Ref(Kind.JOB, row[6]), is_surplus)
            else:
                plain.append(row)
        kept = [row for row in plain if row[5] + repeat_for > now]
        self._change(BURY, (new_rev(), repeat_for), kept)
        self._change(FORGET, (), [row for row in plain if row[5] + repeat_for <= now])
        for (queue, status), number in Counter([(row[3], row[1]) for row in plain]).items():
            self.count(queue, "drop", number)
            self.count_move(queue, status, None, number)
            if is_surplus:
                self.count(queue, wording.DROPPED_OVER_CAP, number)
        return len(plain)

    def _change(self, text: str, values: tuple[Any, ...], rows: Sequence[list[Any]]) -> None:
        if rows:
            self.connection.execute(self.sql[text], (*values, json.dumps([row[2] for row in rows])))


T = TypeVar("T")

MOST_ANSWERED: Final = 64 << 20
"""The maximum total size in bytes of the payloads in one answer to a claim. The next request gets the rest."""

_MIN_QUEUES: Final = 32
"""The minimum number of queues to read at once."""


REQUEST_BYTES: Final = 8

MAX_REMEMBERED: Final = 256
"""The number of claims of which a store remembers the queue, so that counting their ends takes no statement."""


class SqliteStore(MaintainedRecords):
    """The complete store, over one connection."""

    def __init__(self, connection: sqlite3.Connection, sql: Statements, clock: Clock, limits: SpaceLimits) -> None:
        super().__init__(connection, sql, clock, limits)
        self._leased_from: dict[tuple[bytes, bytes], str] = {}

    def drive(self, operation: Operation[T]) -> T:
        """Run an operation of the engine."""
        self.forget()
        try:
            effect = next(operation)
            while True:
                effect = operation.send(self.perform(effect))
        except StopIteration as end:
            answer: T = end.value
            return answer
        finally:
            operation.close()

    def perform(self, effect: Effect) -> Any:
        """Answer what an operation has yielded."""
        return dispatch(self, effect)

    # --- add -------------------------------------------------------------------------------------------------

    def add(self, jobs: Sequence[Put]) -> list[bool] | str:
        self.forget()
        rev, now = new_rev(), self.clock.wall()
        rows = [_added_row(put, put.header, rev, now) for put in jobs]
        if self.is_limited:
            known = self.records([put.ref for put in jobs])
            message = self.room_for(len(jobs) - len(known), sum(len(row[-1] or b"") for row in rows))
            if message is not None:
                return message
        if insert_rows(self.connection, self.sql, ADD, rows) == len(rows):
            new, are_new = rows, [True] * len(rows)
        else:
            added = set[bytes]()
            for size, values in filled_up([(row[0],) for row in rows]):
                found = read_rows(self.connection, self.sql, ADDED, IDS, (*values, rev), size)
                added.update(row[0] for row in found)
            new, are_new = [row for row in rows if row[0] in added], [row[0] in added for row in rows]
        for queue, number in Counter([row[4] for row in new]).items():
            self.count(queue, "enqueue", number)
            self.count_move(queue, None, READY, number)
            self.announcement.ready[queue] += number
        return are_new

    # --- claim -----------------------------------------------------------------------------------------------

    def claim(self, session: bytes, request: int, queues: Sequence[str], limit: int) -> Claimed | None:
        self.forget()
        now = self.clock.wall()
        taken = self.connection.execute(self.sql[TAKE_REQUEST], (request, session, request)).fetchall()
        if not taken:
            return self._repeat(session, request, limit, now)
        rev, found, seqs, size = new_rev(), list[Record](), list[int](), 0
        token, prefix = rev_of(rev), request.to_bytes(8, "big")
        for rows in self._in_turn(queues, request, now, limit, found):
            for row in rows:
                record = self._leased(row, token, session, prefix + len(found).to_bytes(4, "big"))
                size += len(record.content or b"")
                if size > MOST_ANSWERED and found:
                    limit = 0
                    break
                found.append(record)
                seqs.append(row[2])
            if len(found) >= limit:
                break
        if found:
            self._lease(seqs, rev, session, str(taken[0][0]), now, found)
        return Claimed(found, now)

    def _in_turn(self, queues: Sequence[str], request: int, now: int, limit: int, found: Sequence[Record]) -> Iterator[list[list[Any]]]:
        """Yield the columns of READY jobs, queue by queue. The caller adds to `found` what it takes.

        Without queues, one statement reads all those that the claim empties.
        """
        for queue in dict.fromkeys(queues):
            yield self._first_ready(queue, now, limit - len(found))
        if queues:
            return
        together, expected = list[str](), 0
        for queue, number in self._ready_queues(request, limit):
            left = limit - len(found)
            together.append(queue)
            expected += number
            if expected < left:
                continue
            last = together.pop() if expected > left else None
            yield self._all_ready(together, now, left)
            if last is not None:
                yield self._first_ready(last, now, limit - len(found))
            together, expected = [], 0
        yield self._all_ready(together, now, limit - len(found))

    def _first_ready(self, queue: str, now: int, limit: int) -> list[list[Any]]:
        """Return the columns of a queue's first READY jobs, none if it is paused."""
        rows = read_rows(self.connection, self.sql, FIRST_READY, CLAIMED, (queue, queue, now, max(0, limit)))
        rows.sort(key=_place)
        return rows

    def _all_ready(self, queues: Sequence[str], now: int, limit: int) -> list[list[Any]]:
        """Return the columns of all READY jobs of these queues, in their order."""
        if len(queues) < 2:
            return [row for queue in queues for row in self._first_ready(queue, now, limit)]
        places = {queue: number for number, queue in enumerate(queues)}
        rows = list[list[Any]]()
        for size, values in filled_up([(queue,) for queue in queues]):
            rows += read_rows(self.connection, self.sql, ALL_READY, CLAIMED, (*values, now, limit), size)
        rows.sort(key=lambda row: (places.get(row[5], len(places)), *_place(row)))
        return rows[:limit]

    def _leased(self, row: list[Any], rev: bytes, session: bytes, claim: bytes) -> Record:
        _, due_at, _, flags, priority, queue, job, created_at, expires_at, epoch, job_id, sent, state, content, *is_long = row
        header = {
            "flags": flags,
            "priority": priority,
            "queue": queue,
            "job": job,
            "created_at": created_at,
            "due_at": due_at,
            "expires_at": expires_at,
            "epoch": min(epoch, MAX_EPOCH) + 1,
            "session": session,
            "claim": claim,
        }
        ref = Ref(Kind.JOB, job_id)
        if is_long:
            return self.records([ref], with_content=True)[ref]._replace(rev=rev, header=header)
        return Record(ref, rev, header, sent, state, content)

    def _lease(self, seqs: Sequence[int], rev: int, session: bytes, worker: str, now: int, found: Sequence[Record]) -> None:
        rows = [(seq, record.header["claim"]) for seq, record in zip(seqs, found, strict=True)]
        change_rows(self.connection, self.sql, LEASE, rows, (rev, session, now, self.clock.steady(), worker))
        queues = Counter([record.header["queue"] for record in found])
        for queue, number in queues.items():
            self.count(queue, "claim", number)
            self.count_move(queue, READY, RUNNING, number)
        if len(queues) == 1:
            self._leased_from[session, found[0].header["claim"][:REQUEST_BYTES]] = found[0].header["queue"]
            if len(self._leased_from) > MAX_REMEMBERED:
                del self._leased_from[next(iter(self._leased_from))]

    def _ready_queues(self, request: int, limit: int) -> Iterator[tuple[str, int]]:
        """Yield the queues with READY jobs and their numbers, beginning at a different one with each request. Only as many as the claim
        needs are read."""
        self.flush()
        [(number,)] = self.connection.execute(self.sql[NUMBER_OF_READY_QUEUES]).fetchall()
        first, at_once = request % max(1, number), max(limit, _MIN_QUEUES)
        for offset, most in ((first, number - first), (0, first)):
            while most > 0:
                yield from self.connection.execute(self.sql[READY_QUEUES], (min(most, at_once), offset)).fetchall()
                offset, most = offset + at_once, most - at_once

    def _repeat(self, session: bytes, request: int, limit: int, now: int) -> Claimed | None:
        """Answer a request that the session has sent before. Return None if the session is unknown or dead."""
        ref = Ref(Kind.SESSION, session)
        known = self.records([ref]).get(ref)
        if known is None or known.header["dead_at"] is not None:
            return None
        if request < known.header["request"]:
            return Claimed([], now)
        prefix = request.to_bytes(8, "big")
        packing = record_packing(Kind.JOB, True)
        rows = read_rows(self.connection, self.sql, LEASES, packing, (session, prefix, prefix + b"\xff" * 4, limit))
        found = [packing.record(self.connection, self.sql, row) for row in rows]
        found.sort(key=lambda record: record.header["claim"])
        return Claimed([record._replace(header={name: record.header[name] for name in _LEASE_FIELDS}) for record in found], now)

    # --- succeed ---------------------------------------------------------------------------------------------

    def succeed(self, runs: Sequence[Run]) -> list[bool | None]:
        self.forget()
        rev, now = new_rev(), self.clock.wall()
        fences = [epoch.to_bytes(8, "big") + session + claim + b"\0" for _, epoch, session, claim, *_ in runs]
        rows = [
            (session, claim, job_id, epoch, fence, now - ran_for, now + keep_for, result, key)
            for fence, (job_id, epoch, session, claim, result, ran_for, keep_for, key) in zip(fences, runs, strict=True)
        ]
        before = self.connection.total_changes
        change_rows(self.connection, self.sql, SUCCEED, rows, (rev, now))
        ended = self.connection.total_changes - before
        keys = [(run.key,) for run in runs if run.key is not None]
        change_rows(self.connection, self.sql, FREE_KEYS, keys, (rev,))
        queues = [self._leased_from.get((run.session, run.claim[:REQUEST_BYTES])) for run in runs]
        answers: list[bool | None] = [True] * len(runs)
        if ended < len(runs) or None in queues:
            queues = self._find_ended(runs, fences, rev, answers)
        self.announcement.ended.update([run.id for run, queue in zip(runs, queues, strict=True) if queue is not None])
        for queue, number in Counter(queues).items():
            if queue is not None:
                self.count(queue, "succeed", number)
                self.count_move(queue, RUNNING, SUCCEEDED, number)
        return answers

    def _find_ended(self, runs: Sequence[Run], fences: Sequence[bytes], rev: int, answers: list[bool | None]) -> list[str | None]:
        """Return the queues of the jobs that have just got this revision, None for other jobs, of which it gives the answers."""
        known, token, queues = self.records([Ref(Kind.JOB, run.id) for run in runs]), rev_of(rev), list[str | None]()
        for number, (run, fence) in enumerate(zip(runs, fences, strict=True)):
            record = known.get(Ref(Kind.JOB, run.id))
            header = {} if record is None else record.header
            is_ended = record is not None and record.rev == token and header["settled"] == fence
            queues.append(header["queue"] if is_ended else None)
            if record is None or is_ended:
                answers[number] = is_ended
            elif (header["status"], header["epoch"], header["session"], header["claim"]) == (RUNNING, run.epoch, run.session, run.claim):
                answers[number] = None
            else:
                answers[number] = header["settled"] == fence
        return queues


_place: Final[Callable[[list[Any]], tuple[int, int, int]]] = itemgetter(0, 1, 2)
_LEASE_FIELDS: Final = (*("flags", "priority", "queue", "job", "created_at", "due_at", "expires_at", "epoch", "session", "claim"),)


def _added_row(put: Put, header: Mapping[str, Any], rev: int, now: int) -> tuple[Any, ...]:
    """Return the values of `ADD`."""
    expires_at = header.get("expires_at")
    return (
        put.ref.id,
        rev,
        header.get("flags", 0),
        header.get("priority", 0),
        header["queue"],
        header["job"],
        now,
        now,
        None if expires_at is None else now + expires_at,
        None if put.sent is KEEP else put.sent,
        None if put.content is KEEP else put.content,
    )
