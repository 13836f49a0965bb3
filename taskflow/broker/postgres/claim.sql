-- Leases ready jobs to a session, and returns what a worker needs to run them; an error of the class TF001 if the session is lost. The rows
-- are numbered in the order of the claim, and come in any order. A payload that is too long is reported in place of being returned; extras
-- are cut one byte beyond their limit. `parked_at` and `expires_at` are microseconds from now. The plans are made once: with an array as a
-- parameter they would be made at each call.
--
-- `of_listener`: the worker's listener, which `is_noted` in idle, as far as it knows, and `was_nudged` since its last claim. If there are
-- fewer jobs than `most`, it waits for more. The last rows may have only news in `unreadable`: topics of jobs that are left, for which
-- other listeners wait, or "unnoted" if no note was written.
CREATE FUNCTION @.claim(
    wall bigint, steady bigint, of_session bytea, of_request bigint, queues text[], most integer,
    of_listener text DEFAULT NULL, is_noted boolean DEFAULT false, was_nudged boolean DEFAULT false
)
RETURNS TABLE (
    id @.identity, number @.counter, epoch @.counter, created_at @.instant, failures @.counter, crashes @.counter, snoozes @.counter,
    hand_backs @.counter, parked_at bigint, priority @.priority, queue @.queue_name, job @.job_name, key bytea, payload bytea, extras bytea,
    expires_at bigint, unreadable text
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' SET plan_cache_mode = force_generic_plan SET jit = off
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_memoize = off AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    s @.sessions;
    worker_name bytea;
    newest @.requests;
    only_queue text;
    picked record;
BEGIN
    SELECT * INTO s FROM @.sessions WHERE id = of_session FOR UPDATE;
    IF s.id IS NULL OR s.dead_at IS NOT NULL THEN
        RAISE EXCEPTION 'the session is lost' USING ERRCODE = 'TF001';
    END IF;
    -- In the encoding of the database: SQL_ASCII checks nothing, and may contain bytes that are not UTF-8.
    worker_name := convert_to(s.name, CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END::name);
    SELECT * INTO newest FROM @.requests WHERE session = of_session ORDER BY request DESC LIMIT 1;
    IF of_request <= newest.request THEN
        RETURN QUERY SELECT id, number, epoch, created_at, failures, crashes, snoozes, hand_backs, parked_at - now_at, priority, queue, job, key,
            CASE WHEN octet_length(payload) <= P.MOST_PAYLOAD_BYTES THEN payload END, substr(extras, 1, P.MOST_BYTES + 1), expires_at - now_at,
            CASE WHEN is_poison THEN concat(E'poison\t', encode(substr(reason, 1, P.MOST_BYTES), 'hex'))
                WHEN octet_length(payload) > P.MOST_PAYLOAD_BYTES THEN concat(E'payload\t', octet_length(payload), ' bytes') END
        FROM @.jobs WHERE session = of_session AND request = of_request AND status = S.RUNNING AND of_request = newest.request;
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
        SELECT * INTO picked FROM @.pick_from_one(only_queue, most, now_at);
    ELSIF cardinality(queues) > 0 THEN
        SELECT * INTO picked FROM @.pick_from_queues(queues, ARRAY(SELECT queue || E'\x01' FROM unnest(queues) AS queue), most, now_at);
    ELSE -- all queues, starting with one of them
        only_queue := @.next_queue(of_request, newest.ended_in, now_at);
        SELECT * INTO picked FROM @.pick_from_queues(ARRAY[only_queue, ''], ARRAY[NULL, only_queue], most, now_at);
    END IF;
    INSERT INTO @.requests (session, request, ended_in) VALUES (of_session, of_request, coalesce(picked.last_queue, newest.ended_in));
    RETURN QUERY
    WITH leased AS (
        UPDATE @.jobs SET
            status = S.RUNNING, epoch = least(epoch + 1, P.MOST_COUNTED), session = of_session, request = of_request, number = place - 1, claimed_at = now_at,
            claimed_steady = coalesce(steady, now_at), worker = worker_name, @claim{%n = %d}
        FROM unnest(picked.tids) WITH ORDINALITY AS of_those (tid, place)
        WHERE jobs.ctid = of_those.tid
        RETURNING jobs.id, jobs.number, jobs.epoch, jobs.created_at, jobs.failures, jobs.crashes, jobs.snoozes, jobs.hand_backs,
            jobs.parked_at - now_at, jobs.priority, jobs.queue, jobs.job, jobs.key,
            CASE WHEN octet_length(jobs.payload) <= P.MOST_PAYLOAD_BYTES THEN jobs.payload END, substr(jobs.extras, 1, P.MOST_BYTES + 1),
            jobs.expires_at - now_at,
            CASE WHEN jobs.is_poison THEN concat(E'poison\t', encode(substr(jobs.reason, 1, P.MOST_BYTES), 'hex'))
                WHEN octet_length(jobs.payload) > P.MOST_PAYLOAD_BYTES THEN concat(E'payload\t', octet_length(jobs.payload), ' bytes') END
    ), counted AS (
        INSERT INTO @.tally (queue, event, before, after, n)
        SELECT queue, E.CLAIM, S.READY, S.RUNNING, count(*) FROM leased GROUP BY queue
    )
    SELECT * FROM leased;
    IF picked.first_queue IS NOT NULL THEN
        PERFORM @.raise_ready_mark(picked.first_queue, picked.first_rank, now_at);
        IF (picked.last_queue, picked.last_rank) <> (picked.first_queue, picked.first_rank) THEN
            PERFORM @.raise_ready_mark(picked.last_queue, picked.last_rank, now_at);
        END IF;
    END IF;
    IF of_listener <> s.listener IS NOT FALSE AND of_listener IS NOT NULL THEN
        UPDATE @.sessions SET listener = of_listener WHERE id = of_session;
    END IF;
    IF @.has_fixed_snapshot() THEN
        unreadable := 'unnoted';
        RETURN NEXT;
    ELSIF cardinality(picked.tids) >= most THEN
        IF is_noted OR was_nudged THEN
            DELETE FROM @.idle WHERE listener = of_listener AND topic = ANY (@.topics_of(queues));
        END IF;
        FOR unreadable IN
            SELECT 'queue:' || queue FROM unnest(CASE cardinality(queues) WHEN 0 THEN ARRAY[picked.last_queue] ELSE queues END) AS queue
            WHERE CASE WHEN @.has_note('queue:' || queue) THEN @.has_ready(queue, now_at) END -- in this order
        LOOP
            RETURN NEXT;
        END LOOP;
    ELSIF of_listener IS NOT NULL AND (was_nudged OR NOT is_noted) THEN
        PERFORM @.note_idle(of_listener, @.topics_of(queues));
    END IF;
    IF was_nudged THEN
        PERFORM @.allow_nudges(of_listener);
    END IF;
END
$$;

-- Returns true if a claim from this queue may find a job.
CREATE FUNCTION @.has_ready(of_queue text, now_at bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN EXISTS (SELECT 1 FROM @.ready_marks(now_at, of_queue) AS m WHERE @.first_ready(m) IS NOT NULL)
        AND NOT EXISTS (SELECT 1 FROM @.paused WHERE queue = of_queue);
END
$$;

-- Returns the topics of a worker that claims from these queues.
CREATE FUNCTION @.topics_of(queues text[]) RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE cardinality(queues) WHEN 0 THEN ARRAY['queues'] ELSE ARRAY(SELECT 'queue:' || queue FROM unnest(queues) AS queue) END
$$;

-- Locks the rows of the next ready jobs: where they are, and the first and last place that they come from. Looks at the queues from each of
-- `firsts` up to the `past` beside it, in this order, and at each queue's priorities from the highest. Looks at a place only if those
-- before it did not suffice: all joins are nested loops in the order of the text.
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
            WHERE status = S.READY AND jobs.queue = place.queue AND priority = -place.rank
                AND (due_at, jobs.seq) >= (CASE WHEN @.is_trusted(place.set_at, now_at) THEN place.at ELSE 0 END, place.seq)
                AND (expires_at IS NULL OR expires_at > now_at)
            ORDER BY due_at, jobs.seq LIMIT most FOR UPDATE SKIP LOCKED
        ) AS ready
        WHERE NOT EXISTS (SELECT 1 FROM @.paused WHERE paused.queue = place.queue)
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
    m @.marks;
    found_here tid[];
    so_far integer := 0;
BEGIN
    IF EXISTS (SELECT 1 FROM @.paused WHERE queue = of_queue) THEN
        RETURN;
    END IF;
    SELECT * INTO m FROM @.marks WHERE kind = 'ready' AND queue = of_queue ORDER BY kind, queue, rank, n DESC LIMIT 1;
    WHILE m.rank IS NOT NULL AND so_far < most LOOP
        found_here := ARRAY(
            SELECT ctid FROM @.jobs
            WHERE status = S.READY AND queue = of_queue AND priority = -m.rank
                AND (due_at, seq) >= (CASE WHEN @.is_trusted(m.set_at, now_at) THEN m.at ELSE 0 END, m.seq)
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
        IF so_far < most THEN
            SELECT * INTO m FROM @.marks WHERE kind = 'ready' AND queue = of_queue AND rank > m.rank ORDER BY kind, queue, rank, n DESC LIMIT 1;
        END IF;
    END LOOP;
END
$$;

-- Returns the first queue for a claim from any queue. If few queues have ready jobs, the request's number decides; otherwise it is the
-- queue after that of the session's last leased job.
CREATE FUNCTION @.next_queue(turn bigint, ended_in text, now_at bigint) RETURNS text LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    live text[];
    number bigint;
BEGIN
    WITH first AS (
        SELECT * FROM @.walk_marks('', NULL) LIMIT 17
    ), ready AS (
        SELECT DISTINCT queue FROM first
        WHERE (SELECT count(*) FROM first) <= 16 AND NOT EXISTS (SELECT 1 FROM @.paused WHERE paused.queue = first.queue) AND EXISTS (
            SELECT 1 FROM @.jobs
            WHERE status = S.READY AND jobs.queue = first.queue AND priority = -first.rank
                AND (due_at, jobs.seq) >= (CASE WHEN @.is_trusted(set_at, now_at) THEN first.at ELSE 0 END, first.seq)
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

-- Raises a place's mark to the first job that is still ready, even if another transaction has locked it, because it may stay ready.
CREATE FUNCTION @.raise_ready_mark(of_queue text, of_rank integer, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    m @.marks := @.newest_mark('ready', of_queue, of_rank, now_at);
    first record;
BEGIN
    IF NOT @.may_raise_mark(m, now_at) THEN
        RETURN;
    END IF;
    SELECT due_at, seq INTO first FROM @.jobs
    WHERE status = S.READY AND queue = of_queue AND priority = -of_rank AND (due_at, seq) >= (m.at, m.seq)
    ORDER BY due_at, seq LIMIT 1;
    PERFORM @.raise_mark(m, coalesce(first.due_at, now_at), coalesce(first.seq, 0), now_at);
END
$$;
