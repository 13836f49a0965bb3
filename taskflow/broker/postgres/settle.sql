-- Settles successes of jobs without a key that no job awaits, all at once. Most settlements are of this kind. Ids of 16 bytes are
-- concatenated, and so are fences of 32: (epoch, session, request, number), the form of jobs.settled. keep_for and results may have one
-- element if all are equal. Returns NULL if all are settled, now or by the same settlement before, else the ids of those that are; the
-- others are left to settle(). `are_awaited`: a caller waits for one of them; one that has just started may not be seen. Rows are changed
-- in the order of their ids, as they are locked everywhere. `+ 0` makes the plan look up each id, not all leases.
CREATE FUNCTION @.succeed(
    wall bigint, ids bytea, fences bytea, ran_for bigint[], keep_for bigint[], results bytea[], OUT done bytea[], OUT are_awaited boolean
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '1500ms' SET plan_cache_mode = force_generic_plan SET jit = off
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
BEGIN
    WITH ended AS (
        UPDATE @.jobs SET
            status = S.SUCCEEDED, payload = NULL, result = coalesce(given.outcome, results[1]), session = NULL, request = NULL, number = NULL,
            reason = NULL, @outcome{%n = %d}, started_at = now_at - given.length, ended_at = now_at,
            fade_at = now_at + coalesce(given.keep, keep_for[1]), settled = given.fence
        FROM (
            SELECT substr(ids, 16 * n::integer - 15, 16) AS id, substr(fences, 32 * n::integer - 31, 32) AS fence, length, keep, outcome
            FROM unnest(ran_for, keep_for, results) WITH ORDINALITY AS given (length, keep, outcome, n) ORDER BY 1 OFFSET 0
        ) AS given
        WHERE jobs.id = given.id AND jobs.status + 0 = S.RUNNING
            AND int4send(jobs.epoch) || jobs.session || int8send(jobs.request) || int4send(jobs.number) = given.fence
            AND jobs.key IS NULL AND jobs.joins IS NULL
        RETURNING jobs.id, jobs.queue
    ), counted AS (
        INSERT INTO @.tally (queue, event, before, after, n)
        SELECT queue, E.SUCCEED, S.RUNNING, S.SUCCEEDED, count(*) FROM ended GROUP BY queue
    )
    SELECT CASE WHEN count(*) < cardinality(ran_for) THEN coalesce(array_agg(id), '{}') END INTO done FROM ended;
    IF done IS NOT NULL THEN
        done := done || ARRAY(
            SELECT given.id FROM (
                SELECT substr(ids, 16 * n - 15, 16) AS id, substr(fences, 32 * n - 31, 32) AS fence
                FROM generate_series(1, cardinality(ran_for)) AS n
            ) AS given JOIN @.jobs ON jobs.id = given.id
            WHERE settled = given.fence AND jobs.id <> ALL (done)
        );
    END IF;
    are_awaited := EXISTS ( -- by their ids: many rows that were awaited once may not be vacuumed yet
        SELECT 1 FROM @.awaited WHERE id = ANY (ARRAY (SELECT substr(ids, 16 * n - 15, 16) FROM generate_series(1, cardinality(ran_for)) AS n))
    );
END
$$;

-- Settles runs one by one. It waits so briefly for a lock that it could wait for a second one before the client gives up. The kinds of
-- verdicts: see settle.py. Returns for each whether it is OK, or NULL if settle_within() has settled it.
CREATE FUNCTION @.settle(
    wall bigint, ids bytea[], epochs integer[], sessions bytea[], requests bigint[], numbers integer[], kinds integer[], ran_for bigint[],
    keep_for bigint[], contents bytea[], errors bytea[], afters bigint[], followed integer[], @sent{f_%n %t[]},
    progresses bytea[], causes bytea[], OUT answers boolean[], OUT wakeups text
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '1500ms' SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    j @.jobs;
    fence bytea;
BEGIN
    PERFORM @.lock_settled(ids, f_key);
    FOR i IN 1 .. cardinality(ids) LOOP
        fence := int4send(epochs[i]) || sessions[i] || int8send(requests[i]) || int4send(numbers[i]);
        SELECT * INTO j FROM @.jobs WHERE id = ids[i];
        IF NOT FOUND THEN
            answers[i] := false;
        ELSIF j.status = S.RUNNING AND j.epoch = epochs[i] AND j.session = sessions[i] AND j.request = requests[i] AND j.number = numbers[i] THEN
            @lighten(j);
            j.settled := fence;
            j.started_at := now_at - ran_for[i];
            j.progress := coalesce(progresses[i], j.progress);
            PERFORM @.apply_verdict(j, kinds[i], keep_for[i], contents[i], errors[i], afters[i], now_at, causes[i]);
            answers[i] := true;
            IF i = ANY (followed) THEN
                PERFORM @.add_jobs(now_at, @sent{array_agg(f.%n ORDER BY f.n)})
                FROM unnest(followed, @sent{f_%n}) WITH ORDINALITY AS f (of, @sent{%n}, n)
                WHERE f.of = i;
            END IF;
        ELSE
            answers[i] := CASE WHEN j.settled = @.committed_fence(fence) THEN NULL ELSE j.settled IS NOT DISTINCT FROM fence END;
        END IF;
    END LOOP;
    wakeups := @.wakeups();
END
$$;

-- Locks jobs that are to be settled, with what their ends change, and the keys of follow-ups.
CREATE FUNCTION @.lock_settled(ids bytea[], following bytea[]) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    keys bytea[];
    leaders bytea[];
BEGIN
    SELECT array_agg(key) FILTER (WHERE key IS NOT NULL), array_agg(joins) FILTER (WHERE joins IS NOT NULL) INTO keys, leaders
    FROM @.jobs WHERE id = ANY (ids);
    PERFORM @.lock_keys(keys || following);
    PERFORM 1 FROM @.jobs WHERE id = ANY (ids || ARRAY(
        SELECT DISTINCT substr(joined, 16 * i + 1, 16) FROM unnest(leaders) AS joined, generate_series(0, length(joined) / 16 - 1) AS i
    )) ORDER BY id FOR UPDATE;
END
$$;

CREATE FUNCTION @.fence_of(j @.jobs) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT int4send(j.epoch) || j.session || int8send(j.request) || int4send(j.number)
$$;

-- Returns what settle_within() keeps in `settled` in place of the fence.
CREATE FUNCTION @.committed_fence(fence bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT fence || decode('01', 'hex')
$$;

CREATE FUNCTION @.apply_verdict(
    j @.jobs, kind integer, keep_for bigint, content bytea, error bytea, after bigint, now_at bigint, cause bytea DEFAULT NULL
) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF kind < 7 AND j.is_poison IS NOT TRUE THEN
        SELECT @outcome{%d} INTO @outcome{j.%n};
    END IF;
    IF error IS NOT NULL THEN
        j.failures := least(j.failures + 1, P.MOST_COUNTED);
        j.errors := @.append_error(j, error, now_at);
    END IF;
    CASE kind
        WHEN 1 THEN
            j.result := content;
            j.payload := NULL;
            PERFORM @.finish(j, E.SUCCEED, S.SUCCEEDED, NULL, now_at, keep_for);
        WHEN 2 THEN
            j.cause := coalesce(cause, P.UNKNOWN);
            PERFORM @.finish(j, E.FAIL, S.FAILED, content, now_at);
        WHEN 3 THEN
            j.cause := coalesce(cause, P.UNKNOWN);
            PERFORM @.finish(j, E.DISCARD, S.FAILED, content, now_at);
        WHEN 4 THEN
            PERFORM @.finish(j, E.CANCEL, S.CANCELLED, content, now_at);
        WHEN 5 THEN
            PERFORM @.requeue(j, E.RETRY, now_at, now_at + after);
        WHEN 6 THEN
            j.snoozes := least(j.snoozes + 1, P.MOST_COUNTED);
            PERFORM @.requeue(j, E.SNOOZE, now_at, now_at + after);
        WHEN 7 THEN
            j.parked_at := coalesce(j.parked_at, now_at);
            j.waiting_for := content;
            PERFORM @.requeue(j, E.PARK, now_at, now_at + after);
        WHEN 8 THEN
            PERFORM @.hand_back(j, content IS NOT NULL, now_at);
    END CASE;
END
$$;

-- Returns the ids of those jobs, or of those whose follow-ups have these keys, that another transaction has locked at this moment.
CREATE FUNCTION @.held_up(ids bytea[], following bytea[], keys bytea[]) RETURNS SETOF bytea LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
    RETURN QUERY
    SELECT jobs.id FROM @.jobs WHERE jobs.id = ANY (ids) AND NOT @.try_lock_job(jobs.id)
    UNION
    SELECT each.id FROM unnest(following, keys) AS each (id, key) WHERE NOT @.try_lock(@.key_lock(each.key));
END
$$;

CREATE FUNCTION @.cancel(wall bigint, ids bytea[], OUT statuses integer[], OUT wakeups text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    j @.jobs;
BEGIN
    PERFORM @.lock_jobs(ids);
    FOR i IN 1 .. cardinality(ids) LOOP
        SELECT * INTO j FROM @.jobs WHERE id = ids[i] AND status < S.BURIED AND (ended_at IS NULL OR fade_at > now_at);
        statuses[i] := coalesce(j.status, -1);
        IF statuses[i] BETWEEN S.HELD AND S.READY THEN
            @lighten(j);
            PERFORM @.finish(j, E.CANCEL, S.CANCELLED, @.utf8(W.CANCELLED), now_at);
        ELSIF statuses[i] = S.RUNNING THEN
            UPDATE @.jobs SET cancel_requested = W.CANCELLED WHERE id = j.id;
            PERFORM @.add_wakeup('session:' || encode(j.session, 'hex'));
        END IF;
    END LOOP;
    wakeups := @.wakeups();
END
$$;

-- Returns, for each key, the id of the live job that has it: the waiting one, else the running one, else NULL.
CREATE FUNCTION @.holders(keys bytea[], OUT ids bytea[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
    ids := '{}';
    FOR i IN 1 .. cardinality(keys) LOOP
        ids[i] := coalesce(
            (SELECT id FROM @.jobs WHERE key = keys[i] AND status < S.RUNNING),
            (SELECT id FROM @.jobs WHERE key = keys[i] AND status = S.RUNNING)
        );
    END LOOP;
END
$$;

CREATE FUNCTION @.read(wall bigint, ids bytea[]) RETURNS SETOF @.jobs
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
    now_at bigint := @.wall(wall);
BEGIN
    RETURN QUERY SELECT * FROM @.jobs WHERE id = ANY (ids) AND status < S.BURIED AND (ended_at IS NULL OR fade_at > now_at);
END
$$;
