-- Describes each queue: name, whether it is paused, counts by status, due times of the oldest ready and of the next scheduled job.
CREATE FUNCTION @.queues(wall bigint DEFAULT NULL)
RETURNS TABLE (name text, is_paused boolean, counts bigint[], ready_since bigint, next_due bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
BEGIN
    RETURN QUERY
    WITH noted AS MATERIALIZED (
        SELECT queue, what, n FROM @.counted
    ), counted AS MATERIALIZED (
        SELECT queue, what, n FROM noted WHERE NOT EXISTS (SELECT 1 FROM noted WHERE n < 0)
        UNION ALL -- another program has changed the counted rows
        SELECT queue, '=' || status, count(*) FROM @.jobs WHERE status < S.BURIED AND EXISTS (SELECT 1 FROM noted WHERE n < 0) GROUP BY queue, status
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
    SELECT j.status < S.BURIED AND (j.ended_at IS NULL OR j.fade_at > now_at)
        AND (of_queue IS NULL OR j.queue = of_queue)
        AND (of_job IS NULL OR j.job = of_job)
        AND (statuses IS NULL OR j.status = ANY (statuses))
        AND (ended_before IS NULL OR j.ended_at <= now_at - ended_before)
        AND (NOT only_poison OR (j.is_poison AND j.status = S.FAILED))
$$;

-- Reads an index of jobs from a place on, and returns those that match. It stops after `most_listed` of these, or after it has read
-- `most_read`, or four of which something is so long that reading them takes time. The last row has the last job that was read, whether it matches or not, or no job if there are no more. Exactly one of
-- `of_status` and `of_tag` is given.
--
-- The place is that of a job that was read before, see paging.py: `after_queue` for READY, `after_id` for a session or, with a tag, a job,
-- and `after` for numbers. NULL stands for the beginning.
CREATE FUNCTION @.page(
    wall bigint, of_queue text, of_job text, statuses integer[], ended_before bigint, only_poison boolean, of_status integer, of_tag text,
    after_queue text, after_id bytea, after bigint[], most_listed integer, most_read integer
) RETURNS TABLE (now_at bigint, examined integer, is_listed boolean, job @.jobs, unreadable text) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    place @.marks;
    jobs_in_order refcursor;
    listed integer := 0;
    too_long integer := 0;
    due @.marks;
BEGIN
    now_at := @.wall(wall);
    examined := 0;
    FOR place IN
        SELECT * FROM @.ready_marks(now_at, of_queue) WHERE of_status = S.READY AND (after_queue IS NULL OR (queue, rank) >= (after_queue, -after[1]))
        UNION ALL
        SELECT NULL, '', 0, 0, 0, 0, 0 WHERE of_status IS DISTINCT FROM S.READY
        ORDER BY queue, rank
    LOOP
        IF of_tag IS NOT NULL THEN
            -- OFFSET 0: each job is looked up by its id. Otherwise the planner may read all jobs of the status instead, for each id.
            OPEN jobs_in_order FOR SELECT each.* FROM @.tags CROSS JOIN LATERAL (SELECT * FROM @.jobs WHERE jobs.id = tags.id OFFSET 0) AS each
                WHERE tags.tag = of_tag AND (after_id IS NULL OR tags.id < after_id) ORDER BY tags.id DESC LIMIT most_read;
        ELSIF of_status = S.HELD THEN
            OPEN jobs_in_order FOR SELECT * FROM @.jobs WHERE status = S.HELD AND seq > coalesce(after[1], 0) ORDER BY seq LIMIT most_read;
        ELSIF of_status = S.SCHEDULED THEN
            due := @.newest_mark('due', '', 0, now_at);
            OPEN jobs_in_order FOR SELECT * FROM @.jobs
                WHERE status = S.SCHEDULED AND due_at >= due.at AND (due_at, seq) > (coalesce(after[1], 0), coalesce(after[2], 0))
                ORDER BY due_at, seq LIMIT most_read;
        ELSIF of_status = S.READY THEN
            IF (place.queue, place.rank) = (after_queue, -after[1]) AND (after[2], after[3]) >= (place.at, place.seq) THEN
                place.at := after[2];
                place.seq := least(after[3], 9223372036854775806) + 1;
            END IF;
            OPEN jobs_in_order FOR SELECT * FROM @.jobs
                WHERE status = S.READY AND queue = place.queue AND priority = -place.rank AND (due_at, seq) >= (place.at, place.seq)
                ORDER BY due_at, seq LIMIT most_read - examined;
        ELSIF of_status = S.RUNNING THEN
            OPEN jobs_in_order FOR SELECT * FROM @.jobs
                WHERE status = S.RUNNING AND (session, request, number) > (coalesce(after_id, ''), coalesce(after[1], 0), coalesce(after[2], 0))
                ORDER BY session, request, number LIMIT most_read;
        ELSE
            jobs_in_order := @.newest_ends(of_status, of_queue, coalesce(after[1], P.LATEST), coalesce(after[2], 0), CASE
                WHEN of_job IS NULL AND ended_before IS NULL AND NOT only_poison THEN most_listed ELSE most_read
            END);
        END IF;
        LOOP
            FETCH jobs_in_order INTO job;
            EXIT WHEN NOT FOUND;
            examined := examined + 1;
            is_listed := @.matches(job, now_at, of_queue, of_job, statuses, ended_before, only_poison);
            listed := listed + is_listed::integer;
            unreadable := concat_ws(E'\n', @sized{CASE WHEN octet_length(job.%n) > P.MOST_BYTES THEN concat(E'%n\t', octet_length(job.%n), ' bytes') END});
            too_long := too_long + (unreadable <> '')::integer;
            IF is_listed OR examined = most_read OR too_long = 4 THEN -- a record has its values in it: leave out those that are too long
                SELECT @sized{CASE WHEN octet_length(job.%n) <= P.MOST_BYTES THEN job.%n END} INTO @sized{job.%n};
                RETURN NEXT;
            END IF;
            IF listed = most_listed OR examined = most_read OR too_long = 4 THEN
                RETURN;
            END IF;
        END LOOP;
        CLOSE jobs_in_order;
    END LOOP;
    job := NULL;
    unreadable := NULL;
    is_listed := false;
    RETURN NEXT;
END
$$;

-- Opens a cursor for jobs that have ended before a place, the newest end first, of one queue or of all. The index of each status has an
-- order for each queue, and the queues are found in it one by one.
CREATE FUNCTION @.newest_ends(of_status integer, of_queue text, before_at bigint, before_seq bigint, most integer) RETURNS refcursor
LANGUAGE plpgsql AS $$
DECLARE
    ends refcursor;
BEGIN
    OPEN ends FOR EXECUTE format($query$
        WITH RECURSIVE name AS (
            SELECT coalesce($1, (SELECT queue FROM @.jobs WHERE status = %1$s ORDER BY queue LIMIT 1)) AS queue
            UNION ALL
            SELECT (SELECT queue FROM @.jobs WHERE status = %1$s AND jobs.queue > name.queue ORDER BY queue LIMIT 1)
            FROM name WHERE $1 IS NULL AND name.queue IS NOT NULL
        )
        SELECT each.* FROM name CROSS JOIN LATERAL (
            SELECT * FROM @.jobs WHERE status = %1$s AND queue = name.queue AND (ended_at, seq) < ($2, $3)
            ORDER BY ended_at DESC, seq DESC LIMIT $4
        ) AS each ORDER BY ended_at DESC, seq DESC LIMIT $4
    $query$, of_status) USING of_queue, before_at, before_seq, most;
    RETURN ends;
END
$$;

-- Counts the failed jobs by cause and name, for the `most` fingerprints with the most jobs: the number, the first and the last time at
-- which one ended, and the id of the last one. NULL as a queue or name means any.
CREATE FUNCTION @.failure_parts(of_queue text, of_job text, most integer)
RETURNS TABLE (cause bytea, job text, n bigint, first_at bigint, last_at bigint, last_id bytea) LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH part AS MATERIALIZED (
        SELECT cause, job, count(*) AS n, substr(cause, 1, 8) AS fingerprint
        FROM @.jobs WHERE status = S.FAILED AND (of_queue IS NULL OR queue = of_queue) AND (of_job IS NULL OR job = of_job)
        GROUP BY cause, job
    ), largest AS MATERIALIZED (
        SELECT fingerprint FROM part GROUP BY fingerprint ORDER BY sum(n) DESC, fingerprint LIMIT most
    )
    SELECT part.cause::bytea, part.job::text, part.n, first.ended_at::bigint, last.ended_at::bigint, last.id::bytea
    FROM largest JOIN part ON part.fingerprint = largest.fingerprint
    CROSS JOIN LATERAL (
        SELECT ended_at FROM @.jobs
        WHERE status = S.FAILED AND cause = part.cause AND job = part.job AND (of_queue IS NULL OR queue = of_queue)
        ORDER BY ended_at LIMIT 1
    ) AS first
    CROSS JOIN LATERAL (
        SELECT ended_at, id FROM @.jobs
        WHERE status = S.FAILED AND cause = part.cause AND job = part.job AND (of_queue IS NULL OR queue = of_queue)
        ORDER BY ended_at DESC LIMIT 1
    ) AS last;
END
$$;

-- Returns the ids of the failed jobs with this fingerprint. `above` is greater than each cause that begins with it.
CREATE FUNCTION @.failed_ids(fingerprint bytea, above bytea) RETURNS SETOF bytea LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET enable_seqscan = off SET jit = off AS $$
BEGIN
    RETURN QUERY SELECT id::bytea FROM @.jobs WHERE status = S.FAILED AND cause >= fingerprint AND cause < above;
END
$$;

CREATE FUNCTION @.purge(
    wall bigint, of_queue text, of_job text, statuses integer[], ended_before bigint, only_poison boolean, most integer, of_tag text DEFAULT NULL,
    OUT purged integer, OUT wakeups text
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    ids bytea[];
    j @.jobs;
    each bytea;
    has_end_subscriber CONSTANT boolean := @.has_end_subscriber();
    finished bytea[] := '{}';
BEGIN
    purged := 0;
    IF of_tag IS NULL THEN
        SELECT array_agg(id ORDER BY seq) INTO ids FROM (
            SELECT id, seq FROM @.jobs
            WHERE status <> S.RUNNING AND @.matches(jobs, now_at, of_queue, of_job, statuses, ended_before, only_poison)
            ORDER BY seq LIMIT most
        ) AS chosen;
    ELSE
        statuses := array_remove(coalesce(statuses, ARRAY(SELECT generate_series(S.HELD, S.CANCELLED))), S.RUNNING);
        ids := ARRAY(SELECT each.id FROM @.tags CROSS JOIN LATERAL (SELECT * FROM @.jobs WHERE jobs.id = tags.id OFFSET 0) AS each
            WHERE tags.tag = of_tag AND @.matches(ROW(each.*)::@.jobs, now_at, of_queue, of_job, statuses, ended_before, only_poison)
            ORDER BY tags.id DESC LIMIT most);
    END IF;
    PERFORM @.lock_jobs(ids);
    FOREACH each IN ARRAY ARRAY( -- jobs that depend on another, or on which another depends, or to whose end a worker subscribes
        SELECT id FROM @.jobs
        WHERE id = ANY (ids) AND status < S.RUNNING AND (has_end_subscriber OR key IS NOT NULL OR joins IS NOT NULL OR status = S.HELD) ORDER BY seq
    ) LOOP
        SELECT * INTO j FROM @.jobs WHERE id = each AND status < S.RUNNING;
        IF FOUND THEN
            @lighten(j);
            PERFORM @.finish(j, E.CANCEL, S.CANCELLED, @.utf8(W.PURGED), now_at, R.purged_for);
            IF has_end_subscriber THEN
                finished := finished || each;
            END IF;
        END IF;
    END LOOP;
    purged := cardinality(finished) + @.bury(ARRAY(SELECT id FROM unnest(ids) AS id WHERE id <> ALL (finished)), now_at);
    wakeups := @.wakeups();
END
$$;

-- Drops ended jobs. Returns the status that each job had, -1 for an unknown id.
CREATE FUNCTION @.drop(wall bigint, ids bytea[], OUT statuses integer[], OUT wakeups text) LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
BEGIN
    PERFORM @.lock_jobs(ids);
    statuses := ARRAY(
        SELECT coalesce(status, -1) FROM unnest(ids) WITH ORDINALITY AS each (id, n)
        LEFT JOIN @.jobs ON jobs.id = each.id AND status < S.BURIED AND (ended_at IS NULL OR fade_at > now_at)
        ORDER BY n
    );
    PERFORM @.bury(ARRAY(SELECT ids[n] FROM generate_subscripts(ids, 1) AS n WHERE statuses[n] BETWEEN S.SUCCEEDED AND S.CANCELLED), now_at);
    wakeups := @.wakeups();
END
$$;

-- Retries ended jobs for an operator. Returns the name of a member of Redone (console.py) for each.
CREATE FUNCTION @.redo(wall bigint, ids bytea[], OUT answers text[], OUT wakeups text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    j @.jobs;
BEGIN
    PERFORM @.lock_jobs(ids);
    FOR i IN 1 .. cardinality(ids) LOOP
        SELECT * INTO j FROM @.jobs WHERE id = ids[i] AND status < S.BURIED AND (ended_at IS NULL OR fade_at > now_at);
        IF NOT FOUND THEN
            answers[i] := 'UNKNOWN';
        ELSIF j.ended_at IS NULL THEN
            answers[i] := 'LIVE';
        ELSIF j.status = S.SUCCEEDED THEN
            answers[i] := 'SUCCEEDED';
        ELSIF j.key IS NOT NULL AND EXISTS (SELECT 1 FROM @.jobs WHERE key = j.key AND status <= S.RUNNING) THEN
            answers[i] := 'KEY_TAKEN';
        ELSE
            @lighten(j);
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
CREATE FUNCTION @.resume(of_queue text, OUT wakeups text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
    DELETE FROM @.paused WHERE queue = of_queue;
    PERFORM @.add_wakeup('queue:' || of_queue, ready.number)
    FROM (SELECT count(*) AS number FROM (SELECT FROM @.jobs WHERE status = S.READY AND queue = of_queue LIMIT 1000) AS first) AS ready;
    wakeups := @.wakeups();
END
$$;

CREATE FUNCTION @.metrics() RETURNS TABLE (queue text, what text, n bigint) LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT queue, what, n FROM @.counted WHERE what NOT LIKE '=%'
$$;

-- Adds an act of an operator to the audit log, unless it is there already.
CREATE FUNCTION @.record_act(wall bigint, act_id bytea, act_body bytea) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO @.acts (id, at, body) VALUES (act_id, @.wall(wall), act_body) ON CONFLICT (id) DO NOTHING;
    DELETE FROM @.acts WHERE number <= (SELECT number FROM @.acts ORDER BY number DESC OFFSET R.most_acts LIMIT 1)
$$;

CREATE FUNCTION @.acts(before_number bigint, most integer) RETURNS TABLE (number bigint, at bigint, body bytea)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT number, at, body FROM @.acts WHERE before_number IS NULL OR number < before_number ORDER BY number DESC LIMIT most
$$;

CREATE FUNCTION @.server_info() RETURNS TABLE (version text, fsync text, full_page_writes text, synchronous_commit text, size bigint)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT current_setting('server_version'), current_setting('fsync'), current_setting('full_page_writes'),
        current_setting('synchronous_commit'), pg_total_relation_size('@.jobs'::regclass)
$$;
