"""The statements of the verbs for jobs without ties."""

from __future__ import annotations

from typing import Final

from taskflow.broker.engine.records import BURIED, Flag, Type
from taskflow.broker.sqlite.rows import Packing
from taskflow.broker.sqlite.tables import PARTS

ADD: Final = """\
INSERT INTO "~jobs" (id, rev, flags, priority, queue, job, created_at, due_at, expires_at, sent, content)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ... ON CONFLICT (id) DO NOTHING"""

IDS: Final = Packing([("id", Type.BYTES)])
ADDED: Final = """\
WITH wanted (id) AS (VALUES (?) ...) SELECT @ FROM wanted CROSS JOIN "~jobs" AS r ON r.id = wanted.id WHERE r.rev = ?"""

TAKE_REQUEST: Final = 'UPDATE "~sessions" SET request = ? WHERE id = ? AND dead_at IS NULL AND request < ? RETURNING name'

CLAIMED: Final = Packing(
    [
        *(("falling_priority", Type.SMALL), ("due_at", Type.NUMBER), ("seq", Type.NUMBER), ("flags", Type.SMALL), ("priority", Type.SMALL)),
        *(("queue", Type.NAME), ("job", Type.NAME), ("created_at", Type.NUMBER), ("expires_at", Type.NUMBER)),
        *(("epoch", Type.NUMBER), ("id", Type.BYTES), *((part, Type.BYTES) for part in PARTS)),
    ]
)
FIRST_READY: Final = """\
SELECT @
FROM (
  SELECT seq AS chosen FROM "~jobs" AS r INDEXED BY "~jobs_ready"
  WHERE status = 2 AND queue = ? AND NOT EXISTS (SELECT 1 FROM "~queues" WHERE id = CAST(? AS BLOB))
    AND (expires_at IS NULL OR expires_at > ?)
  ORDER BY falling_priority, due_at, seq LIMIT ?
) CROSS JOIN "~jobs" AS r ON r.seq = chosen"""

ALL_READY: Final = """\
WITH wanted (queue) AS (VALUES (?) ...)
SELECT @
FROM (
  SELECT seq AS chosen
  FROM wanted CROSS JOIN "~jobs" AS r INDEXED BY "~jobs_ready" ON status = 2 AND r.queue = wanted.queue
  WHERE NOT EXISTS (SELECT 1 FROM "~queues" WHERE id = CAST(r.queue AS BLOB)) AND (expires_at IS NULL OR expires_at > ?)
  LIMIT ?
) CROSS JOIN "~jobs" AS r ON r.seq = chosen"""

MAX_EPOCH: Final = (1 << 53) - 1
MAX_INSTANT: Final = 1 << 62
"""A greater number is from another program. Sums stay within 64 bits."""

LEASE: Final = f"""\
WITH leased (seq, claim) AS (VALUES (?, ?) ...)
UPDATE "~jobs" AS r SET
  status = 3, epoch = min(epoch, {MAX_EPOCH}) + 1, claim = leased.claim, rev = ?, session = ?, claimed_at = ?,
  claimed_steady = ?, worker = ?,
  started_at = NULL
FROM leased WHERE r.seq = leased.seq"""

LEASES: Final = """\
SELECT @ FROM (
  SELECT seq AS chosen FROM "~jobs" INDEXED BY "~jobs_leases" WHERE status = 3 AND session = ? AND claim >= ? AND claim <= ? LIMIT ?
) CROSS JOIN "~jobs" AS r ON r.seq = chosen"""

NUMBER_OF_READY_QUEUES: Final = """SELECT count(*) FROM "~counted" INDEXED BY "~counted_ready" WHERE what = '=2' AND n > 0"""

SUCCEED: Final = f"""\
WITH run (session, claim, id, epoch, settled, started_at, fade_at, result, key) AS (VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ...)
UPDATE "~jobs" AS r INDEXED BY "~jobs_leases" SET
  status = 4, session = NULL, claim = NULL, settled = run.settled, started_at = run.started_at, fade_at = run.fade_at,
  content = run.result, rev = ?, ended_at = ?
FROM run
WHERE r.status = 3 AND r.session = run.session AND r.claim = run.claim AND r.id = run.id AND r.epoch = run.epoch
  AND r.flags & {Flag.TIES & ~Flag.KEYED} = 0
  AND (r.flags & {Flag.KEYED} = 0 OR EXISTS (SELECT 1 FROM "~keys" AS k WHERE k.id = run.key AND k.holder = r.id AND k.next IS NULL))"""

FREE_KEYS: Final = """\
DELETE FROM "~keys" WHERE id IN (VALUES (?) ...) AND next IS NULL AND EXISTS (
  SELECT 1 FROM "~jobs" AS r WHERE r.id = holder AND r.rev = ?
)"""

MOVED: Final = Packing(
    [
        *(("place", Type.NUMBER), ("status", Type.SMALL), ("seq", Type.NUMBER), ("queue", Type.NAME), ("flags", Type.SMALL)),
        *(("ended_at", Type.NUMBER), ("id", Type.BYTES)),
    ]
)
COLUMNS: Final = "status, seq, queue, flags, ended_at, id"

IS_DUE: Final = "(status = 1 OR status = 0 AND awaits <= 0 AND flags & 256 = 0)"
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
