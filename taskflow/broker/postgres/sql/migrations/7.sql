-- 7: The server refuses values that no verb could work with, whoever writes them.

-- A value of a column has the domain's type and satisfies its check. Other values are not refused here: a worker decodes them, and ends a job
-- that it cannot read as FAILED.
CREATE DOMAIN @.identity AS bytea CHECK (octet_length(VALUE) = 16);
CREATE DOMAIN @.instant AS bigint CHECK (VALUE BETWEEN 0 AND P.LATEST);
CREATE DOMAIN @.counter AS integer CHECK (VALUE BETWEEN 0 AND 2147483646); -- one less than the type holds: a verb adds one
CREATE DOMAIN @.arrival AS bigint CHECK (VALUE > 0);
CREATE DOMAIN @.status AS smallint CHECK (VALUE BETWEEN S.HELD AND S.GONE);
CREATE DOMAIN @.priority AS smallint CHECK (VALUE BETWEEN -100 AND 100);
CREATE DOMAIN @.queue_name AS text COLLATE "C" CHECK (octet_length(VALUE) BETWEEN 1 AND 400);
CREATE DOMAIN @.job_name AS text COLLATE "C" CHECK (octet_length(VALUE) BETWEEN 1 AND 800);
CREATE DOMAIN @.identities AS bytea CHECK (octet_length(VALUE) <= P.MOST_JOINED_BYTES AND octet_length(VALUE) % 16 = 0);

ALTER TABLE @.jobs
    ALTER COLUMN status TYPE @.status, ALTER COLUMN id TYPE @.identity, ALTER COLUMN session TYPE @.identity, ALTER COLUMN behind TYPE @.identity,
    ALTER COLUMN created_at TYPE @.instant, ALTER COLUMN due_at TYPE @.instant, ALTER COLUMN expires_at TYPE @.instant,
    ALTER COLUMN parked_at TYPE @.instant, ALTER COLUMN ended_at TYPE @.instant, ALTER COLUMN fade_at TYPE @.instant,
    ALTER COLUMN epoch TYPE @.counter, ALTER COLUMN failures TYPE @.counter, ALTER COLUMN crashes TYPE @.counter,
    ALTER COLUMN snoozes TYPE @.counter, ALTER COLUMN hand_backs TYPE @.counter, ALTER COLUMN awaits TYPE @.counter,
    ALTER COLUMN number TYPE @.counter, ALTER COLUMN seq TYPE @.arrival, ALTER COLUMN priority TYPE @.priority,
    ALTER COLUMN queue TYPE @.queue_name, ALTER COLUMN job TYPE @.job_name, ALTER COLUMN joins TYPE @.identities,
    DROP CONSTRAINT a_run_is_leased, DROP CONSTRAINT an_end_has_its_time, DROP CONSTRAINT the_held_await,
    ADD CONSTRAINT a_run_is_leased CHECK (
        CASE WHEN status = S.RUNNING THEN session IS NOT NULL AND (number + claimed_steady) IS NOT NULL AND (request >= 0) IS TRUE ELSE session IS NULL END
    ),
    ADD CONSTRAINT an_end_has_its_time CHECK ((status >= S.SUCCEEDED) = (ended_at IS NOT NULL) AND (status >= S.SUCCEEDED) = (fade_at IS NOT NULL)),
    ADD CONSTRAINT the_held_await CHECK (status <> S.HELD OR coalesce(awaits, 0) > 0);

ALTER TABLE @.sessions
    ADD CONSTRAINT a_name_is_short CHECK (octet_length(name) <= P.MOST_BYTES),
    ADD CONSTRAINT a_ttl_is_possible CHECK (ttl BETWEEN 1 AND R.longest),
    ADD CONSTRAINT about_is_short CHECK (octet_length(about) <= P.MOST_BYTES),
    ADD CONSTRAINT times_are_possible CHECK (
        registered_at BETWEEN 0 AND P.LATEST AND beat_at BETWEEN 0 AND P.LATEST AND floor BETWEEN 0 AND P.LATEST
        AND coalesce(dead_at BETWEEN 0 AND P.LATEST, true)
    ),
    ADD CONSTRAINT the_released_are_dead CHECK (dead_at IS NOT NULL OR NOT is_released);
