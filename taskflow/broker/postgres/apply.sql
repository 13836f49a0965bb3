-- Applies steps: see taskflow/broker/engine/seam.py. The columns `j_` are puts of jobs, and `x_` are jobs that are expected or dropped.
-- `k_` are keys that are expected (0), put (1) or dropped (2). `a_` are additions. `t_` are counts of events, each with the steps that
-- count it, as bits. `others` contains the changes of other kinds of records, by table. `old` is the revision that a step expects, or NULL
-- if the record must not exist. `ended` lists the jobs that end.
--
-- All records of a kind are locked in the same order before the first is checked, so that no two calls wait for each other. Each statement
-- takes a new snapshot, so a check sees what was committed while this call waited for a lock. Records are looked up one by one, in
-- subqueries that the planner cannot turn into joins: a join planned for an empty table would scan a full one.
CREATE FUNCTION @.apply(
    @PUT_JOBS_ARGUMENTS,
    x_step integer[], x_id bytea[], x_old bigint[], x_drops boolean[],
    k_step integer[], k_id bytea[], k_old bigint[], k_holder bytea[], k_next bytea[], k_does smallint[],
    a_step integer[], a_id bytea[], a_n bigint[], a_most bigint[],
    t_queue text[], t_event text[], t_n bigint[], t_steps bytea[],
    others jsonb, entries jsonb, ended bytea[], capacity bigint, new_rev bigint, wall bigint,
    OUT stale integer[], OUT past integer[], OUT unplaced integer[], OUT are_awaited boolean, OUT wakeups text
) LANGUAGE plpgsql @SETTINGS SET lock_timeout = '300ms' AS $$
#variable_conflict use_column
DECLARE
    now_at bigint;
    bad integer[] := '{}';
    all_ids bytea[] := j_id || x_id || a_id;
    new_in integer[];
    room bigint;
    place record;
    first_due bigint;
BEGIN
    IF cardinality(k_id) > 0 THEN
        PERFORM 1 FROM @.keys WHERE id = ANY (k_id) ORDER BY id FOR UPDATE;
        bad := ARRAY(
            SELECT k.step FROM unnest(k_step, k_id, k_old) AS k (step, id, old)
            WHERE (SELECT rev FROM @.keys WHERE keys.id = k.id) IS DISTINCT FROM k.old
        );
    END IF;
    IF cardinality(all_ids) > 0 THEN
        PERFORM 1 FROM @.jobs WHERE id = ANY (all_ids) ORDER BY id FOR UPDATE;
        bad := bad || ARRAY(
            SELECT g.step FROM unnest(j_step || x_step, j_id || x_id, j_old || x_old) AS g (step, id, old)
            WHERE (SELECT rev FROM @.jobs WHERE jobs.id = g.id) IS DISTINCT FROM g.old
        );
    END IF;
    IF others IS NOT NULL THEN
@CHECK_OTHERS
    END IF;
    now_at := @.wall(wall);
    IF cardinality(bad) > 0 THEN
        stale := bad;
    END IF;
    IF capacity IS NOT NULL THEN
        new_in := ARRAY(SELECT g.step FROM unnest(j_step, j_old) AS g (step, old) WHERE g.old IS NULL AND g.step <> ALL (bad));
        room := nullif(least(@.room(capacity), cardinality(new_in)), cardinality(new_in)); -- NULL if there is room for all
    END IF;
    IF num_nonnulls(VARIADIC a_most) > 0 OR room IS NOT NULL THEN
        SELECT b.past, b.unplaced INTO past, unplaced FROM @.past_bounds(a_step, a_id, a_n, a_most, new_in, room, bad) AS b;
        bad := bad || past || unplaced;
    END IF;
    IF 2 = ANY (k_does) THEN
        DELETE FROM @.keys WHERE id = ANY (ARRAY(
            SELECT k.id FROM unnest(k_step, k_id, k_does) AS k (step, id, does) WHERE does = 2 AND k.step <> ALL (bad)
        ));
    END IF;
    IF 1 = ANY (k_does) AND num_nonnulls(VARIADIC k_old) > 0 THEN
        UPDATE @.keys AS r SET rev = new_rev, holder = k.holder, next = k.next
        FROM unnest(k_step, k_id, k_old, k_holder, k_next, k_does) AS k (step, id, old, holder, next, does)
            CROSS JOIN LATERAL (SELECT ctid AS tid FROM @.keys WHERE keys.id = k.id OFFSET 0) AS o
        WHERE r.ctid = o.tid AND k.does = 1 AND k.old IS NOT NULL AND k.step <> ALL (bad);
    END IF;
    IF 1 = ANY (k_does) AND array_position(k_old, NULL) IS NOT NULL THEN
        INSERT INTO @.keys (id, rev, holder, next) SELECT k.id, new_rev, k.holder, k.next
        FROM unnest(k_step, k_id, k_old, k_holder, k_next, k_does) AS k (step, id, old, holder, next, does)
        WHERE k.does = 1 AND k.old IS NULL AND k.step <> ALL (bad) ORDER BY k.id;
    END IF;
    IF array_position(j_old, NULL) IS NOT NULL THEN
        FOR place IN
            WITH made AS (
                @INSERT_JOBS RETURNING queue, priority, status, flags, awaits, due_at, fade_at
            ), counted AS (
                INSERT INTO @.tally (queue, after, n) SELECT queue, nullif(status, S.BURIED), count(*) FROM made GROUP BY queue, status
            )
            SELECT queue, priority, status, count(*) AS number, min(due_at) AS due_at, min(fade_at) AS fade_at
            FROM made WHERE status > S.HELD OR awaits <= 0 AND flags & @BEHIND = 0 GROUP BY queue, priority, status
        LOOP
            PERFORM @.record_place(place.queue, place.priority, place.status, place.number, place.due_at, place.fade_at, now_at);
        END LOOP;
    END IF;
    IF num_nonnulls(VARIADIC j_old) > 0 THEN
        FOR place IN
            WITH made AS (
                @UPDATE_JOBS
                RETURNING o.queue AS former_queue, r.queue, r.priority, o.status AS former, r.status, r.flags, r.awaits, r.due_at, r.fade_at
            ), counted AS (
                INSERT INTO @.tally (queue, before, after, n)
                SELECT queue, CASE WHEN queue = former_queue THEN nullif(former, S.BURIED) END, nullif(status, S.BURIED), count(*)
                FROM made WHERE former <> status OR queue <> former_queue GROUP BY 1, 2, 3
            ), counted_elsewhere AS (
                INSERT INTO @.tally (queue, before, n)
                SELECT former_queue, nullif(former, S.BURIED), count(*) FROM made WHERE queue <> former_queue GROUP BY 1, 2
            )
            SELECT queue, priority, status, count(*) FILTER (WHERE former <> status) AS number, min(due_at) AS due_at,
                min(fade_at) AS fade_at
            FROM made WHERE status > S.HELD OR awaits <= 0 AND flags & @BEHIND = 0 GROUP BY queue, priority, status
        LOOP
            PERFORM @.record_place(place.queue, place.priority, place.status, place.number, place.due_at, place.fade_at, now_at);
        END LOOP;
    END IF;
    IF true = ANY (x_drops) THEN
        WITH gone AS (
            DELETE FROM @.jobs WHERE id = ANY (ARRAY(
                SELECT x.id FROM unnest(x_step, x_id, x_drops) AS x (step, id, drops) WHERE x.drops AND x.step <> ALL (bad)
            )) RETURNING id, queue, status
        ), counted AS (
            INSERT INTO @.tally (queue, before, n) SELECT queue, nullif(status, S.BURIED), count(*) FROM gone GROUP BY queue, status
        )
        DELETE FROM @.tags WHERE id = ANY (ARRAY(SELECT id FROM gone));
    END IF;
    IF others IS NOT NULL THEN
@CHANGE_OTHERS
    END IF;
    IF entries IS NOT NULL THEN
        PERFORM @.replace_entries(entries, bad);
    END IF;
    IF cardinality(a_id) > 0 THEN
        WITH added AS (
            UPDATE @.jobs AS r SET awaits = greatest(-P.LATEST, least(P.LATEST, r.awaits + g.n))
            FROM (SELECT a.id, sum(a.n) AS n FROM unnest(a_step, a_id, a_n) AS a (step, id, n) WHERE a.step <> ALL (bad) GROUP BY a.id) AS g
                CROSS JOIN LATERAL (SELECT ctid AS tid FROM @.jobs WHERE jobs.id = g.id OFFSET 0) AS o
            WHERE r.ctid = o.tid
            RETURNING r.due_at, r.awaits, r.flags, r.status
        )
        SELECT min(due_at) INTO first_due FROM added WHERE status = S.HELD AND awaits <= 0 AND flags & @BEHIND = 0;
        PERFORM @.lower_mark('due', '', 0, first_due, now_at) WHERE first_due IS NOT NULL;
    END IF;
    IF cardinality(t_n) > 0 THEN
        INSERT INTO @.tally (queue, event, n)
        SELECT t.queue, t.event, sum(t.n * (bit_count(t.steps) - (SELECT count(*) FROM (SELECT DISTINCT unnest(bad) AS step) AS b WHERE get_bit(t.steps, b.step) = 1)))
        FROM unnest(t_queue, t_event, t_n, t_steps) AS t (queue, event, n, steps) GROUP BY t.queue, t.event
        HAVING sum(t.n * (bit_count(t.steps) - (SELECT count(*) FROM (SELECT DISTINCT unnest(bad) AS step) AS b WHERE get_bit(t.steps, b.step) = 1))) > 0;
    END IF;
    are_awaited := cardinality(ended) > 0 AND EXISTS (SELECT 1 FROM @.awaited WHERE id = ANY (ended));
    wakeups := @.wakeups();
END
$$;

-- Records that jobs are now at a place: lowers low-water marks that are above their times, and announces READY jobs.
CREATE FUNCTION @.record_place(
    of_queue text, of_priority integer, of_status integer, number bigint, due bigint, fades bigint, now_at bigint
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF of_status = S.READY THEN
        PERFORM @.lower_mark('ready', of_queue, -of_priority, due, now_at);
        IF number > 0 THEN
            PERFORM @.add_wakeup('queue:' || of_queue, number);
        END IF;
    ELSIF of_status < S.READY THEN
        PERFORM @.lower_mark('due', '', 0, due, now_at);
    END IF;
    IF fades < now_at THEN -- no mark is above the present
        PERFORM @.lower_mark('fade', '', 0, fades, now_at);
    END IF;
END
$$;

-- Returns the steps with an addition that would exceed its bound together with earlier additions of the call, and the steps for whose new
-- jobs there is no room. A refused step uses up nothing that later steps need. `new_in` has the step of each new job; `room` is NULL if
-- there is room for all.
CREATE FUNCTION @.past_bounds(
    steps integer[], ids bytea[], numbers bigint[], bounds bigint[], new_in integer[], room bigint, bad integer[],
    OUT past integer[], OUT unplaced integer[]
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    sums jsonb := '{}';
    of_step jsonb;
    each record;
    last_step integer := -1;
BEGIN
    past := '{}';
    unplaced := '{}';
    FOR each IN
        SELECT a.step, a.at, encode(a.id, 'hex') AS id, a.n, a.most, r.awaits
        FROM unnest(steps, ids, numbers, bounds) WITH ORDINALITY AS a (step, id, n, most, at)
        CROSS JOIN LATERAL (SELECT awaits FROM @.jobs WHERE jobs.id = a.id OFFSET 0) AS r WHERE a.step <> ALL (bad)
        UNION ALL
        SELECT step, 0, '', count(*), room, 0 FROM unnest(new_in) AS step WHERE room IS NOT NULL GROUP BY step
        ORDER BY 1, 2
    LOOP
        IF each.step <> last_step THEN
            sums := CASE WHEN last_step = ANY (past || unplaced) OR of_step IS NULL THEN sums ELSE of_step END;
            of_step := sums;
            last_step := each.step;
        END IF;
        of_step := jsonb_set(of_step, ARRAY[each.id], to_jsonb(coalesce((of_step ->> each.id)::bigint, 0) + each.n));
        IF each.awaits + (of_step ->> each.id)::bigint <= each.most IS NOT FALSE THEN
            CONTINUE;
        ELSIF each.id = '' THEN
            unplaced := unplaced || each.step;
        ELSE
            past := past || each.step;
        END IF;
    END LOOP;
END
$$;

-- Returns the number of live jobs that can be added.
CREATE FUNCTION @.room(capacity bigint) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    RETURN greatest(0, capacity - (SELECT coalesce(sum(n), 0) FROM @.counted WHERE what IN ('=0', '=1', '=2', '=3')));
END
$$;

-- Replaces the entries of records. Each element names the step, the index, the record, and the values.
CREATE FUNCTION @.replace_entries(entries jsonb, bad integer[]) RETURNS void LANGUAGE plpgsql @SETTINGS AS $$
#variable_conflict use_column
BEGIN
    DELETE FROM @.tags WHERE id = ANY (ARRAY(
        SELECT decode(e ->> 2, 'hex') FROM jsonb_array_elements(entries) AS e WHERE e ->> 1 = 'tags' AND (e ->> 0)::integer <> ALL (bad)
    ));
    INSERT INTO @.tags (value, id) SELECT entry, decode(e ->> 2, 'hex') FROM jsonb_array_elements(entries) AS e, jsonb_array_elements_text(e -> 3) AS each (entry)
    WHERE e ->> 1 = 'tags' AND (e ->> 0)::integer <> ALL (bad) ON CONFLICT DO NOTHING;
    DELETE FROM @.declared WHERE id = ANY (ARRAY(
        SELECT decode(e ->> 2, 'hex') FROM jsonb_array_elements(entries) AS e WHERE e ->> 1 = 'declared' AND (e ->> 0)::integer <> ALL (bad)
    ));
    INSERT INTO @.declared (value, id)
    SELECT decode(entry, 'hex'), decode(e ->> 2, 'hex') FROM jsonb_array_elements(entries) AS e, jsonb_array_elements_text(e -> 3) AS each (entry)
    WHERE e ->> 1 = 'declared' AND (e ->> 0)::integer <> ALL (bad) ON CONFLICT DO NOTHING;
END
$$;

-- Returns the ids and tables of those jobs, keys and other records that another transaction has locked.
CREATE FUNCTION @.locked(jobs bytea[], keys bytea[], others jsonb) RETURNS TABLE (of_table text, id bytea) LANGUAGE plpgsql @SETTINGS AS $$
#variable_conflict use_column
DECLARE
    of_kind record;
BEGIN
    RETURN QUERY SELECT 'jobs', r.id FROM @.jobs AS r WHERE r.id = ANY (jobs)
        AND r.id <> ALL (ARRAY(SELECT f.id FROM @.jobs AS f WHERE f.id = ANY (jobs) FOR UPDATE SKIP LOCKED));
    RETURN QUERY SELECT 'keys', r.id FROM @.keys AS r WHERE r.id = ANY (keys)
        AND r.id <> ALL (ARRAY(SELECT f.id FROM @.keys AS f WHERE f.id = ANY (keys) FOR UPDATE SKIP LOCKED));
    FOR of_kind IN SELECT key AS name, ARRAY(SELECT decode(e ->> 'id', 'hex') FROM jsonb_array_elements(value) AS e) AS ids FROM jsonb_each(others) LOOP
        RETURN QUERY EXECUTE format(
            'SELECT %1$L, r.id FROM @.%1$I AS r WHERE r.id = ANY ($1) AND r.id <> ALL (ARRAY(SELECT f.id FROM @.%1$I AS f WHERE f.id = ANY ($1) FOR UPDATE SKIP LOCKED))',
            of_kind.name
        ) USING of_kind.ids;
    END LOOP;
END
$$;

-- Locks keys, gates and jobs until the transaction ends, including keys and gates that do not exist: each of 64 rows of `meta` represents a
-- part of them. (Advisory locks would not do: any role that may connect can hold them.) A suspended program loses the locks after 3 s.
CREATE FUNCTION @.lock_records(job_ids bytea[], key_ids bytea[]) RETURNS void LANGUAGE plpgsql @SETTINGS SET lock_timeout = '3s' AS $$
#variable_conflict use_column
BEGIN
    PERFORM set_config('idle_in_transaction_session_timeout', '3s', true);
    PERFORM 1 FROM @.meta WHERE name = ANY (ARRAY(SELECT 'keys ' || (get_byte(key, 0) & 63) FROM unnest(key_ids) AS key)) ORDER BY name FOR UPDATE;
    PERFORM 1 FROM @.keys WHERE id = ANY (key_ids) ORDER BY id FOR UPDATE;
    PERFORM 1 FROM @.jobs WHERE id = ANY (job_ids) ORDER BY id FOR UPDATE;
END
$$;
