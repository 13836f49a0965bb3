-- Settling as a batch what can be settled so.

-- name: settle_plain_success
-- Ends a run whose end concerns no other job. Parameters: settled, started_at, result, ended_at, fade_at, seq. Reply: none.
UPDATE "~jobs" SET
  status = 4, claim = NULL, settled = ?, started_at = ?, result = ?, ended_at = ?, fade_at = ?, payload = NULL, crashes = 0, hand_backs = 0,
  parked_at = NULL, reason = NULL
WHERE seq = ?;

-- name: plain_run
-- Parameters: claim. Reply: seq, queue, id, epoch of the run with that claim, when nobody waits for its end by a key or a join.
SELECT seq, queue, id, epoch FROM "~jobs" WHERE claim = ? AND key IS NULL AND joins IS NULL;
