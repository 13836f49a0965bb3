-- Sessions: their life, their claims, their beats.

-- name: session_by_id
-- Parameters: id. Reply: the session's row, none when it is unknown.
SELECT * FROM "~sessions" WHERE id = ?;

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
-- Parameters: none. Reply: number and name of every queue that is not paused and has ready jobs, by name.
SELECT number, name FROM "~queues" WHERE ready > 0 AND is_paused = 0 ORDER BY name;

-- name: open_queue
-- Parameters: name. Reply: the queue's number, none when it is unknown or paused.
SELECT number FROM "~queues" WHERE name = ? AND is_paused = 0;

-- name: ready_jobs
-- Parameters: queue, now, limit. Reply: what a lease tells of the first ready jobs that have not expired.
SELECT seq, id, name, priority, created_at, payload, key, extras, epoch, failures, crashes, snoozes, hand_backs, parked_at
FROM "~jobs"
WHERE status = 2 AND queue = ? AND (expires_at IS NULL OR expires_at > ?)
ORDER BY priority DESC, due_at, seq
LIMIT ?;

-- name: lease_job
-- Parameters: claim, claimed_at, claimed_steady, worker, seq. Reply: none. Refuses a claim that exists.
UPDATE "~jobs" SET
  status = 3, epoch = epoch + 1, claim = ?, claimed_at = ?, claimed_steady = ?, worker = ?, started_at = NULL, progress = NULL,
  waiting_for = NULL
WHERE seq = ?;
