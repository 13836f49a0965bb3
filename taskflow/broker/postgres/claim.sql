-- Leases READY jobs to a session, and returns them in any order. Raises an error with the code TF001 if the session is lost. A body that is
-- too long is left out, and reported as damage. Plans are made once; with an array as a parameter, they would be made at each call.
-- `due_at` is the time when a job became READY, even if the job has a place in a line.
--
-- `of_listener` is the worker's listener, if it waits for more jobs after a claim that returns fewer than `most`. Its note (the rows that
-- list the `topics` for which it waits) has the number `note`, and replaces its `former` notes. The last rows may contain only news, in
-- `damage`: topics of remaining jobs for which other listeners wait, or "unnoted" if no note was written.
CREATE FUNCTION @.claim(
    wall bigint, steady bigint, of_session bytea, of_request bigint, queues text[], most integer, new_rev bigint,
    of_listener text DEFAULT NULL, former bigint[] DEFAULT '{}', note bigint DEFAULT 0, topics text[] DEFAULT '{}'
)
RETURNS TABLE (
    id bytea, rev bigint, flags smallint, priority smallint, queue text, job text, created_at bigint, due_at bigint, expires_at bigint,
    epoch bigint, claim bytea, now_at bigint, sent bytea, state bytea, content bytea, damage text
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' SET plan_cache_mode = force_generic_plan SET jit = off
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_memoize = off AS $$
#variable_conflict use_column
DECLARE
    time_now CONSTANT bigint := @.wall(wall);
    prefix CONSTANT bytea := int8send(of_request);
    s @.sessions;
    newest @.requests;
    only_queue text;
    picked record;
BEGIN
    SELECT * INTO s FROM @.sessions WHERE id = of_session FOR UPDATE;
    IF s.id IS NULL OR s.dead_at IS NOT NULL THEN
        RAISE EXCEPTION 'the session is lost' USING ERRCODE = 'TF001';
    END IF;
    SELECT * INTO newest FROM @.requests WHERE session = of_session ORDER BY request DESC LIMIT 1;
    IF of_request <= newest.request THEN
        RETURN QUERY SELECT r.id, r.rev, r.flags, r.priority, r.queue, r.job, r.created_at, CASE WHEN r.flags & @FAIR <> 0 THEN coalesce(r.since, r.due_at) ELSE r.due_at END, r.expires_at, r.epoch, r.claim, time_now,
            @CLAIMED_BODIES
        FROM @.jobs AS r WHERE r.status = S.RUNNING AND r.session = of_session AND of_request = newest.request
            AND r.claim >= prefix || E'\\x00000000' AND r.claim <= prefix || E'\\xffffffff'
        ORDER BY r.claim;
        RETURN;
    END IF;
    IF cardinality(queues) = 1 THEN
        only_queue := queues[1];
    ELSIF cardinality(queues) = 0 THEN -- the only queue in which jobs may be ready, if there is just one
        SELECT queue INTO only_queue FROM @.marks WHERE kind = 'ready' ORDER BY kind, queue LIMIT 1;
        IF EXISTS (SELECT 1 FROM @.marks WHERE kind = 'ready' AND queue > only_queue) THEN
            only_queue := NULL;
        END IF;
    END IF;
    IF only_queue IS NOT NULL THEN
        SELECT * INTO picked FROM @.pick_from_one(only_queue, most, time_now);
    ELSIF cardinality(queues) > 0 THEN
        SELECT * INTO picked FROM @.pick_from_queues(queues, ARRAY(SELECT queue || E'\x01' FROM unnest(queues) AS queue), most, time_now);
    ELSE -- all queues, starting with one of them
        only_queue := @.next_queue(of_request, newest.ended_in);
        SELECT * INTO picked FROM @.pick_from_queues(ARRAY[only_queue, ''], ARRAY[NULL, only_queue], most, time_now);
    END IF;
    INSERT INTO @.requests (session, request, ended_in, leases_from)
    VALUES (of_session, of_request, coalesce(picked.last_queue, newest.ended_in), coalesce(newest.leases_from, ''));
    RETURN QUERY
    WITH leased AS (
        UPDATE @.jobs AS r SET
            status = S.RUNNING, rev = new_rev, epoch = least(r.epoch, P.LATEST) + 1, session = of_session, claim = prefix || int4send((place - 1)::integer),
            claimed_at = time_now, claimed_steady = coalesce(steady, time_now), worker = s.name, started_at = NULL
        FROM unnest(picked.tids) WITH ORDINALITY AS of_those (tid, place)
        WHERE r.ctid = of_those.tid
        RETURNING r.id, r.rev, r.flags, r.priority, r.queue, r.job, r.created_at, CASE WHEN r.flags & @FAIR <> 0 THEN coalesce(r.since, r.due_at) ELSE r.due_at END, r.expires_at, r.epoch, r.claim, time_now,
            @CLAIMED_BODIES
    ), counted AS (
        INSERT INTO @.tally (queue, event, before, after, n)
        SELECT queue, E.CLAIM, S.READY, S.RUNNING, count(*) FROM leased GROUP BY queue
    )
    SELECT * FROM leased;
    IF picked.first_queue IS NOT NULL THEN
        PERFORM @.raise_ready_mark(picked.first_queue, picked.first_rank, time_now);
        IF (picked.last_queue, picked.last_rank) <> (picked.first_queue, picked.first_rank) THEN
            PERFORM @.raise_ready_mark(picked.last_queue, picked.last_rank, time_now);
        END IF;
    END IF;
    IF of_listener <> s.listener IS NOT FALSE AND of_listener IS NOT NULL THEN
        UPDATE @.sessions SET listener = of_listener WHERE id = of_session;
    END IF;
    IF @.has_fixed_snapshot() THEN
        damage := 'unnoted';
        RETURN NEXT;
    ELSIF cardinality(picked.tids) >= most THEN
        IF cardinality(former) > 0 THEN
            PERFORM @.record_idle(of_listener, former, 0, NULL);
        END IF;
        FOR damage IN
            SELECT 'queue:' || queue FROM unnest(CASE cardinality(queues) WHEN 0 THEN ARRAY[picked.last_queue] ELSE queues END) AS queue
            WHERE CASE WHEN @.has_note('queue:' || queue) THEN @.has_ready(queue) END -- in this order
        LOOP
            RETURN NEXT;
        END LOOP;
    ELSIF of_listener IS NOT NULL AND note <> ALL (former) THEN
        PERFORM @.record_idle(of_listener, former, note, topics);
    END IF;
END
$$;

-- Returns true if a claim from this queue may find a job.
CREATE FUNCTION @.has_ready(of_queue text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN EXISTS (SELECT 1 FROM @.ready_marks(of_queue) AS m WHERE (@.first_ready(m.queue, m.rank, m.at, m.seq)).due_at IS NOT NULL)
        AND NOT @.is_paused(of_queue);
END
$$;

-- Locks the next ready jobs. Returns the addresses of their rows, and the first and last place (queue and priority) that they come from.
-- Reads the queues from each of `firsts` up to its counterpart in `pasts`, in this order, and each queue's priorities from the highest.
-- Reads a place only if the places before it did not suffice, because all joins are nested loops in the order of the text.
CREATE FUNCTION @.pick_from_queues(
    firsts text[], pasts text[], most integer, now_at bigint,
    OUT tids tid[], OUT first_queue text, OUT first_rank integer, OUT last_queue text, OUT last_rank integer
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    WITH picked AS (
        SELECT ready.tid, place.queue, place.rank
        FROM unnest(firsts, pasts) AS wanted (first, past)
        CROSS JOIN LATERAL @.walk_marks(wanted.first, wanted.past) AS place
        CROSS JOIN LATERAL (
            SELECT ctid AS tid FROM @.jobs
            WHERE status = S.READY AND jobs.queue = place.queue AND (-priority) = place.rank
                AND (due_at, jobs.seq) >= (place.at, place.seq)
                AND (expires_at IS NULL OR expires_at > now_at)
            ORDER BY due_at, jobs.seq LIMIT most FOR UPDATE SKIP LOCKED
        ) AS ready
        WHERE NOT @.is_paused(place.queue)
        LIMIT most
    )
    SELECT array_agg(tid), (array_agg(queue))[1], (array_agg(rank))[1], (array_agg(queue))[count(*)], (array_agg(rank))[count(*)]
    INTO tids, first_queue, first_rank, last_queue, last_rank FROM picked;
END
$$;

-- Does the same as pick_from_queues() for a single queue, in statements that cost less to start.
CREATE FUNCTION @.pick_from_one(
    of_queue text, most integer, now_at bigint,
    OUT tids tid[], OUT first_queue text, OUT first_rank integer, OUT last_queue text, OUT last_rank integer
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    m record;
    found_here tid[];
    so_far integer := 0;
    after_rank smallint := -32768;
BEGIN
    IF @.is_paused(of_queue) THEN
        RETURN;
    END IF;
    LOOP
        SELECT place.rank, least(since.lowest, place.at) AS at, CASE WHEN since.lowest <= place.at THEN 0 ELSE place.seq END AS seq INTO m
        FROM (
            SELECT * FROM @.marks
            WHERE kind = 'ready' AND queue = of_queue AND rank > after_rank AND upto <= pg_snapshot_xmax(pg_current_snapshot())
            ORDER BY kind, queue, rank, upto DESC, n_open, set_at DESC LIMIT 1
        ) AS place CROSS JOIN LATERAL @.lowest_since('ready', of_queue, place.rank, place.upto, place.open) AS since;
        EXIT WHEN NOT FOUND;
        found_here := ARRAY(
            SELECT ctid FROM @.jobs
            WHERE status = S.READY AND queue = of_queue AND (-priority) = m.rank
                AND (due_at, seq) >= (m.at, m.seq)
                AND (expires_at IS NULL OR expires_at > now_at)
            ORDER BY due_at, seq LIMIT most - so_far FOR UPDATE SKIP LOCKED
        );
        IF cardinality(found_here) > 0 THEN
            tids := tids || found_here;
            so_far := cardinality(tids);
            first_queue := of_queue;
            first_rank := coalesce(first_rank, m.rank);
            last_queue := of_queue;
            last_rank := m.rank;
        END IF;
        EXIT WHEN so_far >= most;
        after_rank := m.rank;
    END LOOP;
END
$$;

-- Returns the queue with which a claim from all queues begins. If few queues have ready jobs, the request's number decides. Otherwise it is
-- the queue after that of the session's last leased job.
CREATE FUNCTION @.next_queue(turn bigint, ended_in text) RETURNS text LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    live text[];
    number bigint;
BEGIN
    WITH first AS (
        SELECT * FROM @.walk_marks('', NULL) LIMIT 17
    ), ready AS (
        SELECT DISTINCT queue FROM first
        WHERE (SELECT count(*) FROM first) <= 16 AND NOT @.is_paused(first.queue) AND EXISTS (
            SELECT 1 FROM @.jobs
            WHERE status = S.READY AND jobs.queue = first.queue AND (-priority) = first.rank
                AND (due_at, jobs.seq) >= (first.at, first.seq)
            OFFSET 0 -- one index step for each queue, not a join
        )
    )
    SELECT array_agg(queue ORDER BY queue), (SELECT count(*) FROM first) INTO live, number FROM ready;
    IF number > 16 THEN
        RETURN coalesce(ended_in || '!', ''); -- before every name that begins with that one
    END IF;
    RETURN coalesce(live[1 + turn % cardinality(live)], '');
END
$$;
