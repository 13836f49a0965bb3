-- 4: At most one live job of a key is not behind another one, whatever the transactions of others see.

-- A transaction at "repeatable read" that began before the other was added does not find it by a look. What it may have added so waits now.
WITH held AS (
    UPDATE @.jobs AS waiting SET status = S.HELD, behind = running.id, awaits = coalesce(waiting.awaits, 0) + 1
    FROM @.jobs AS running, @.jobs AS before
    WHERE running.key = waiting.key AND running.status = S.RUNNING AND waiting.status < S.RUNNING AND waiting.behind IS NULL
        AND before.id = waiting.id
    RETURNING waiting.queue, before.status
)
INSERT INTO @.tally (queue, event, before, after, n) SELECT queue, NULL, status, S.HELD, count(*) FROM held WHERE status <> S.HELD GROUP BY 1, 3;
CREATE UNIQUE INDEX jobs_first_of_key ON @.jobs (key) WHERE key IS NOT NULL AND status <= S.RUNNING AND behind IS NULL;
