-- Registers sessions, takes their heartbeats, and ends them.

-- name: session
-- The columns of a session in the table's order. Values that are too long are not fetched.
number, id, iif(length(name) > 1048576, NULL, name), ttl, iif(length(about) > 1048576, NULL, about), registered_at,
iif(length(boot_id) > 1024, NULL, boot_id), beat_at, is_spared, dead_at, request, wants_ends

-- name: session_by_id
-- Parameters: id. Result: the session's row; none if it is unknown.
SELECT @session FROM "~sessions" WHERE id = ?;

-- name: silent_sessions
-- Parameters: the silence of all sessions, in microseconds. Result: the rows of living sessions that were not spared and whose ttl is about
-- that or less.
SELECT @session FROM "~sessions" WHERE dead_at IS NULL AND is_spared = 0 AND ttl * 1000000 <= ? + 1 ORDER BY number;

-- name: living_sessions
-- Parameters: none. Result: the rows of living sessions, in order of registration.
SELECT @session FROM "~sessions" WHERE dead_at IS NULL ORDER BY number;

-- name: dead_sessions
-- Parameters: none. Result: the rows of sessions that are dead and not yet forgotten, in order of registration.
SELECT @session FROM "~sessions" WHERE dead_at IS NOT NULL ORDER BY number;

-- name: all_sessions
-- Parameters: none. Result: every row, in order of registration.
SELECT @session FROM "~sessions" ORDER BY number;

-- name: add_session
-- Parameters: id, name, ttl, about, registered_at, boot_id, beat_at, wants_ends. Result: none. Fails for a known id.
INSERT INTO "~sessions" (id, name, ttl, about, registered_at, boot_id, beat_at, wants_ends) VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: show_session
-- Parameters: about, number. Result: none.
UPDATE "~sessions" SET about = ? WHERE number = ?;

-- name: forget_session
-- Parameters: number. Result: none.
DELETE FROM "~sessions" WHERE number = ?;

-- name: repair_session
-- Parameters: every column except number and id, in the table's order; number. Result: none.
UPDATE "~sessions" SET
  name = ?, ttl = ?, about = ?, registered_at = ?, boot_id = ?, beat_at = ?, is_spared = ?, dead_at = ?, request = ?, wants_ends = ?
WHERE number = ?;

-- name: take_beat
-- Parameters: beat_at, number. Result: none.
UPDATE "~sessions" SET beat_at = ?, is_spared = 0 WHERE number = ?;

-- name: spare_session
-- Parameters: beat_at, number. Result: none.
UPDATE "~sessions" SET beat_at = ?, is_spared = 1 WHERE number = ?;

-- name: kill_session
-- Parameters: dead_at, number. Result: none.
UPDATE "~sessions" SET dead_at = ? WHERE number = ?;

-- name: pulse
-- Parameters: none. Result: the time of the last heartbeat of any session.
SELECT max(coalesce(max(CAST(value AS INTEGER)), 0), 0) FROM "~meta" WHERE name = 'pulse';

-- name: take_pulse
-- Parameters: the steady time. Result: none.
UPDATE "~meta" SET value = ? WHERE name = 'pulse';

-- name: lease_count
-- Parameters: the least and the greatest claim of a session. Result: the number of its leases.
SELECT count(*) FROM "~jobs" WHERE claim >= ? AND claim <= ?;

-- name: held_claims
-- Parameters: the least and the greatest claim of a session. Result: its claims, concatenated, and those of jobs asked to stop. A claim of
-- another length is unsound.
SELECT
  CAST(group_concat(claim, '') AS BLOB),
  CAST(group_concat(CASE WHEN cancel_requested IS NOT NULL THEN claim END, '') AS BLOB)
FROM (SELECT claim, cancel_requested FROM "~jobs" WHERE claim >= ? AND claim <= ? AND length(claim) = 28 ORDER BY claim);

-- name: save_reports
-- Parameters: rows of claim, started_at, progress or NULL to keep the old one. Result: none.
WITH report (claim, started_at, progress) AS (VALUES (?, ?, ?) ...)
UPDATE "~jobs" SET started_at = report.started_at, progress = coalesce(report.progress, "~jobs".progress)
FROM report
WHERE "~jobs".claim = report.claim;
