-- One job at a time: the careful way, for keys, joins, poison and whatever else a batch cannot do as one.

-- name: job
-- The columns of a job in the table's order. Of a value that is too long, its length below zero comes instead: it is not fetched.
-- (The length of a blob is known without its bytes.)
seq, id, status, queue, name, priority, created_at, due_at, expires_at,
iif(length(key) > 1048576, -length(key), key),
iif(length(extras) > 1048576, -length(extras), extras),
awaits,
iif(length(joins) > 67108864, -length(joins), joins),
behind, epoch, failures, crashes, snoozes, hand_backs, claim, claimed_at, claimed_steady, started_at,
iif(length(worker) > 1048576, -length(worker), worker),
iif(length(progress) > 1048576, -length(progress), progress),
settled, parked_at,
iif(length(cancel_requested) > 1048576, -length(cancel_requested), cancel_requested),
iif(length(reason) > 1048576, -length(reason), reason),
iif(length(waiting_for) > 1048576, -length(waiting_for), waiting_for),
is_poison, ended_at, fade_at,
iif(length(spoilt) > 67108864, -length(spoilt), spoilt),
iif(length(errors) > 1048576, -length(errors), errors),
iif(length(result) > 67108864, -length(result), result),
iif(length(payload) > 67108864, -length(payload), payload)

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
-- Parameters: every column but seq, in the table's order. Reply: none. Refuses a known id.
INSERT INTO "~jobs" (
  id, status, queue, name, priority, created_at, due_at, expires_at, key, extras, awaits, joins, behind, epoch, failures, crashes, snoozes,
  hand_backs, claim, claimed_at, claimed_steady, started_at, worker, progress, settled, parked_at, cancel_requested, reason, waiting_for,
  is_poison, ended_at, fade_at, spoilt, errors, result, payload
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: save_job
-- Parameters: every column that may change, in the table's order but for the payload; the status again, since a success has no payload any
-- more; seq. Reply: none.
UPDATE "~jobs" SET
  status = ?, due_at = ?, expires_at = ?, awaits = ?, joins = ?, behind = ?, epoch = ?, failures = ?, crashes = ?, snoozes = ?,
  hand_backs = ?, claim = ?, started_at = ?, worker = ?, progress = ?, settled = ?, parked_at = ?, cancel_requested = ?, reason = ?,
  waiting_for = ?, is_poison = ?, ended_at = ?, fade_at = ?, errors = ?, result = coalesce(?, result), payload = iif(? IS 4, NULL, payload)
WHERE seq = ?;

-- name: keep_oversized
-- Parameters: name of a column, twice; seq of a job. Reply: none.
INSERT INTO "~oversized" (seq, name, value)
SELECT
  seq, ?,
  CASE ?
    WHEN 'key' THEN key WHEN 'extras' THEN extras WHEN 'joins' THEN joins WHEN 'worker' THEN worker WHEN 'progress' THEN progress
    WHEN 'cancel_requested' THEN cancel_requested WHEN 'reason' THEN reason WHEN 'waiting_for' THEN waiting_for
    WHEN 'spoilt' THEN spoilt WHEN 'errors' THEN errors WHEN 'result' THEN result ELSE payload
  END
FROM "~jobs" WHERE seq = ?
ON CONFLICT DO NOTHING;

-- name: mend_job
-- Parameters: every column but those of `row.LEFT_ALONE`, in the table's order; seq. Reply: none. What is oversized of the others is dropped.
UPDATE "~jobs" SET
  id = ?, status = ?, queue = ?, name = ?, priority = ?, created_at = ?, due_at = ?, expires_at = ?, key = ?, awaits = ?, joins = ?,
  behind = ?, epoch = ?, failures = ?, crashes = ?, snoozes = ?, hand_backs = ?, claim = ?, claimed_at = ?, claimed_steady = ?,
  started_at = ?, worker = ?, progress = ?, settled = ?, parked_at = ?, cancel_requested = ?, reason = ?, waiting_for = ?, is_poison = ?,
  ended_at = ?, fade_at = ?, spoilt = ?, errors = ?, extras = iif(length(extras) > 1048576, NULL, extras),
  result = iif(length(result) > 67108864, NULL, result), payload = iif(length(payload) > 67108864, NULL, payload)
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
  status = NULL, payload = NULL, result = NULL, errors = NULL, extras = NULL, progress = NULL, reason = NULL, worker = NULL, spoilt = NULL,
  fade_at = ?
WHERE seq = ?;
