-- Describes each queue: name, whether it is paused, counts by status, due times of the oldest ready and of the next scheduled job.
CREATE FUNCTION @.queues(wall bigint DEFAULT NULL)
RETURNS TABLE (name text, is_paused boolean, counts bigint[], ready_since bigint, next_due bigint) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
BEGIN
    RETURN QUERY
    WITH noted AS MATERIALIZED (
        SELECT queue, what, n FROM @.counted
    ), counted AS MATERIALIZED (
        SELECT queue, what, n FROM noted WHERE NOT EXISTS (SELECT 1 FROM noted WHERE n < 0)
        UNION ALL -- another program has changed the counted rows
        SELECT queue, '=' || status, count(*) FROM @.jobs WHERE status < S.GONE AND EXISTS (SELECT 1 FROM noted WHERE n < 0) GROUP BY queue, status
        UNION ALL
        SELECT queue, '=', 0 FROM @.paused
    ), numbers AS (
        SELECT queue, code, coalesce(sum(n) FILTER (WHERE what = '=' || code), 0)::bigint AS n
        FROM counted CROSS JOIN generate_series(S.HELD, S.CANCELLED) AS code GROUP BY queue, code
    ), next AS MATERIALIZED ( -- jobs_due lacks queues: one scan for all is best, unless only one queue has scheduled jobs
        SELECT queue, min(due_at) AS due_at FROM @.jobs WHERE status = S.SCHEDULED GROUP BY queue
    )
    SELECT queue, EXISTS (SELECT 1 FROM @.paused WHERE paused.queue = numbers.queue), array_agg(n ORDER BY code),
        (SELECT min(@.first_ready(m)) FROM @.ready_marks(@.wall(wall), numbers.queue) AS m),
        CASE
            WHEN sum(n) FILTER (WHERE code = S.SCHEDULED) = 0 THEN NULL
            WHEN (SELECT count(*) FROM numbers WHERE code = S.SCHEDULED AND n > 0) = 1
                THEN (SELECT due_at FROM @.jobs WHERE status = S.SCHEDULED ORDER BY due_at, seq, id LIMIT 1)
            ELSE (SELECT due_at FROM next WHERE next.queue = numbers.queue)
        END
    FROM numbers GROUP BY queue;
END
$$;

CREATE FUNCTION @.matches(
    j @.jobs, now_at bigint, of_queue text, of_job text, statuses integer[], ended_before bigint, only_poison boolean
) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT j.status < S.GONE AND (j.ended_at IS NULL OR j.fade_at > now_at)
        AND (of_queue IS NULL OR j.queue = of_queue)
        AND (of_job IS NULL OR j.job = of_job)
        AND (statuses IS NULL OR j.status = ANY (statuses))
        AND (ended_before IS NULL OR j.ended_at <= now_at - ended_before)
        AND (NOT only_poison OR j.is_poison)
$$;

CREATE FUNCTION @.browse(
    wall bigint, of_queue text, of_job text, statuses integer[], ended_before bigint, only_poison boolean, before_id bytea, most integer
) RETURNS SETOF @.jobs LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall); -- a variable, so that matches() is inlined into the statement and not called for each row
BEGIN
    RETURN QUERY SELECT * FROM @.jobs
    WHERE (before_id IS NULL OR id < before_id)
        AND @.matches(jobs, now_at, of_queue, of_job, statuses, ended_before, only_poison)
    ORDER BY id DESC LIMIT most;
END
$$;

CREATE FUNCTION @.purge(
    wall bigint, of_queue text, of_job text, statuses integer[], ended_before bigint, only_poison boolean, most integer,
    OUT purged integer, OUT wakeups text
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    ids bytea[];
    j @.jobs;
    each bytea;
BEGIN
    purged := 0;
    SELECT array_agg(id ORDER BY seq) INTO ids FROM (
        SELECT id, seq FROM @.jobs
        WHERE status <> S.RUNNING AND @.matches(jobs, now_at, of_queue, of_job, statuses, ended_before, only_poison)
        ORDER BY seq LIMIT most
    ) AS chosen;
    PERFORM @.lock_jobs(ids);
    FOREACH each IN ARRAY ARRAY( -- jobs that depend on another, or on which another depends
        SELECT id FROM @.jobs
        WHERE id = ANY (ids) AND status < S.RUNNING AND (key IS NOT NULL OR joins IS NOT NULL OR status = S.HELD) ORDER BY seq
    ) LOOP
        SELECT * INTO j FROM @.jobs WHERE id = each AND status < S.RUNNING;
        IF FOUND THEN
            PERFORM @.finish(j, E.CANCEL, S.CANCELLED, @.utf8(W.PURGED), now_at);
        END IF;
    END LOOP;
    purged := @.bury(ids, now_at);
    wakeups := @.wakeups();
END
$$;

-- Drops everything except ids and fences of ended jobs, and of waiting jobs on which no other depends. Returns how many.
CREATE FUNCTION @.bury(ids bytea[], now_at bigint) RETURNS integer LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    buried integer;
    first_fade bigint;
    topics text[];
BEGIN
    WITH gone AS (
        UPDATE @.jobs SET
            status = S.GONE, @drop{%n = %d},
            ended_at = coalesce(jobs.ended_at, now_at), fade_at = coalesce(jobs.ended_at, now_at) + R.repeat_for
        FROM @.jobs AS before
        WHERE jobs.id = ANY (ids) AND before.id = jobs.id
            AND (jobs.status BETWEEN S.SUCCEEDED AND S.CANCELLED OR jobs.status < S.RUNNING AND jobs.key IS NULL AND jobs.joins IS NULL)
        RETURNING jobs.id, jobs.queue, jobs.fade_at, before.status
    ), counted AS (
        INSERT INTO @.tally (queue, event, before, after, n)
        SELECT queue, E.CANCEL, status, S.CANCELLED, count(*) FROM gone WHERE status < S.RUNNING GROUP BY queue, status
        UNION ALL
        SELECT queue, E.DROP, CASE WHEN status < S.RUNNING THEN S.CANCELLED ELSE status END, NULL, count(*) FROM gone GROUP BY 1, 3
    )
    SELECT count(*), min(fade_at), array_agg('job:' || encode(id, 'hex')) FILTER (WHERE status < S.RUNNING) INTO buried, first_fade, topics FROM gone;
    IF buried > 0 THEN
        PERFORM @.lower_mark('fade', '', 0, first_fade, 0, now_at);
        IF cardinality(topics) > 100 THEN
            PERFORM set_config('taskflow.wakeups', '*', true);
        ELSE
            PERFORM @.add_wakeup(topic) FROM unnest(topics) AS topic;
        END IF;
    END IF;
    RETURN buried;
END
$$;

-- Retries ended jobs for an operator. Returns the name of a member of Redone (console.py) for each.
CREATE FUNCTION @.redo(wall bigint, ids bytea[], OUT answers text[], OUT wakeups text) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    j @.jobs;
BEGIN
    PERFORM @.lock_jobs(ids);
    FOR i IN 1 .. cardinality(ids) LOOP
        SELECT * INTO j FROM @.jobs WHERE id = ids[i] AND status < S.GONE AND (ended_at IS NULL OR fade_at > now_at);
        IF NOT FOUND THEN
            answers[i] := 'UNKNOWN';
        ELSIF j.ended_at IS NULL THEN
            answers[i] := 'LIVE';
        ELSIF j.status = S.SUCCEEDED THEN
            answers[i] := 'SUCCEEDED';
        ELSIF j.key IS NOT NULL AND EXISTS (SELECT 1 FROM @.jobs WHERE key = j.key AND status <= S.RUNNING) THEN
            answers[i] := 'KEY_TAKEN';
        ELSE
            j.due_at := now_at;
            SELECT @redo{%d} INTO @redo{j.%n};
            PERFORM @.enter(j, E.REDO, now_at);
            answers[i] := 'OK';
        END IF;
    END LOOP;
    wakeups := @.wakeups();
END
$$;

CREATE FUNCTION @.pause(of_queue text) RETURNS void LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO @.paused (queue) VALUES (of_queue) ON CONFLICT DO NOTHING
$$;

-- Announces so many jobs as may be of interest.
CREATE FUNCTION @.resume(of_queue text, OUT wakeups text) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
    DELETE FROM @.paused WHERE queue = of_queue;
    PERFORM @.add_wakeup('queue:' || of_queue, ready.number)
    FROM (SELECT count(*) AS number FROM (SELECT FROM @.jobs WHERE status = S.READY AND queue = of_queue LIMIT 1000) AS first) AS ready;
    wakeups := @.wakeups();
END
$$;

CREATE FUNCTION @.events() RETURNS TABLE (queue text, what text, n bigint) LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT queue, what, n FROM @.counted WHERE what NOT LIKE '=%'
$$;

CREATE FUNCTION @.server_info() RETURNS TABLE (version text, fsync text, full_page_writes text, synchronous_commit text, size bigint)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT current_setting('server_version'), current_setting('fsync'), current_setting('full_page_writes'),
        current_setting('synchronous_commit'), pg_total_relation_size('@.jobs'::regclass)
$$;
