-- Sessions: their life, their claims, their beats.

-- name: session_by_id
-- Parameters: id. Reply: the session's row, none when it is unknown.
SELECT * FROM "~sessions" WHERE id = ?;

-- name: silent_sessions
-- Parameters: the silence of all sessions, in microseconds. Reply: the rows of living ones that were not spared and whose ttl is about
-- that or less.
SELECT * FROM "~sessions" WHERE dead_at IS NULL AND is_spared = 0 AND ttl * 1000000 <= ? + 1 ORDER BY number;

-- name: living_sessions
-- Parameters: none. Reply: the rows of those that are not dead, in the order in which they came.
SELECT * FROM "~sessions" WHERE dead_at IS NULL ORDER BY number;

-- name: dead_sessions
-- Parameters: none. Reply: the rows of those that are dead and not yet forgotten, in the order in which they came.
SELECT * FROM "~sessions" WHERE dead_at IS NOT NULL ORDER BY number;

-- name: all_sessions
-- Parameters: none. Reply: every row, in the order in which they came.
SELECT * FROM "~sessions" ORDER BY number;

-- name: add_session
-- Parameters: id, name, ttl, about, registered_at, boot_id, beat_at. Reply: none. Refuses a known id.
INSERT INTO "~sessions" (id, name, ttl, about, registered_at, boot_id, beat_at) VALUES (?, ?, ?, ?, ?, ?, ?);

-- name: forget_session
-- Parameters: number. Reply: none.
DELETE FROM "~sessions" WHERE number = ?;

-- name: take_beat
-- Parameters: beat_at, number. Reply: none.
UPDATE "~sessions" SET beat_at = ?, is_spared = 0 WHERE number = ?;

-- name: spare_session
-- Parameters: beat_at, number. Reply: none.
UPDATE "~sessions" SET beat_at = ?, is_spared = 1 WHERE number = ?;

-- name: kill_session
-- Parameters: dead_at, number. Reply: none.
UPDATE "~sessions" SET dead_at = ? WHERE number = ?;

-- name: take_request
-- Parameters: request, number. Reply: none.
UPDATE "~sessions" SET request = ? WHERE number = ?;

-- name: pulse
-- Parameters: none. Reply: when any session last beat.
SELECT value FROM "~meta" WHERE name = 'pulse';

-- name: take_pulse
-- Parameters: the steady time. Reply: none.
UPDATE "~meta" SET value = ? WHERE name = 'pulse';

-- name: lease_count
-- Parameters: the least and the greatest claim of a session. Reply: how many leases it has.
SELECT count(*) FROM "~jobs" WHERE claim >= ? AND claim <= ?;

-- name: ready_queues
-- Parameters: none. Reply: as JSON, number and name of every queue that is not paused and has ready jobs, by name.
SELECT json_group_array(json_array(number, name))
FROM (SELECT number, name FROM "~queues" WHERE ready > 0 AND is_paused = 0 ORDER BY name);

-- name: open_queue
-- Parameters: name. Reply: the queue's number, none when it is unknown or paused.
SELECT number FROM "~queues" WHERE name = ? AND is_paused = 0;

-- name: ready_jobs
-- Parameters: queue, now, limit. Reply: one row of the first ready jobs that have not expired: as JSON, in order of arrival in the answer,
-- seq, name, priority, created_at, due_at, epoch, failures, crashes, snoozes, hand_backs, parked_at, the payload's length, key and extras
-- in hexadecimal; then their ids, and their payloads, one after the other.
SELECT
  json_group_array(
    json_array(
      seq, name, priority, created_at, due_at, epoch, failures, crashes, snoozes, hand_backs, parked_at, length(payload), hex(key), hex(extras)
    )
  ),
  CAST(group_concat(id, '') AS BLOB),
  CAST(group_concat(payload, '') AS BLOB)
FROM (
  SELECT * FROM "~jobs"
  WHERE status = 2 AND queue = ? AND (expires_at IS NULL OR expires_at > ?)
  ORDER BY priority DESC, due_at, seq
  LIMIT ?
);

-- name: lease_jobs
-- Parameters: rows of seq and claim; claimed_at, claimed_steady, worker. Reply: none. Refuses a claim that exists.
WITH leased (seq, claim) AS (VALUES (?, ?) ...)
UPDATE "~jobs" SET
  status = 3, epoch = epoch + 1, claim = leased.claim, claimed_at = ?, claimed_steady = ?, worker = ?, started_at = NULL, progress = NULL,
  waiting_for = NULL
FROM leased
WHERE "~jobs".seq = leased.seq;

-- name: held_claims
-- Parameters: the least and the greatest claim of a session. Reply: its claims, one after the other, and those of jobs asked to stop.
SELECT
  CAST(group_concat(claim, '') AS BLOB),
  CAST(group_concat(CASE WHEN cancel_requested IS NOT NULL THEN claim END, '') AS BLOB)
FROM (SELECT claim, cancel_requested FROM "~jobs" WHERE claim >= ? AND claim <= ? ORDER BY claim);

-- name: save_reports
-- Parameters: rows of claim, started_at, progress or NULL to keep what is there. Reply: none.
WITH report (claim, started_at, progress) AS (VALUES (?, ?, ?) ...)
UPDATE "~jobs" SET started_at = report.started_at, progress = coalesce(report.progress, "~jobs".progress)
FROM report
WHERE "~jobs".claim = report.claim;
