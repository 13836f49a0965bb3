-- One job at a time: the careful way, for keys, joins, poison and whatever else a batch cannot do as one.

-- name: job_by_id
-- Parameters: id. Reply: the job's row, none when it is unknown.
SELECT * FROM "~jobs" WHERE id = ?;

-- name: jobs_by_claim
-- Parameters: the least and the greatest claim. Reply: the rows of the jobs leased between them, in the order of their claims.
SELECT * FROM "~jobs" WHERE claim >= ? AND claim <= ? ORDER BY claim;

-- name: add_job
-- Parameters: every column but seq, in the table's order. Reply: none. Refuses a known id.
INSERT INTO "~jobs" (
  id, status, queue, name, priority, created_at, due_at, expires_at, payload, key, extras, awaits, joins, behind, epoch, failures, crashes,
  snoozes, hand_backs, claim, claimed_at, claimed_steady, started_at, worker, progress, settled, parked_at, errors, cancel_requested, result,
  reason, waiting_for, is_poison, ended_at, fade_at
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: save_job
-- Parameters: every column that may change, in the table's order, and seq. Reply: none.
UPDATE "~jobs" SET
  status = ?, due_at = ?, expires_at = ?, payload = ?, awaits = ?, joins = ?, behind = ?, epoch = ?, failures = ?, crashes = ?, snoozes = ?,
  hand_backs = ?, claim = ?, started_at = ?, worker = ?, progress = ?, settled = ?, parked_at = ?, errors = ?, cancel_requested = ?,
  result = ?, reason = ?, waiting_for = ?, is_poison = ?, ended_at = ?, fade_at = ?
WHERE seq = ?;

-- name: waiting_holder
-- Parameters: key. Reply: the row of the waiting live job that has it.
-- (`status < 4` is the index's own word, which SQLite does not infer from another; +seq, lest it walk the table in the order of seq.)
SELECT * FROM "~jobs" WHERE key = ? AND status < 4 AND status < 3 ORDER BY +seq LIMIT 1;

-- name: running_holder
-- Parameters: key. Reply: the row of the running job that has it.
SELECT * FROM "~jobs" WHERE key = ? AND status < 4 AND status = 3 ORDER BY +seq LIMIT 1;

-- name: waiting_behind
-- Parameters: key, id of a job. Reply: the rows of the live jobs that wait behind that job.
SELECT * FROM "~jobs" WHERE key = ? AND status < 4 AND behind = ? ORDER BY +seq;

-- name: bury_job
-- Drops all but the id and the fence. Parameters: fade_at, seq. Reply: none.
UPDATE "~jobs" SET
  status = NULL, payload = NULL, result = NULL, errors = NULL, extras = NULL, progress = NULL, reason = NULL, worker = NULL, fade_at = ?
WHERE seq = ?;
