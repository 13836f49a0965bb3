-- Taking in jobs, and the names that they go by.

-- name: add_plain_jobs
-- Parameters: rows of id, status, queue, name, priority, created_at, due_at, expires_at, payload, extras, joins.
-- Reply: none; a known id adds nothing.
INSERT INTO "~jobs" (id, status, queue, name, priority, created_at, due_at, expires_at, payload, extras, joins)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ...
ON CONFLICT (id) DO NOTHING;

-- name: last_seq
-- Parameters: none. Reply: the seq of the job that came last, 0 without one; how often job names were dropped.
SELECT coalesce(max(seq), 0), (SELECT value FROM "~meta" WHERE name = 'names') FROM "~jobs";

-- name: ids_after
-- Parameters: seq. Reply: the ids of the jobs that came after it.
SELECT id FROM "~jobs" WHERE seq > ?;

-- name: live_count
-- Parameters: none. Reply: how many jobs have not ended.
SELECT coalesce(sum(held + scheduled + ready + running), 0) FROM "~queues";

-- name: queue_number
-- Parameters: name. Reply: its number, none when the queue is unknown.
SELECT number FROM "~queues" WHERE name = ?;

-- name: queue_name
-- Parameters: number. Reply: its name.
SELECT name FROM "~queues" WHERE number = ?;

-- name: add_queue
-- Parameters: name. Reply: its number.
INSERT INTO "~queues" (name) VALUES (?) RETURNING number;

-- name: job_name_number
-- Parameters: name. Reply: its number, none when it is unknown.
SELECT number FROM "~job_names" WHERE name = ?;

-- name: job_name
-- Parameters: number. Reply: the name.
SELECT name FROM "~job_names" WHERE number = ?;

-- name: add_job_name
-- Parameters: name. Reply: its number.
INSERT INTO "~job_names" (name) VALUES (?) RETURNING number;

-- name: count_moves
-- Parameters: rows of a queue's number and the changes of held, scheduled, ready, running, succeeded, failed, cancelled. Reply: none.
WITH change (queue, held, scheduled, ready, running, succeeded, failed, cancelled) AS (VALUES (?, ?, ?, ?, ?, ?, ?, ?) ...)
UPDATE "~queues" SET
  is_used = 1, held = "~queues".held + change.held, scheduled = "~queues".scheduled + change.scheduled,
  ready = "~queues".ready + change.ready, running = "~queues".running + change.running,
  succeeded = "~queues".succeeded + change.succeeded, failed = "~queues".failed + change.failed,
  cancelled = "~queues".cancelled + change.cancelled
FROM change
WHERE "~queues".number = change.queue;

-- name: all_counts
-- Reads all jobs: only when counts were found to be wrong. Parameters: none. Reply: queue, status, how many jobs.
SELECT queue, status, count(*) FROM "~jobs" WHERE status IS NOT NULL GROUP BY queue, status;

-- name: count_none
-- Parameters: none. Reply: none; every queue's counts are zero.
UPDATE "~queues" SET held = 0, scheduled = 0, ready = 0, running = 0, succeeded = 0, failed = 0, cancelled = 0;

-- name: count_events
-- Parameters: rows of queue, event, how many. Reply: none.
INSERT INTO "~totals" (queue, event, number) VALUES (?, ?, ?) ...
ON CONFLICT (queue, event) DO UPDATE SET number = number + excluded.number;
