-- What a waiter or a sender of wake-ups looks for.

-- name: names_of_ready_queues
-- Parameters: none. Reply: name and ready jobs of each queue that is not paused and has ready jobs.
SELECT name, ready FROM "~queues" WHERE ready > 0 AND is_paused = 0;

-- name: ready_in_queue
-- Parameters: name. Reply: its ready jobs, none when it is paused or unknown.
SELECT ready FROM "~queues" WHERE name = ? AND is_paused = 0;

-- name: ended_among
-- Parameters: rows of an id. Reply: those of jobs that have ended or are unknown.
WITH asked (id) AS (VALUES (?) ...)
SELECT asked.id FROM asked WHERE asked.id IS NOT NULL AND coalesce((SELECT status FROM "~jobs" AS j WHERE j.id = asked.id), 9) > 3;

-- name: has_runs_to_stop
-- Parameters: first and last claim of a session. Reply: whether one of its runs is asked to stop.
SELECT EXISTS (SELECT 1 FROM "~jobs" WHERE claim >= ? AND claim <= ? AND cancel_requested IS NOT NULL);
