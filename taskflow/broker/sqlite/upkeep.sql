-- What time brings. Each statement is bounded and driven by the index of what it looks for.

-- name: next_due
-- Parameters: none. Reply: when the next scheduled job is due, or NULL.
SELECT min(due_at) FROM "~jobs" WHERE status = 1;

-- name: due_jobs
-- Parameters: now, limit. Reply: seq and queue of scheduled jobs that are due, the earliest first.
SELECT seq, queue FROM "~jobs" WHERE status = 1 AND due_at <= ? ORDER BY due_at, seq LIMIT ?;

-- name: ready_job
-- Parameters: seq. Reply: none.
UPDATE "~jobs" SET status = 2 WHERE seq = ?;

-- name: some_leases
-- Parameters: the least and the greatest claim of a session, limit. Reply: the rows of its jobs in the order of their claims.
SELECT * FROM "~jobs" WHERE claim >= ? AND claim <= ? ORDER BY claim LIMIT ?;

-- name: expired_jobs
-- Parameters: now, limit. Reply: the ids of waiting jobs past their expiry, the earliest first.
SELECT id FROM "~jobs" WHERE expires_at IS NOT NULL AND status < 3 AND expires_at <= ? ORDER BY expires_at, id LIMIT ?;

-- name: crowded_queues
-- Parameters: the most that are kept, twice. Reply: number, name, succeeded and cancelled, failed of each queue with more, by name.
SELECT number, name, succeeded + cancelled, failed FROM "~queues" WHERE succeeded + cancelled > ? OR failed > ? ORDER BY name;

-- name: oldest_failed
-- Parameters: queue, limit. Reply: seq, status, ended_at of the failed jobs that ended first.
SELECT seq, status, ended_at FROM "~jobs" WHERE status = 5 AND queue = ? ORDER BY ended_at, seq LIMIT ?;

-- name: oldest_done
-- Parameters: queue, limit. Reply: seq, status, ended_at of the succeeded and cancelled jobs that ended first.
SELECT seq, status, ended_at FROM "~jobs" WHERE status IN (4, 6) AND queue = ? ORDER BY ended_at, seq LIMIT ?;

-- name: faded_jobs
-- Parameters: now, limit. Reply: seq, id, queue, status, ended_at, fade_at of ended jobs whose keep is over, the earliest first.
SELECT seq, id, queue, status, ended_at, fade_at FROM "~jobs"
WHERE fade_at IS NOT NULL AND fade_at <= ? AND status >= 4
ORDER BY fade_at, id
LIMIT ?;

-- name: forget_jobs
-- Parameters: now, limit. Reply: none; of what was dropped no id stays that nobody can send again.
DELETE FROM "~jobs" WHERE seq IN (SELECT seq FROM "~jobs" WHERE fade_at IS NOT NULL AND fade_at <= ? AND status IS NULL ORDER BY fade_at LIMIT ?);

-- name: forget_jobs_before
-- Parameters: fade_at and id of the last job dropped, its id, limit. Reply: none; as forget_jobs, for those that come before that job.
DELETE FROM "~jobs" WHERE seq IN (
  SELECT seq FROM "~jobs"
  WHERE fade_at IS NOT NULL AND (fade_at, id) < (?, ?) AND status IS NULL AND id != ?
  ORDER BY fade_at
  LIMIT ?
);
