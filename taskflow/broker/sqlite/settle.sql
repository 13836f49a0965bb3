-- Settles batches of runs that no key or join ties to another job.

-- name: succeeded
-- Parameters: ended_at.
status = 4, claim = NULL, settled = run.settled, started_at = run.started_at, result = run.result, ended_at = ?, fade_at = run.fade_at,
payload = NULL, @outcome

-- name: settle_cached
-- Parameters: rows of seq, settled, started_at, result, fade_at; ended_at. Result: none; the number of changed rows shows whether all of
-- these leases still exist. (A fence begins with its claim's 28 bytes. IS keeps SQLite from looking them up by their claims instead.)
WITH run (seq, settled, started_at, result, fade_at) AS (VALUES (?, ?, ?, ?, ?) ...)
UPDATE "~jobs" SET @succeeded
FROM run
WHERE "~jobs".seq = run.seq AND "~jobs".claim IS substr(run.settled, 1, 28);

-- name: settle_lone_successes
-- Parameters: rows of claim, settled, started_at, result, fade_at; ended_at. Result: none.
WITH run (claim, settled, started_at, result, fade_at) AS (VALUES (?, ?, ?, ?, ?) ...)
UPDATE "~jobs" SET @succeeded
FROM run
WHERE "~jobs".claim = run.claim;

-- name: states_of_lone_runs
-- Finds those of the runs that no other job waits for, that were not asked to stop, and whose jobs are not poison. Parameters: rows of
-- number, claim, id, epoch. Result: as JSON, number, seq, queue, due_at, failures, crashes, snoozes, hand_backs, parked_at, errors and
-- worker in hexadecimal.
WITH run (number, claim, id, epoch) AS (VALUES (?, ?, ?, ?) ...)
SELECT
  json_group_array(
    json_array(
      run.number, seq, queue, due_at, failures, crashes, snoozes, hand_backs, parked_at, hex(errors), hex(worker)
    )
  )
FROM run JOIN "~jobs" AS j ON j.claim = run.claim
WHERE
  j.id = run.id AND j.epoch = run.epoch AND j.key IS NULL AND j.joins IS NULL AND j.cancel_requested IS NULL AND j.is_poison = 0
  -- Unsound rows are settled separately.
  AND typeof(queue) = 'integer' AND typeof(due_at) = 'integer' AND typeof(failures) = 'integer' AND typeof(crashes) = 'integer'
  AND typeof(snoozes) = 'integer' AND typeof(hand_backs) = 'integer' AND typeof(parked_at) IN ('integer', 'null')
  AND min(failures, crashes, snoozes, hand_backs) >= 0 AND max(failures, crashes, snoozes, hand_backs) < 9007199254740992
  AND coalesce(length(errors), 0) <= 1048576 AND typeof(errors) IN ('blob', 'null')
  AND coalesce(length(worker), 0) <= 1024 AND typeof(worker) IN ('text', 'null') AND spoilt IS NULL;

-- name: save_runs
-- Parameters: rows of seq and the columns of `row.OF_RUN`. Result: none. Ends the leases of these runs.
WITH run (seq, @of_run) AS (VALUES (?, @of_run_places) ...)
UPDATE "~jobs" SET @from_run, claim = NULL FROM run WHERE "~jobs".seq = run.seq;
