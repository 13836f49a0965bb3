-- Looking through all jobs, some at a time, for rows that no other statement may find.

-- name: some_jobs
-- Parameters: seq, limit. Reply: of the jobs that come after that one, the last seq, how many, the seqs of those that may be unsound, the seqs
-- of those leased to a session that is unknown, and the numbers of the job names in use, each as JSON.
SELECT
  max(seq), count(*),
  json_group_array(seq) FILTER (WHERE (
    typeof(id) = 'blob' AND length(id) = 16
    AND (status IS NULL OR typeof(status) = 'integer' AND status BETWEEN 0 AND 6)
    AND typeof(priority) = 'integer' AND priority BETWEEN -100 AND 100
    AND typeof(created_at) = 'integer' AND typeof(due_at) = 'integer' AND min(created_at, due_at) >= 0
    AND typeof(expires_at) IN ('integer', 'null') AND typeof(claimed_at) IN ('integer', 'null')
    AND typeof(started_at) IN ('integer', 'null') AND typeof(parked_at) IN ('integer', 'null')
    AND typeof(ended_at) IN ('integer', 'null') AND typeof(fade_at) IN ('integer', 'null') AND typeof(claimed_steady) = 'integer'
    AND typeof(awaits) = 'integer' AND typeof(epoch) = 'integer' AND typeof(failures) = 'integer' AND typeof(crashes) = 'integer'
    AND typeof(snoozes) = 'integer' AND typeof(hand_backs) = 'integer'
    AND min(awaits, epoch, failures, crashes, snoozes, hand_backs, claimed_steady) >= 0
    AND max(awaits, epoch, failures, crashes, snoozes, hand_backs) < 9007199254740992
    AND typeof(is_poison) = 'integer' AND is_poison IN (0, 1)
    AND typeof(key) IN ('blob', 'null') AND typeof(joins) IN ('blob', 'null')
    AND (behind IS NULL OR typeof(behind) = 'blob' AND length(behind) = 16)
    AND (claim IS NULL OR typeof(claim) = 'blob' AND length(claim) = 28)
    AND (settled IS NULL OR typeof(settled) = 'blob' AND length(settled) = 36)
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
-- Parameters: none. Reply: the number of every job name.
SELECT number FROM "~job_names";

-- name: drop_job_names
-- Parameters: numbers as a JSON array. Reply: none.
DELETE FROM "~job_names" WHERE number IN (SELECT value FROM json_each(?));

-- name: count_drop_of_names
-- Parameters: none. Reply: none.
UPDATE "~meta" SET value = value + 1 WHERE name = 'names';

-- name: drop_oversized
-- Parameters: none. Reply: none; what jobs had that are kept no longer.
DELETE FROM "~oversized"
WHERE NOT EXISTS (SELECT 1 FROM "~jobs" AS j WHERE j.seq = "~oversized".seq AND j.status IS NOT NULL);
