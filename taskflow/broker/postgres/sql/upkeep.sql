-- What time brings, in at most `most` moves; one caller at a time, the others come again later.
CREATE FUNCTION @.upkeep(
    wall bigint, steady bigint, most integer,
    OUT readied integer, OUT reaped integer, OUT released integer, OUT expired integer, OUT dropped integer, OUT next_in bigint, OUT rung text
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    first_due bigint;
    left_over integer := most;
BEGIN
    steady := coalesce(steady, now_at);
    readied := 0; reaped := 0; released := 0; expired := 0; dropped := 0;
    next_in := R.upkeep_every;
    IF NOT pg_try_advisory_xact_lock(hashtextextended('@.upkeep', 0)) THEN
        RETURN;
    END IF;
    PERFORM @.spare_after_outage(steady);
    UPDATE @.sessions SET dead_at = now_at WHERE dead_at IS NULL AND steady - beat_at > ttl;
    GET DIAGNOSTICS reaped = ROW_COUNT;
    readied := @.ready_due(now_at, left_over);
    left_over := greatest(0, left_over - readied);
    released := @.release_leases(now_at, left_over);
    left_over := greatest(0, left_over - released);
    expired := @.expire(now_at, left_over);
    left_over := greatest(0, left_over - expired);
    PERFORM @.sum_up();
    dropped := @.drop_over_cap(now_at, left_over);
    dropped := dropped + @.drop_faded(now_at, left_over - dropped);
    left_over := left_over - dropped;
    DELETE FROM @.awaited WHERE until_when < now_at;
    SELECT greatest(1, count(*)) * R.upkeep_every INTO next_in FROM @.sessions WHERE dead_at IS NULL;
    SELECT due_at INTO first_due FROM @.jobs WHERE status = S.SCHEDULED ORDER BY due_at, seq, id LIMIT 1;
    IF left_over <= 0 THEN
        next_in := 0;
    ELSIF first_due IS NOT NULL THEN
        next_in := least(next_in, greatest(0, first_due - now_at));
    END IF;
    rung := current_setting('taskflow.rung', true);
END
$$;

CREATE FUNCTION @.sum_up() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH taken AS (DELETE FROM @.tally RETURNING queue, what, n)
    INSERT INTO @.totals (queue, what, n) SELECT queue, what, sum(n) FROM taken GROUP BY queue, what
    ON CONFLICT (queue, what) DO UPDATE SET n = totals.n + excluded.n;
END
$$;

CREATE FUNCTION @.ready_due(now_at bigint, most integer) RETURNS integer LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    moved integer;
BEGIN
    WITH due AS MATERIALIZED (
        SELECT id FROM @.jobs WHERE status = S.SCHEDULED AND due_at <= now_at ORDER BY due_at, seq, id LIMIT most FOR UPDATE SKIP LOCKED
    ), readied AS (
        UPDATE @.jobs SET status = S.READY FROM due WHERE jobs.id = due.id RETURNING queue
    ), counted AS (
        SELECT @.count_move(queue, E.DUE, S.SCHEDULED, S.READY, count(*)), @.ring('queue:' || queue), count(*) AS number FROM readied GROUP BY queue
    )
    SELECT coalesce(sum(number), 0) INTO moved FROM counted;
    RETURN moved;
END
$$;

CREATE FUNCTION @.release_leases(now_at bigint, most integer) RETURNS integer LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    s @.sessions;
    j @.jobs;
    moved integer := 0;
BEGIN
    FOR s IN SELECT * FROM @.sessions WHERE dead_at IS NOT NULL ORDER BY number LOOP
        FOR j IN SELECT * FROM @.jobs WHERE session = s.id AND status = S.RUNNING ORDER BY request, number LIMIT most - moved LOOP
            PERFORM @.lock_jobs(ARRAY [j.id]);
            SELECT * INTO j FROM @.jobs WHERE id = j.id AND session = s.id AND status = S.RUNNING;
            CONTINUE WHEN NOT FOUND;
            IF s.is_spared THEN
                PERFORM @.hand_back(j, true, now_at);
            ELSE
                PERFORM @.crash(j, now_at);
            END IF;
            moved := moved + 1;
        END LOOP;
        IF s.dead_at < now_at - R.repeat_for AND NOT EXISTS (SELECT 1 FROM @.jobs WHERE session = s.id AND status = S.RUNNING) THEN
            DELETE FROM @.sessions WHERE id = s.id;
        END IF;
    END LOOP;
    RETURN moved;
END
$$;

CREATE FUNCTION @.crash(j @.jobs, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    waits bigint[] := R.crash_backoff;
    wait bigint;
BEGIN
    j.crashes := j.crashes + 1;
    wait := waits[least(j.crashes, cardinality(waits))];
    j.errors := @.noted(j.errors, @.packed_error(W.CRASHED, j.worker, j.crashes, j.failures + 1, now_at));
    IF j.crashes > R.max_crashes AND j.cancel_requested IS NULL THEN
        PERFORM @.poison(j, E.CRASH, format(W.LOST_IN_A_ROW, j.crashes), now_at);
    ELSE
        PERFORM @.wait_again(j, E.CRASH, now_at, CASE WHEN wait > 0 THEN now_at + wait END);
    END IF;
END
$$;

-- A msgpack array of type, message, traceback, attempt and time, as verdict.py reads it.
CREATE FUNCTION @.packed_error(kind text, worker bytea, crashes integer, attempt integer, now_at bigint) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT '\x95'::bytea || @.packed_text(@.utf8(kind))
        || @.packed_text(
            @.utf8(split_part(W.WORKER_LOST, '%s', 1)) || worker || @.utf8(split_part(W.WORKER_LOST, '%s', 2) || crashes)
            || @.utf8(split_part(W.WORKER_LOST, '%s', 3))
        )
        || @.packed_text('') || '\xce'::bytea || int4send(attempt) || '\xcf'::bytea || int8send(now_at)
$$;

CREATE FUNCTION @.packed_text(utf8 bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT '\xdb'::bytea || int4send(length(utf8)) || utf8
$$;

CREATE FUNCTION @.expire(now_at bigint, most integer) RETURNS integer LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    j @.jobs;
    moved integer := 0;
BEGIN
    FOR j IN
        SELECT * FROM @.jobs WHERE expires_at IS NOT NULL AND status < S.RUNNING AND expires_at <= now_at ORDER BY expires_at, id LIMIT most
    LOOP
        PERFORM @.lock_jobs(ARRAY [j.id]);
        SELECT * INTO j FROM @.jobs WHERE id = j.id AND status < S.RUNNING;
        IF FOUND THEN
            PERFORM @.finish(j, E.EXPIRE, S.CANCELLED, @.utf8(W.EXPIRED), now_at);
            moved := moved + 1;
        END IF;
    END LOOP;
    RETURN moved;
END
$$;

CREATE FUNCTION @.drop_over_cap(now_at bigint, most integer) RETURNS integer LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    crowded record;
    each bytea;
    moved integer := 0;
BEGIN
    FOR crowded IN
        SELECT queue, what = '=' || S.FAILED AS failed, sum(n) - R.kept_per_queue AS over FROM @.totals
        WHERE what IN ('=' || S.SUCCEEDED, '=' || S.CANCELLED, '=' || S.FAILED)
        GROUP BY 1, 2 HAVING sum(n) > R.kept_per_queue ORDER BY 1, 2
    LOOP
        FOR each IN
            SELECT id FROM @.jobs
            WHERE queue = crowded.queue AND (status = S.FAILED) = crowded.failed AND status BETWEEN S.SUCCEEDED AND S.CANCELLED
            ORDER BY ended_at, seq LIMIT least(crowded.over, most - moved)
        LOOP
            PERFORM @.bury(each);
            INSERT INTO @.tally (queue, what, n) VALUES (crowded.queue, W.DROPPED_OVER_CAP, 1);
            moved := moved + 1;
        END LOOP;
    END LOOP;
    RETURN moved;
END
$$;

-- First to be nothing but an id, when its keep is over; then, when no call can be resent any more, nothing at all.
CREATE FUNCTION @.drop_faded(now_at bigint, most integer) RETURNS integer LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    faded record;
    moved integer := 0;
    last_at bigint;
    last_id bytea;
BEGIN
    IF most <= 0 THEN
        RETURN 0;
    END IF;
    WITH first AS MATERIALIZED (
        SELECT id, fade_at FROM @.jobs WHERE fade_at <= now_at AND status < S.GONE ORDER BY fade_at, id LIMIT most FOR UPDATE SKIP LOCKED
    ), buried AS (
        UPDATE @.jobs SET status = S.GONE, payload = NULL, result = NULL, errors = NULL, extras = NULL, reason = NULL, progress = NULL,
            waiting_for = NULL, fade_at = jobs.ended_at + R.repeat_for
        FROM first, @.jobs AS before
        WHERE jobs.id = first.id AND before.id = first.id
        RETURNING jobs.queue, before.status AS status, first.fade_at AS faded_at, jobs.id AS id
    ), counted AS (
        SELECT @.count_move(queue, E.DROP, status, NULL, count(*)), count(*) AS number FROM buried GROUP BY queue, status
    )
    SELECT coalesce(sum(number), 0), (SELECT faded_at FROM buried ORDER BY faded_at DESC, id DESC LIMIT 1),
        (SELECT id FROM buried ORDER BY faded_at DESC, id DESC LIMIT 1)
    INTO moved, last_at, last_id FROM counted;
    -- When the limit is used up, of the ids only those go whose turn would have come before the last of them.
    IF moved < most THEN
        DELETE FROM @.jobs WHERE status = S.GONE AND fade_at <= now_at;
    ELSE
        DELETE FROM @.jobs WHERE status = S.GONE AND (fade_at, id) < (last_at, last_id);
    END IF;
    RETURN moved;
END
$$;
