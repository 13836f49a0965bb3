-- Stores, offers and moves schedules.

-- name: schedule
-- The columns of a schedule in the order of `ScheduleRow`. Values that are too long are not fetched.
iif(length(name) > 1048576, NULL, name), iif(length(digest) = 16, digest, NULL), iif(length(body) > 67108864, NULL, body), is_declared, look_at,
is_paused, next_at, last_at, fired_at, iif(length(last_id) = 16, last_id, NULL), fired, skipped, missed, asleep_since, since, number

-- name: schedule_by_name
-- Parameters: name. Result: the schedule's row; none if it is unknown.
SELECT @schedule FROM "~schedules" WHERE name = ?;

-- name: all_schedules
-- Parameters: none. Result: every row, by name.
SELECT @schedule FROM "~schedules" ORDER BY name;

-- name: due_schedules
-- Parameters: now, limit, bytes. Result: the rows of schedules to look at, earliest first, until their bodies have this size.
SELECT @schedule FROM "~schedules" WHERE number IN (
  SELECT number FROM (
    SELECT number, size, sum(size) OVER (ORDER BY look_at, number) AS size_so_far FROM (
      SELECT number, look_at, length(body) AS size FROM "~schedules" WHERE look_at IS NOT NULL AND look_at <= ? ORDER BY look_at LIMIT ?
    )
  ) WHERE size_so_far - size < ?
)
ORDER BY look_at;

-- name: save_schedule
-- Parameters: every column in the order of `ScheduleRow`; number is NULL for a new schedule. Result: none.
REPLACE INTO "~schedules"
  (name, digest, body, is_declared, look_at, is_paused, next_at, last_at, fired_at, last_id, fired, skipped, missed, asleep_since, since, number)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: remove_schedule
-- Parameters: number. Result: none.
DELETE FROM "~schedules" WHERE number = ?;

-- name: declare
-- Parameters: name, session, since, digest, body. Result: none.
REPLACE INTO "~declarations" (name, session, since, digest, body) VALUES (?, ?, ?, ?, ?);

-- name: drop_declarations
-- Parameters: session. Result: the names of the schedules that it declared.
DELETE FROM "~declarations" WHERE session = ? RETURNING name;

-- name: youngest_declaration
-- Parameters: name. Result: the digest and body of the youngest living session's declaration; no row if there is none.
SELECT d.digest, d.body
FROM "~declarations" AS d JOIN "~sessions" AS s ON s.id = d.session
WHERE d.name = ? AND s.dead_at IS NULL AND length(d.digest) = 16 AND length(d.body) <= 67108864
ORDER BY d.since DESC, d.session DESC
LIMIT 1;

-- name: declarers
-- Parameters: name. Result: the names of the living sessions that declare the schedule, the youngest first.
SELECT iif(length(s.name) > 1048576, NULL, s.name)
FROM "~declarations" AS d JOIN "~sessions" AS s ON s.id = d.session
WHERE d.name = ? AND s.dead_at IS NULL
ORDER BY d.since DESC, d.session DESC;
