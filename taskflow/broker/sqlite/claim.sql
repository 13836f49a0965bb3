-- Leases ready jobs.

-- name: take_request
-- Parameters: request, session's id, request. Result: the session's name; no row if it is dead or unknown, or has already sent this
-- request.
UPDATE "~sessions" SET request = ? WHERE id = ? AND dead_at IS NULL AND request < ? RETURNING name;

-- name: ready_queues
-- Parameters: limit; a number, which modulo the number of queues gives the first one. Result: the number of queues that are not paused and
-- have ready jobs; as JSON, number and ready jobs of some of them, by name, from the first one on.
WITH ready (queues) AS (SELECT count(*) FROM "~queues" WHERE ready > 0 AND is_paused = 0)
SELECT (SELECT queues FROM ready), json_group_array(json_array(number, iif(typeof(ready) = 'integer', ready, 1)))
FROM (
  SELECT number, "~queues".ready FROM "~queues" WHERE "~queues".ready > 0 AND is_paused = 0
  ORDER BY name
  LIMIT ? OFFSET (SELECT ? % max(1, queues) FROM ready)
);

-- name: ready_columns
-- The columns of ready jobs. Parameters: the maximum size of a payload to fetch, three times.
--
-- As JSON, in order of arrival in the answer: queue, seq, name, created_at and the payload's length. Less plain jobs also have due_at,
-- priority, epoch, failures, crashes, snoozes, hand_backs, parked_at, key and extras in hexadecimal, whether others await it, and expires_at.
-- (A job that was never leased has no failures, crashes, snoozes or hand-backs, and was not parked.)
--
-- A job must be read separately if a value may be unsound, if its payload is long, or if it is poison. It has: queue, seq, two zeros, the payload's length as
-- a negative number, its place, and whether its id and its payload are included nevertheless.
--
-- Then the ids, and the payloads, each concatenated.
json_group_array(
  CASE
    WHEN
      typeof(id) != 'blob' OR length(id) != 16 OR typeof(payload) != 'blob' OR length(payload) > ? OR typeof(name) != 'integer'
      OR typeof(created_at) != 'integer' OR typeof(due_at) != 'integer' OR spoilt IS NOT NULL OR ended_at IS NOT NULL
    THEN
      json_array(
        queue, seq, 0, 0, -1 - CASE typeof(payload) WHEN 'blob' THEN length(payload) ELSE 0 END, CAST(due_at AS INTEGER),
        CAST(priority AS INTEGER), typeof(id) = 'blob' AND length(id) = 16, typeof(payload) = 'blob' AND length(payload) <= ?
      )
    WHEN
      epoch = 0 AND priority = 0 AND extras IS NULL AND @plain
    THEN json_array(queue, seq, name, created_at, length(payload))
    WHEN
      typeof(priority) = 'integer' AND priority BETWEEN -100 AND 100
      AND typeof(epoch) = 'integer' AND typeof(failures) = 'integer' AND typeof(crashes) = 'integer' AND typeof(snoozes) = 'integer'
      AND typeof(hand_backs) = 'integer' AND min(epoch, failures, crashes, snoozes, hand_backs) >= 0
      AND max(epoch, failures, crashes, snoozes, hand_backs) < 9007199254740992
      AND typeof(parked_at) IN ('integer', 'null') AND typeof(expires_at) IN ('integer', 'null')
      AND coalesce(length(key) <= 64, 1) AND coalesce(length(extras) <= 65536, 1) AND is_poison = 0
    THEN
      json_array(
        queue, seq, name, created_at, length(payload), due_at, priority, epoch, failures, crashes, snoozes, hand_backs, parked_at,
        hex(key), hex(extras), joins IS NOT NULL, expires_at
      )
    ELSE json_array(queue, seq, 0, 0, -1 - length(payload), due_at, CAST(priority AS INTEGER), 1, 1)
  END
),
CAST(group_concat(CASE WHEN typeof(id) = 'blob' AND length(id) = 16 THEN id END, '') AS BLOB),
CAST(group_concat(CASE WHEN typeof(payload) = 'blob' AND length(payload) <= ? THEN payload END, '') AS BLOB)

-- name: ready_jobs
-- Parameters: the maximum size of a payload to fetch, three times; queue, now, limit. Result: one row with the first ready jobs that have
-- not expired, empty if the queue is paused. (They are chosen first, so that no long value is read on the way.)
SELECT @ready_columns
FROM (
  SELECT seq AS chosen FROM "~jobs"
  WHERE
    status = 2 AND queue = (SELECT number FROM "~queues" WHERE number = ? AND is_paused = 0)
    AND (expires_at IS NULL OR expires_at > ?)
  ORDER BY priority DESC, due_at, seq
  LIMIT ?
) CROSS JOIN "~jobs" ON seq = chosen;

-- name: all_ready_jobs
-- Parameters: rows of a queue's number; the maximum size of a payload to fetch, three times; now. Result: one row with all ready jobs of
-- these queues, like that of `ready_jobs`.
WITH wanted (number) AS (VALUES (?) ...)
SELECT @ready_columns
FROM wanted CROSS JOIN "~jobs"
WHERE
  status = 2 AND queue = (SELECT number FROM "~queues" WHERE number = wanted.number AND is_paused = 0)
  AND (expires_at IS NULL OR expires_at > ?);

-- name: lease_jobs
-- Parameters: rows of seq and claim; claimed_at, claimed_steady, worker. Result: none. Fails for a claim that exists.
WITH leased (seq, claim) AS (VALUES (?, ?) ...)
UPDATE "~jobs" SET
  status = 3, epoch = epoch + 1, claim = leased.claim, claimed_at = ?, claimed_steady = ?, worker = ?, @claimed
FROM leased
WHERE "~jobs".seq = leased.seq;
