-- What a waiter or a sender of wake-ups looks for.

-- name: first_ready_queues
-- Parameters: limit. Reply: the names of queues that are not paused and have ready jobs.
SELECT name FROM "~queues" WHERE ready > 0 AND is_paused = 0 LIMIT ?;

-- name: ready_in_queue
-- Parameters: name. Reply: its ready jobs, none when it is paused or unknown.
SELECT iif(typeof(ready) = 'integer', ready, 1) FROM "~queues" WHERE name = ? AND is_paused = 0;

-- name: ended_among
-- Parameters: rows of an id. Reply: those of jobs that have ended or are unknown.
WITH asked (id) AS (VALUES (?) ...)
SELECT asked.id FROM asked WHERE asked.id IS NOT NULL AND coalesce((SELECT status FROM "~jobs" AS j WHERE j.id = asked.id), 9) > 3;

-- name: has_runs_to_stop
-- Parameters: first and last claim of a session. Reply: whether one of its runs is asked to stop.
SELECT EXISTS (SELECT 1 FROM "~jobs" WHERE claim >= ? AND claim <= ? AND cancel_requested IS NOT NULL);
