-- The operations of the command line.

-- name: queue_records
-- Parameters: none. Result: number, name, is_paused and the counts by status of each queue that has or had jobs or is paused, by name.
SELECT number, name, is_paused, held, scheduled, ready, running, succeeded, failed, cancelled
FROM "~queues"
WHERE is_used OR is_paused
ORDER BY name;

-- name: oldest_ready
-- Reads the first job of each priority. Parameters: queue. Result: the least due_at of its ready jobs, or NULL.
WITH RECURSIVE priorities (queue, priority) AS (
  SELECT queue, max(priority) FROM "~jobs" WHERE status = 2 AND queue = ?
  UNION ALL
  SELECT queue, (SELECT max(j.priority) FROM "~jobs" AS j WHERE j.status = 2 AND j.queue = p.queue AND j.priority < p.priority)
  FROM priorities AS p
  WHERE p.priority IS NOT NULL
)
SELECT min((SELECT min(j.due_at) FROM "~jobs" AS j WHERE j.status = 2 AND j.queue = p.queue AND j.priority = p.priority))
FROM priorities AS p
WHERE p.priority IS NOT NULL;

-- name: next_due_of_queue
-- Parameters: queue. Result: the due time of its next scheduled job; no row if there is none.
SELECT due_at FROM "~jobs" WHERE status = 1 AND queue = ? ORDER BY due_at LIMIT 1;

-- name: matching
-- The conditions of a filter. Parameters: now; queue, job, ended_before, poison, statuses, each twice, where NULL means any. `statuses` is a
-- JSON array of codes.
(status < 4 OR (status IS NOT NULL AND fade_at > ?) OR ended_at IS NULL) -- an unknown status has no end
  AND (? IS NULL OR queue = ?)
  AND (? IS NULL OR name = ?)
  AND (? IS NULL OR ended_at <= ?)
  AND (? IS NULL OR (is_poison = ? AND status = 5))
  AND (? IS NULL OR status IN (SELECT value FROM json_each(?)))

-- Pages. Each statement reads one index from a position on. Result: seq, whether the job matches, and what orders the jobs.

-- name: used_queues
-- Parameters: none. Result: the number of each queue that has or had jobs.
SELECT number FROM "~queues" WHERE is_used;

-- name: page_held
-- Parameters: as for matching; seq; limit.
SELECT seq, (@matching), seq FROM "~jobs" INDEXED BY "~jobs_held" WHERE status = 0 AND seq > ? ORDER BY seq LIMIT ?;

-- name: page_scheduled
-- Parameters: as for matching; due_at, queue, seq; limit.
SELECT seq, (@matching), due_at FROM "~jobs"
WHERE status = 1 AND (due_at, queue, seq) > (?, ?, ?)
ORDER BY due_at, queue, seq LIMIT ?;

-- name: page_ready
-- Parameters: as for matching; queue, priority; due_at, seq; limit.
SELECT seq, (@matching), due_at FROM "~jobs"
WHERE status = 2 AND queue = ? AND priority = ? AND (due_at, seq) > (?, ?)
ORDER BY due_at, seq LIMIT ?;

-- name: next_priority
-- Parameters: queue, priority. Result: the next lower priority of its ready jobs, or NULL.
SELECT max(priority) FROM "~jobs" WHERE status = 2 AND queue = ? AND priority < ?;

-- name: page_running
-- Parameters: as for matching; claim; limit.
SELECT seq, (@matching), claim FROM "~jobs" WHERE claim IS NOT NULL AND claim > ? ORDER BY claim LIMIT ?;

-- name: page_failed
-- Parameters: as for matching; queue; ended_at, seq; limit.
SELECT seq, (@matching), ended_at FROM "~jobs"
WHERE status = 5 AND queue = ? AND (ended_at, seq) < (?, ?)
ORDER BY ended_at DESC, seq DESC LIMIT ?;

-- name: page_done
-- Parameters: as for matching; queue; ended_at, seq; limit.
SELECT seq, (@matching), ended_at FROM "~jobs"
WHERE status IN (4, 6) AND queue = ? AND (ended_at, seq) < (?, ?)
ORDER BY ended_at DESC, seq DESC LIMIT ?;

-- name: page_tag
-- Parameters: as for matching; tag, id; limit. Result: newest first. (An entry whose id is another belongs to an earlier row.)
SELECT seq, (@matching), tagged_id
FROM (SELECT seq AS tagged_seq, id AS tagged_id FROM "~tags" WHERE tag = ? AND id < ?) CROSS JOIN "~jobs" ON seq = tagged_seq
WHERE id = tagged_id
ORDER BY tagged_id DESC LIMIT ?;

-- name: to_purge
-- Parameters: as for matching; limit. Result: the seqs of the jobs that may be purged, in order of arrival.
SELECT seq FROM "~jobs"
WHERE status IS NOT 3 AND @matching
ORDER BY seq
LIMIT ?;

-- name: to_purge_with_tag
-- Parameters: tag; as for matching; limit. Result: the seqs of the jobs that may be purged, oldest first.
SELECT seq
FROM (SELECT seq AS tagged_seq, id AS tagged_id FROM "~tags" WHERE tag = ?) CROSS JOIN "~jobs" ON seq = tagged_seq
WHERE id = tagged_id AND status IS NOT 3 AND @matching
ORDER BY tagged_id
LIMIT ?;

-- name: failure_parts
-- Counts the failed jobs by cause and name. Parameters: queue and name, each twice; how many fingerprints; queue, four times; NULL
-- means any. Result, for the fingerprints with the most jobs: cause, name, number of jobs, the first and the last time at which one ended, and
-- the id of the last one.
WITH
part AS MATERIALIZED (
  SELECT cause, name, count(*) AS n FROM "~jobs" WHERE status = 5 AND (? IS NULL OR queue = ?) AND (? IS NULL OR name = ?) GROUP BY cause, name
),
printed AS MATERIALIZED (
  SELECT *, iif(typeof(cause) = 'blob' AND length(cause) >= 8, substr(cause, 1, 8), zeroblob(8)) AS fingerprint FROM part
),
largest AS MATERIALIZED (SELECT fingerprint FROM printed GROUP BY fingerprint ORDER BY sum(n) DESC, fingerprint LIMIT ?),
placed AS MATERIALIZED (
  SELECT
    cause, name, n,
    (SELECT ended_at FROM "~jobs" AS j WHERE status = 5 AND j.cause IS p.cause AND j.name = p.name AND (? IS NULL OR queue = ?) ORDER BY ended_at LIMIT 1) AS first_at,
    (SELECT seq FROM "~jobs" AS j WHERE status = 5 AND j.cause IS p.cause AND j.name = p.name AND (? IS NULL OR queue = ?) ORDER BY ended_at DESC LIMIT 1) AS last_seq
  FROM printed AS p
  WHERE fingerprint IN largest
)
SELECT p.cause, p.name, n, first_at, ended_at, id FROM placed AS p JOIN "~jobs" ON seq = last_seq;

-- name: failures_of
-- Parameters: a fingerprint, and a value above all causes that begin with it. Result: the seqs of the failed jobs with this fingerprint, as
-- a JSON array.
SELECT json_group_array(seq) FROM "~jobs" WHERE status = 5 AND cause >= ? AND cause < ?;

-- name: unknown_failures
-- Parameters: none. Result: as for failures_of, of the failed jobs without a sound cause.
SELECT json_group_array(seq) FROM "~jobs" INDEXED BY "~jobs_causes"
WHERE status = 5 AND (cause IS NULL OR typeof(cause) != 'blob' OR length(cause) < 8 OR substr(cause, 1, 8) = zeroblob(8));

-- name: ids_of_failed
-- Parameters: seqs as a JSON array. Result: the ids of those jobs that are failed, in hexadecimal, as a JSON array.
SELECT json_group_array(hex(id)) FROM "~jobs" WHERE seq IN (SELECT value FROM json_each(?)) AND +status = 5;

-- name: pause_queue
-- Parameters: name. Result: none.
INSERT INTO "~queues" (name, is_paused) VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET is_paused = 1;

-- name: resume_queue
-- Parameters: name. Result: none.
UPDATE "~queues" SET is_paused = 0 WHERE name = ?;

-- name: totals
-- Parameters: none. Result: queue's name, event, count.
SELECT q.name, t.event, t.number FROM "~totals" AS t JOIN "~queues" AS q ON q.number = t.queue;

-- name: record_act
-- Parameters: id, time, body. Result: none. Numbers are consecutive.
INSERT OR IGNORE INTO "~acts" (id, at, body) VALUES (?, ?, ?);

-- name: drop_acts
-- Parameters: how many to keep. Result: none.
DELETE FROM "~acts" WHERE number <= (SELECT max(number) FROM "~acts") - ?;

-- name: acts
-- Parameters: number before which to begin, limit. Result: number, time, body; newest first.
SELECT number, at, body FROM "~acts" WHERE number < ? ORDER BY number DESC LIMIT ?;
