-- One job at a time: the careful way, for keys, joins, poison and whatever else a batch cannot do as one.
--
-- @job and the other lists of columns are made in columns.py.

-- name: job_by_id
-- Parameters: id. Reply: the job's row, none when it is unknown.
SELECT @job FROM "~jobs" WHERE id = ?;

-- name: jobs_by_claim
-- Parameters: the least and the greatest claim. Reply: the rows of the jobs leased between them, in the order of their claims.
SELECT @job FROM "~jobs" WHERE claim >= ? AND claim <= ? ORDER BY claim;

-- name: job_by_seq
-- Parameters: seq. Reply: the job's row.
SELECT @job FROM "~jobs" WHERE seq = ?;

-- name: add_job
-- Parameters: every column but seq, as in `row.COLUMNS`. Reply: none. Refuses a known id.
INSERT INTO "~jobs" (@all) VALUES (@all_places);

-- name: save_job
-- Parameters: the columns of `row.CHANGING`; the result; the status again, since a success has no payload any more; seq. Reply: none.
UPDATE "~jobs" SET @changing, result = coalesce(?, result), payload = iif(? IS 4, NULL, payload) WHERE seq = ?;

-- name: keep_oversized
-- Parameters: name of a column, twice; seq of a job. Reply: none.
INSERT INTO "~oversized" (seq, name, value)
SELECT seq, ?, CASE ? @sized END FROM "~jobs" WHERE seq = ?
ON CONFLICT DO NOTHING;

-- name: mend_job
-- Parameters: the columns of `row.MENDED`; seq. Reply: none. What is oversized of the others is dropped.
UPDATE "~jobs" SET
  @mended, extras = iif(length(extras) > 1048576, NULL, extras), result = iif(length(result) > 67108864, NULL, result),
  payload = iif(length(payload) > 67108864, NULL, payload)
WHERE seq = ?;

-- name: waiting_holder
-- Parameters: key. Reply: the row of the waiting live job that has it.
-- (`status < 4` is the index's own word, which SQLite does not infer from another; +seq, lest it walk the table in the order of seq.)
SELECT @job FROM "~jobs" WHERE key = ? AND status < 4 AND status < 3 ORDER BY +seq LIMIT 1;

-- name: running_holder
-- Parameters: key. Reply: the row of the running job that has it.
SELECT @job FROM "~jobs" WHERE key = ? AND status < 4 AND status = 3 ORDER BY +seq LIMIT 1;

-- name: waiting_behind
-- Parameters: key, id of a job. Reply: the rows of the live jobs that wait behind that job.
SELECT @job FROM "~jobs" WHERE key = ? AND status < 4 AND behind = ? ORDER BY +seq;

-- name: bury_job
-- Drops all but the id and the fence. Parameters: fade_at, seq. Reply: none.
UPDATE "~jobs" SET
  status = NULL, @dropped,
  fade_at = ?
WHERE seq = ?;
