-- Changes one job at a time: for keys, joins, poison and everything else that a batch cannot do.
--
-- columns.py makes @job and the other lists of columns.

-- name: job_by_id
-- Parameters: id. Result: the job's row; none if it is unknown.
SELECT @job FROM "~jobs" WHERE id = ?;

-- name: jobs_by_claim
-- Parameters: the least and the greatest claim. Result: the rows of the jobs leased between them, in the order of their claims.
SELECT @job FROM "~jobs" WHERE claim >= ? AND claim <= ? ORDER BY claim;

-- name: job_by_seq
-- Parameters: seq. Result: the job's row.
SELECT @job FROM "~jobs" WHERE seq = ?;

-- name: add_job
-- Parameters: every column except seq, as in `row.COLUMNS`. Result: none. Fails for a known id.
INSERT INTO "~jobs" (@all) VALUES (@all_places);

-- name: save_job
-- Parameters: the columns of `row.CHANGING`; the result; the status again, because a success has no payload any more; seq. Result: none.
UPDATE "~jobs" SET @changing, result = coalesce(?, result), payload = iif(? IS 4, NULL, payload) WHERE seq = ?;

-- name: keep_oversized
-- Parameters: name of a column, twice; seq of a job. Result: none.
INSERT INTO "~oversized" (seq, name, value)
SELECT seq, ?, CASE ? @sized END FROM "~jobs" WHERE seq = ?
ON CONFLICT DO NOTHING;

-- name: repair_job
-- Parameters: the columns of `row.REPAIRED`; seq. Result: none. Oversized values of other columns are dropped.
UPDATE "~jobs" SET
  @repaired, extras = iif(length(extras) > 1048576, NULL, extras), result = iif(length(result) > 67108864, NULL, result),
  payload = iif(length(payload) > 67108864, NULL, payload)
WHERE seq = ?;

-- name: drop_tags
-- Parameters: seq of a job. Result: none.
DELETE FROM "~tags" WHERE seq = ?;

-- name: waiting_holder
-- Parameters: key. Result: the row of the waiting live job that has it.
-- (`status < 4` is the index's condition, which SQLite does not infer from another; +seq keeps it from reading the table in the order of
-- seq.)
SELECT @job FROM "~jobs" WHERE key = ? AND status < 4 AND status < 3 ORDER BY +seq LIMIT 1;

-- name: running_holder
-- Parameters: key. Result: the row of the running job that has it.
SELECT @job FROM "~jobs" WHERE key = ? AND status < 4 AND status = 3 ORDER BY +seq LIMIT 1;

-- name: waiting_behind
-- Parameters: key, id of a job. Result: the rows of the live jobs that wait for that job to end.
SELECT @job FROM "~jobs" WHERE key = ? AND status < 4 AND behind = ? ORDER BY +seq;

-- name: bury_job
-- Drops everything except the id and the fence. Parameters: fade_at, seq. Result: none.
UPDATE "~jobs" SET status = NULL, @dropped, fade_at = ? WHERE seq = ?;
