-- Due jobs, expiry, dropping, and the search for unsound rows. Each statement is bounded, and uses the index of what it looks for.

-- name: next_due
-- Parameters: none. Result: the time at which the next scheduled job is due or the next schedule is to be looked at, or NULL.
SELECT min(at)
FROM (
  SELECT min(due_at) AS at FROM "~jobs" WHERE status = 1
  UNION ALL
  SELECT min(look_at) FROM "~schedules" WHERE look_at IS NOT NULL
);

-- name: outlook
-- Parameters: none. Result: whether a queue that is not paused has ready jobs; the first time at which a waiting job expires or a kept one
-- fades, or NULL.
SELECT
  EXISTS (SELECT 1 FROM "~queues" WHERE ready > 0 AND is_paused = 0),
  (
    SELECT min(at)
    FROM (
      SELECT min(expires_at) AS at FROM "~jobs" WHERE expires_at IS NOT NULL AND status < 3
      UNION ALL
      SELECT min(fade_at) FROM "~jobs" WHERE status >= 4
      UNION ALL
      SELECT min(fade_at) FROM "~jobs" WHERE status IS NULL
    )
  );

-- name: due_jobs
-- Parameters: now, limit. Result: queue, and the number of its jobs among the first due ones.
SELECT queue, count(*)
FROM (SELECT queue FROM "~jobs" WHERE status = 1 AND due_at <= ? ORDER BY due_at, seq LIMIT ?)
GROUP BY queue;

-- name: ready_due_jobs
-- Parameters: as for due_jobs. Result: none.
UPDATE "~jobs" SET status = 2
WHERE seq IN (SELECT seq FROM "~jobs" WHERE status = 1 AND due_at <= ? ORDER BY due_at, seq LIMIT ?);

-- name: has_end_subscriber
-- Parameters: none. Result: whether a living session subscribes to ends without a settlement, and whether some are noted.
SELECT EXISTS (SELECT 1 FROM "~sessions" WHERE wants_ends = 1 AND dead_at IS NULL), EXISTS (SELECT 1 FROM "~ends");

-- name: note_ends
-- Parameters: rows of an id. Result: none.
INSERT INTO "~ends" (id) VALUES (?) ...;

-- name: drop_ends
-- Parameters: how many to keep. Result: none. Drops the oldest.
DELETE FROM "~ends" WHERE number <= (SELECT max(number) FROM "~ends") - ?;

-- name: count_dropped_ends
-- Parameters: how many were dropped. Result: none.
UPDATE "~meta" SET value = value + ? WHERE name = 'ends_dropped';

-- name: first_ends
-- Parameters: limit. Result: number and id of the first ends, in order.
SELECT number, id FROM "~ends" ORDER BY number LIMIT ?;

-- name: take_ends
-- Parameters: the number of the last one. Result: none.
DELETE FROM "~ends" WHERE number <= ?;

-- name: dropped_ends
-- Parameters: none. Result: how many were dropped since the count was reset.
SELECT max(coalesce(max(CAST(value AS INTEGER)), 0), 0) FROM "~meta" WHERE name = 'ends_dropped';

-- name: some_leases
-- Parameters: the least and the greatest claim of a session, limit. Result: the rows of its jobs in the order of their claims.
SELECT @job FROM "~jobs" WHERE claim >= ? AND claim <= ? ORDER BY claim LIMIT ?;

-- name: expired_jobs
-- Parameters: now, limit. Result: the seqs of waiting jobs past their expiry, earliest first.
SELECT seq FROM "~jobs" WHERE expires_at IS NOT NULL AND status < 3 AND expires_at <= ? ORDER BY expires_at, id LIMIT ?;

-- name: crowded_queues
-- Parameters: the maximum that is kept, twice. Result: number, name, succeeded and cancelled, failed of each queue with more, by name.
SELECT number, name, CAST(succeeded + cancelled AS INTEGER), CAST(failed AS INTEGER) FROM "~queues" WHERE succeeded + cancelled > ? OR failed > ? ORDER BY name;

-- name: from_oldest_failed
-- Parameters: queue, limit.
FROM "~jobs" WHERE status = 5 AND queue = ? ORDER BY ended_at, seq LIMIT ?

-- name: from_oldest_done
-- Parameters: queue, limit.
FROM "~jobs" WHERE status IN (4, 6) AND queue = ? ORDER BY ended_at, seq LIMIT ?

-- name: from_faded
-- Parameters: now, limit.
FROM "~jobs" WHERE status >= 4 AND fade_at <= ? ORDER BY fade_at, id LIMIT ?

-- name: oldest_failed
-- Parameters: queue, limit. Result: status, the number of jobs with it among the queue's oldest failed ones, and how many of these have tags.
SELECT status, count(*), count(*) FILTER (WHERE @tagged)
FROM (SELECT status, extras @from_oldest_failed)
GROUP BY status;

-- name: drop_tags_of_oldest_failed
-- Parameters: as for oldest_failed. Result: none.
DELETE FROM "~tags" WHERE seq IN (SELECT seq @from_oldest_failed);

-- name: bury_oldest_failed
-- Parameters: how long an id stays known; queue, limit. Result: none.
UPDATE "~jobs" SET status = NULL, @dropped, fade_at = ended_at + ?
WHERE seq IN (SELECT seq @from_oldest_failed);

-- name: oldest_done
-- Parameters: queue, limit. Result: status, the number of jobs with it among the queue's oldest succeeded and cancelled ones, and how many of these have tags.
SELECT status, count(*), count(*) FILTER (WHERE @tagged)
FROM (SELECT status, extras @from_oldest_done)
GROUP BY status;

-- name: drop_tags_of_oldest_done
-- Parameters: as for oldest_done. Result: none.
DELETE FROM "~tags" WHERE seq IN (SELECT seq @from_oldest_done);

-- name: bury_oldest_done
-- Parameters: how long an id stays known; queue, limit. Result: none.
UPDATE "~jobs" SET status = NULL, @dropped, fade_at = ended_at + ?
WHERE seq IN (SELECT seq @from_oldest_done);

-- name: faded_jobs
-- Parameters: now, limit. Result: queue, status, how many of the first ended jobs that need not be kept any longer have these, and how many
-- of these have tags.
SELECT queue, status, count(*), count(*) FILTER (WHERE @tagged)
FROM (SELECT queue, status, extras @from_faded)
GROUP BY queue, status;

-- name: drop_tags_of_faded_jobs
-- Parameters: as for faded_jobs. Result: none.
DELETE FROM "~tags" WHERE seq IN (SELECT seq @from_faded);

-- name: last_faded_job
-- Parameters: now, the number of jobs before it. Result: fade_at and id of the last of the faded jobs.
SELECT fade_at, id FROM "~jobs" WHERE status >= 4 AND fade_at <= ? ORDER BY fade_at, id LIMIT 1 OFFSET ?;

-- name: bury_faded_jobs
-- Parameters: how long an id stays known; now, limit. Result: none.
UPDATE "~jobs" SET status = NULL, @dropped, fade_at = ended_at + ?
WHERE seq IN (SELECT seq @from_faded);

-- name: drop_faded_jobs
-- Drops jobs entirely whose ids need not be known any more. Parameters: now; the latest end of such a job. Result: none.
DELETE FROM "~jobs" WHERE status >= 4 AND fade_at <= ? AND ended_at <= ?;

-- name: forget_jobs
-- Parameters: now, limit. Result: none. Deletes ids of dropped jobs that no call can resend any more.
DELETE FROM "~jobs" WHERE seq IN (SELECT seq FROM "~jobs" WHERE status IS NULL AND fade_at <= ? ORDER BY fade_at LIMIT ?);

-- name: forget_jobs_before
-- Parameters: fade_at and id of the last job dropped, its id, limit. Result: none. Like forget_jobs, for jobs before that job.
DELETE FROM "~jobs" WHERE seq IN (
  SELECT seq FROM "~jobs"
  WHERE status IS NULL AND (fade_at, id) < (?, ?) AND id != ?
  ORDER BY fade_at
  LIMIT ?
);

-- name: some_jobs
-- Parameters: seq, limit. Result, for the jobs after that one: the last seq, and the number of jobs. Then, as JSON: the seqs of those that
-- may be unsound, the seqs of those leased to an unknown session, and the numbers of the job names in use.
SELECT
  max(seq), count(*),
  json_group_array(seq) FILTER (WHERE (
    @sound
    AND (status IS 3) = (claim IS NOT NULL)
    AND (status IS NULL OR status >= 4) = (ended_at IS NOT NULL)
    AND (status IS NULL OR status >= 4) = (fade_at IS NOT NULL)
    AND (status IS NULL OR status >= 4 OR (status = 0) = (awaits > 0))
    AND EXISTS (SELECT 1 FROM "~queues" AS q WHERE q.number = queue)
  ) IS NOT TRUE),
  json_group_array(seq) FILTER (WHERE claim IS NOT NULL AND NOT EXISTS (SELECT 1 FROM "~sessions" AS s WHERE s.id = substr(claim, 1, 16))),
  json_group_array(DISTINCT iif(typeof(name) = 'integer', name, 0))
FROM (SELECT * FROM "~jobs" WHERE seq > ? ORDER BY seq LIMIT ?);

-- name: job_name_numbers
-- Parameters: none. Result: the number of every job name.
SELECT number FROM "~job_names";

-- name: drop_job_names
-- Parameters: numbers as a JSON array. Result: none.
DELETE FROM "~job_names" WHERE number IN (SELECT value FROM json_each(?));

-- name: count_drop_of_names
-- Parameters: none. Result: none.
UPDATE "~meta" SET value = value + 1 WHERE name = 'names';

-- name: drop_oversized
-- Parameters: none. Result: none. Drops the oversized values of jobs that are no longer kept.
DELETE FROM "~oversized"
WHERE NOT EXISTS (SELECT 1 FROM "~jobs" AS j WHERE j.seq = "~oversized".seq AND j.status IS NOT NULL);
