"""The hot operations (fast paths) of upkeep. They make due jobs READY, and bury ended jobs: they drop all but the ids and headers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Final

from taskflow.broker.engine.records import BURIED, CANCELLED, FAILED, READY, SCHEDULED, SUCCEEDED, Flag, Kind, Type
from taskflow.broker.engine.seam import MAX_FORGOTTEN, Faded, Ref
from taskflow.broker.sqlite.changes import RecordChanger, new_rev
from taskflow.broker.sqlite.queries import Packing, read_rows
from taskflow.broker.sqlite.tables import BY_INDEX
from taskflow.model import wording

MAX_INSTANT: Final = 1 << 62
"""Before an addition, later stored times are lowered to this one, so that sums stay within 64 bits. Only other programs write them."""

MOVED: Final = Packing(
    [
        *(("place", Type.NUMBER), ("status", Type.SMALL), ("seq", Type.NUMBER), ("queue", Type.NAME), ("flags", Type.SMALL)),
        *(("ended_at", Type.NUMBER), ("id", Type.BYTES)),
    ]
)
COLUMNS: Final = "status, seq, queue, flags, ended_at, id"

IS_DUE: Final = BY_INDEX["due"].when
NEXT_DUE: Final = f'SELECT due_at FROM "~jobs" INDEXED BY "~jobs_due" WHERE {IS_DUE} ORDER BY due_at LIMIT 1'
DUE: Final = f"""\
SELECT @ FROM (
  SELECT due_at AS place, {COLUMNS} FROM "~jobs" INDEXED BY "~jobs_due" WHERE {IS_DUE} AND due_at <= ? ORDER BY due_at, seq LIMIT ?
) AS r"""
PROMOTE: Final = """\
UPDATE "~jobs" SET status = 2, rev = ?, due_at = iif(status = 0, max(due_at, ?), due_at)
WHERE seq IN (SELECT value FROM json_each(?))"""

KEPT: Final = """SELECT queue, what, n FROM "~counted" WHERE what >= '=4' AND what <= '=6' AND n > 0"""
OLDEST: Final = f"""\
SELECT @ FROM (
  SELECT * FROM (SELECT ended_at AS place, {COLUMNS} FROM "~jobs" WHERE status = ? AND status > 3 AND status < 7 AND queue = ?
    ORDER BY ended_at, seq LIMIT ?)
  UNION ALL
  SELECT * FROM (SELECT ended_at AS place, {COLUMNS} FROM "~jobs" WHERE status = ? AND status > 3 AND status < 7 AND queue = ?
    ORDER BY ended_at, seq LIMIT ?)
  ORDER BY place, seq LIMIT ?
) AS r"""
FADING: Final = f"""\
SELECT @ FROM (
  SELECT fade_at AS place, {COLUMNS} FROM "~jobs" INDEXED BY "~jobs_fading" WHERE fade_at IS NOT NULL AND fade_at <= ?
  ORDER BY fade_at, id LIMIT ?
) AS r"""
BURY: Final = f"""\
UPDATE "~jobs" SET
  status = {BURIED}, rev = ?, cause = NULL, fade_at = min(ended_at, {MAX_INSTANT}) + ?, sent = NULL, state = NULL, content = NULL
WHERE seq IN (SELECT value FROM json_each(?))"""
FORGET: Final = 'DELETE FROM "~jobs" WHERE seq IN (SELECT value FROM json_each(?))'


class MaintainedRecords(RecordChanger):
    """Makes due jobs READY, and buries ended jobs that need not be kept."""

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

    def fade(self, limit: int, max_kept: int, repeat_for: int) -> Faded:
        self.forget()
        self.flush()
        now, left = self.clock.wall(), dict[Ref, bool]()
        surplus = self._over_cap(max_kept, limit + 1)
        buried = self._bury(surplus[:limit], now, repeat_for, left, is_surplus=True)
        rest = limit - buried - len(left)
        fading = read_rows(self.connection, self.sql, FADING, MOVED, (now, rest + MAX_FORGOTTEN + 1))
        has_more = len(surplus) > limit or len(fading) > rest + MAX_FORGOTTEN
        fading.sort(key=itemgetter(0))
        fading_jobs = [row for row in fading if row[1] != BURIED]
        if len(fading_jobs) > rest:
            has_more, fading = True, fading[: fading.index(fading_jobs[rest])]
        self._change(FORGET, (), [row for row in fading[: rest + MAX_FORGOTTEN] if row[1] == BURIED])
        buried += self._bury(fading_jobs[:rest], now, repeat_for, left, is_surplus=False)
        return Faded(buried, has_more, left)

    def _over_cap(self, max_kept: int, limit: int) -> list[list[Any]]:
        """Return the rows of up to `limit` ended jobs beyond `max_kept` per queue, oldest first. Failed jobs count separately."""
        found, kept = list[list[Any]](), Counter[tuple[str, bool]]()
        for queue, what, n in self.connection.execute(self.sql[KEPT]).fetchall():
            kept[queue, what == f"={FAILED}"] += n
        for (queue, has_failed), n in sorted(kept.items()):
            if n > max_kept and len(found) < limit:
                surplus = min(n - max_kept, limit - len(found))
                statuses = (FAILED, FAILED) if has_failed else (SUCCEEDED, CANCELLED)
                values = (statuses[0], queue, surplus, statuses[1], queue, 0 if has_failed else surplus, surplus)
                rows = read_rows(self.connection, self.sql, OLDEST, MOVED, values)
                found += rows
        return found

    def _bury(self, rows: Sequence[list[Any]], now: int, repeat_for: int, left: dict[Ref, bool], *, is_surplus: bool) -> int:
        """Bury the jobs without tags and notes, or forget them if they ended over `repeat_for` ago. Return how many there were, and add the
        other jobs to `left`."""
        plain = list[list[Any]]()
        for row in rows:
            if row[4] & Flag.KEPT_APART:
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
