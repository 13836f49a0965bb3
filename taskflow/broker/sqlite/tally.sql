-- Counts the jobs and the events of each queue.

-- name: count_moves
-- Parameters: rows of a queue's number and the changes of held, scheduled, ready, running, succeeded, failed, cancelled. Result: none.
WITH change (queue, held, scheduled, ready, running, succeeded, failed, cancelled) AS (VALUES (?, ?, ?, ?, ?, ?, ?, ?) ...)
UPDATE "~queues" SET
  is_used = 1, held = "~queues".held + change.held, scheduled = "~queues".scheduled + change.scheduled,
  ready = "~queues".ready + change.ready, running = "~queues".running + change.running,
  succeeded = "~queues".succeeded + change.succeeded, failed = "~queues".failed + change.failed,
  cancelled = "~queues".cancelled + change.cancelled
FROM change
WHERE "~queues".number = change.queue;

-- name: all_counts
-- Reads all jobs; used only if counts were found to be wrong. Parameters: none. Result: queue, status, number of jobs.
SELECT queue, status, count(*) FROM "~jobs" WHERE status IS NOT NULL GROUP BY queue, status;

-- name: count_none
-- Parameters: none. Result: none; every queue's counts are zero.
UPDATE "~queues" SET held = 0, scheduled = 0, ready = 0, running = 0, succeeded = 0, failed = 0, cancelled = 0;

-- name: count_events
-- Parameters: rows of queue, event, count. Result: none.
INSERT INTO "~totals" (queue, event, number) VALUES (?, ?, ?) ...
ON CONFLICT (queue, event) DO UPDATE SET number = number + excluded.number;
