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

-- name: browse
-- Parameters: now; queue, job, ended_before, poison, statuses, each twice, where NULL means any; before; limit. `statuses` is a JSON array
-- of codes. Result: rows, newest first.
SELECT @job FROM "~jobs"
WHERE (status < 4 OR (status IS NOT NULL AND fade_at > ?) OR ended_at IS NULL) -- an unknown status has no end
  AND (? IS NULL OR queue = ?)
  AND (? IS NULL OR name = ?)
  AND (? IS NULL OR ended_at <= ?)
  AND (? IS NULL OR is_poison = ?)
  AND (? IS NULL OR status IN (SELECT value FROM json_each(?)))
  AND id < ? -- always used, so that a page begins where the one before has ended
ORDER BY id DESC
LIMIT ?;

-- name: to_purge
-- Parameters: as for browse, without before. Result: the seqs of the jobs that may be purged, in order of arrival.
SELECT seq FROM "~jobs"
WHERE status IS NOT 3
  AND (status < 4 OR (status IS NOT NULL AND fade_at > ?) OR ended_at IS NULL)
  AND (? IS NULL OR queue = ?)
  AND (? IS NULL OR name = ?)
  AND (? IS NULL OR ended_at <= ?)
  AND (? IS NULL OR is_poison = ?)
  AND (? IS NULL OR status IN (SELECT value FROM json_each(?)))
ORDER BY seq
LIMIT ?;

-- name: pause_queue
-- Parameters: name. Result: none.
INSERT INTO "~queues" (name, is_paused) VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET is_paused = 1;

-- name: resume_queue
-- Parameters: name. Result: none.
UPDATE "~queues" SET is_paused = 0 WHERE name = ?;

-- name: totals
-- Parameters: none. Result: queue's name, event, count.
SELECT q.name, t.event, t.number FROM "~totals" AS t JOIN "~queues" AS q ON q.number = t.queue;
