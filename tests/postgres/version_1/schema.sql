-- A schema of version 1 as it came to be in databases: what commit 872d076 sent to the server for the default rules, with "@." in place of the
-- schema. It is history, made once and never changed: the migrations are tested on it.

SET check_function_bodies = off;

-- The tables. "@." stands for the schema, 2 and the like for a status's code: both are written in before the server sees it.
-- Times are microseconds since 1970. Ids, sessions and keys are 16 bytes.

CREATE TABLE @.meta (
    name text PRIMARY KEY,
    value bigint NOT NULL
);

CREATE SEQUENCE @.arrivals;

CREATE TABLE @.sessions (
    id bytea PRIMARY KEY,
    number bigint GENERATED ALWAYS AS IDENTITY,
    name text NOT NULL,
    ttl bigint NOT NULL,
    about bytea NOT NULL,
    registered_at bigint NOT NULL,
    beat_at bigint NOT NULL,
    request bigint NOT NULL DEFAULT 0,
    is_spared boolean NOT NULL DEFAULT false,
    dead_at bigint
) WITH (fillfactor = 50);

CREATE TABLE @.jobs (
    id bytea NOT NULL,
    seq bigint NOT NULL DEFAULT nextval('@.arrivals'),
    created_at bigint NOT NULL,
    due_at bigint NOT NULL,
    epoch integer NOT NULL DEFAULT 0,
    status smallint NOT NULL,
    priority smallint NOT NULL,
    queue text COLLATE "C" NOT NULL,
    job text COLLATE "C" NOT NULL,
    payload bytea,
    extras bytea,
    expires_at bigint,
    key bytea,
    awaits integer,
    joins bytea,
    behind bytea,
    session bytea,
    request bigint,
    number integer,
    claimed_at bigint,
    claimed_steady bigint,
    worker bytea,
    started_at bigint,
    settled bytea,
    failures integer NOT NULL DEFAULT 0,
    crashes integer NOT NULL DEFAULT 0,
    snoozes integer NOT NULL DEFAULT 0,
    hand_backs integer NOT NULL DEFAULT 0,
    parked_at bigint,
    errors bytea,
    progress bytea,
    cancel_requested text,
    result bytea,
    reason bytea,
    waiting_for bytea,
    is_poison boolean,
    ended_at bigint,
    fade_at bigint,
    CONSTRAINT a_run_is_leased CHECK ((status = 3) = (session IS NOT NULL)),
    CONSTRAINT an_end_has_its_time CHECK ((status >= 4) = (ended_at IS NOT NULL)),
    CONSTRAINT the_held_await CHECK (status <> 0 OR awaits > 0)
);

CREATE UNIQUE INDEX jobs_by_id ON @.jobs (id);
CREATE INDEX jobs_ready ON @.jobs (queue, priority DESC, due_at, seq) WHERE status = 2;
CREATE INDEX jobs_due ON @.jobs (due_at, seq, id) WHERE status = 1;
CREATE UNIQUE INDEX jobs_leased ON @.jobs (session, request, number) WHERE status = 3;
CREATE INDEX jobs_expiring ON @.jobs (expires_at, id) WHERE expires_at IS NOT NULL AND status < 3;
CREATE UNIQUE INDEX jobs_waiting_with_key ON @.jobs (key) WHERE key IS NOT NULL AND status < 3;
CREATE UNIQUE INDEX jobs_running_with_key ON @.jobs (key) WHERE key IS NOT NULL AND status = 3;
CREATE INDEX jobs_fading ON @.jobs (fade_at, id) WHERE fade_at IS NOT NULL;
CREATE INDEX jobs_kept ON @.jobs (queue, (status = 5), ended_at, seq) WHERE status BETWEEN 4 AND 6;

CREATE TABLE @.paused (queue text COLLATE "C" PRIMARY KEY);

-- Counts: what verbs add, row by row, so that none waits for another; upkeep sums them up in totals. `what` is an event, or "=" and a status.
CREATE TABLE @.tally (queue text COLLATE "C" NOT NULL, what text NOT NULL, n bigint NOT NULL);
CREATE TABLE @.totals (queue text COLLATE "C" NOT NULL, what text NOT NULL, n bigint NOT NULL, PRIMARY KEY (queue, what)) WITH (fillfactor = 50);

CREATE VIEW @.counted AS
    SELECT queue, what, sum(n)::bigint AS n
    FROM (SELECT queue, what, n FROM @.totals UNION ALL SELECT queue, what, n FROM @.tally) AS every
    GROUP BY queue, what;

-- Jobs whose end somebody waits for.
CREATE TABLE @.awaited (id bytea PRIMARY KEY, until_when bigint NOT NULL);

-- Where jobs wait and end, and the moves between, one job at a time. Whoever calls these has locked the job, and its key.

-- Functions that change anything are plpgsql, which keeps its plans: those of SQL functions are made at every call.

-- Microseconds since 1970: a test's, else the server's own.
CREATE FUNCTION @.wall(given bigint) RETURNS bigint LANGUAGE sql AS $$
    SELECT coalesce(given, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
$$;

CREATE FUNCTION @.id_text(id bytea) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT encode(id, 'hex')::uuid::text
$$;

CREATE FUNCTION @.utf8(words text) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT convert_to(words, 'UTF8')
$$;

-- What is to be told once this is committed: gathered in a setting of the transaction.
CREATE FUNCTION @.ring(topic text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('taskflow.rung', concat_ws(E'\n', nullif(current_setting('taskflow.rung', true), ''), topic), true);
END
$$;

CREATE FUNCTION @.count_move(of_queue text, event text, from_status integer, to_status integer, number bigint DEFAULT 1) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO @.tally (queue, what, n)
    SELECT of_queue, each.what, each.n
    FROM (VALUES ('=' || nullif(from_status, 7), -number), ('=' || nullif(to_status, 7), number), (event, number)) AS each (what, n)
    WHERE each.what IS NOT NULL;
END
$$;

CREATE FUNCTION @.save(j @.jobs) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE @.jobs SET
        due_at = j.due_at, epoch = j.epoch, status = j.status, payload = j.payload, extras = j.extras, expires_at = j.expires_at,
        awaits = j.awaits, joins = j.joins, behind = j.behind, session = j.session, request = j.request, number = j.number,
        claimed_at = j.claimed_at, claimed_steady = j.claimed_steady, worker = j.worker, started_at = j.started_at, settled = j.settled,
        failures = j.failures, crashes = j.crashes, snoozes = j.snoozes, hand_backs = j.hand_backs, parked_at = j.parked_at,
        errors = j.errors, progress = j.progress, cancel_requested = j.cancel_requested, result = j.result, reason = j.reason,
        waiting_for = j.waiting_for, is_poison = j.is_poison, ended_at = j.ended_at, fade_at = j.fade_at
    WHERE id = j.id;
END
$$;

-- Locks keys in order, so that no two verbs wait for each other.
CREATE FUNCTION @.lock_keys(keys bytea[]) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    each bytea;
BEGIN
    FOR each IN SELECT DISTINCT key FROM unnest(keys) AS key WHERE key IS NOT NULL ORDER BY key LOOP
        PERFORM pg_advisory_xact_lock(('x' || encode(substr(each, 1, 8), 'hex'))::bit(64)::bigint);
    END LOOP;
END
$$;

-- Locks jobs and their keys: keys first, then rows by id. Here and wherever many ids are given: a plan that was made when the table was
-- empty, and is kept, must not read it from end to end when it is full.
CREATE FUNCTION @.lock_jobs(ids bytea[]) RETURNS void LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_column
BEGIN
    PERFORM @.lock_keys(array_agg(key)) FROM @.jobs WHERE id = ANY (ids) AND key IS NOT NULL;
    PERFORM 1 FROM @.jobs WHERE id = ANY (ids) ORDER BY id FOR UPDATE;
END
$$;

-- --- to wait ------------------------------------------------------------------------------------------

CREATE FUNCTION @.tell_place(status integer, queue text) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF status = 1 THEN
        PERFORM @.ring('due');
    ELSIF status = 2 THEN
        PERFORM @.ring('queue:' || queue);
    END IF;
END
$$;

-- Waits in the place that its due time and what it awaits give it. `is_new`: it is not in the table yet.
CREATE FUNCTION @.enter(j @.jobs, event text, now_at bigint, is_new boolean DEFAULT false) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    before smallint := CASE WHEN is_new THEN NULL ELSE j.status END;
BEGIN
    j.status := CASE WHEN coalesce(j.awaits, 0) > 0 THEN 0 WHEN j.due_at > now_at THEN 1 ELSE 2 END;
    IF is_new THEN
        INSERT INTO @.jobs SELECT j.*;
    ELSE
        PERFORM @.save(j);
    END IF;
    PERFORM @.count_move(j.queue, event, before, j.status);
    PERFORM @.tell_place(j.status, j.queue);
END
$$;

CREATE FUNCTION @.count_in(held bytea, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    j @.jobs;
BEGIN
    SELECT * INTO j FROM @.jobs WHERE id = held AND status = 0 FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    j.awaits := j.awaits - 1;
    IF j.awaits > 0 THEN
        PERFORM @.save(j);
    ELSE
        j.due_at := greatest(j.due_at, now_at);
        PERFORM @.enter(j, 'release', now_at);
    END IF;
END
$$;

-- --- to end -------------------------------------------------------------------------------------------

-- Nobody holds it any more, its key is free, and those that awaited it know. `keep_for` in microseconds, NULL for the status's own.
CREATE FUNCTION @.finish(j @.jobs, event text, to_status integer, why bytea, now_at bigint, keep_for bigint DEFAULT NULL)
RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    before smallint := j.status;
    joined bytea := j.joins;
    each @.jobs;
BEGIN
    j.status := to_status;
    j.session := NULL;
    j.request := NULL;
    j.number := NULL;
    j.reason := why;
    j.waiting_for := NULL;
    j.ended_at := now_at;
    j.fade_at := now_at + coalesce(keep_for, CASE WHEN to_status = 5 THEN 2592000000000 ELSE 300000000 END);
    j.joins := NULL;
    PERFORM @.save(j);
    PERFORM @.count_move(j.queue, event, before, to_status);
    PERFORM @.ring('job:' || encode(j.id, 'hex'));
    IF j.key IS NOT NULL THEN
        FOR each IN SELECT * FROM @.jobs WHERE key = j.key AND status < 3 AND behind = j.id FOR UPDATE LOOP
            each.behind := NULL;
            each.waiting_for := NULL;
            PERFORM @.save(each);
            PERFORM @.count_in(each.id, now_at);
        END LOOP;
    END IF;
    FOR i IN 0 .. coalesce(length(joined), 0) / 16 - 1 LOOP
        PERFORM @.count_in(substr(joined, 16 * i + 1, 16), now_at);
    END LOOP;
END
$$;

-- After a run that did not end the job; its cancellation and a replacement behind it come first. Without a new time it is ready where it
-- stood, also when the clock has been set back before its due time meanwhile.
CREATE FUNCTION @.wait_again(j @.jobs, event text, now_at bigint, due bigint DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    successor bytea;
    before smallint := j.status;
BEGIN
    IF j.key IS NOT NULL THEN
        SELECT id INTO successor FROM @.jobs WHERE key = j.key AND status < 3 AND behind = j.id;
    END IF;
    IF j.cancel_requested IS NOT NULL THEN
        PERFORM @.finish(j, event, 6, @.utf8(j.cancel_requested), now_at);
        RETURN;
    ELSIF successor IS NOT NULL THEN
        PERFORM @.finish(j, event, 6, @.utf8(format('replaced by %s', @.id_text(successor))), now_at);
        RETURN;
    END IF;
    j.session := NULL;
    j.request := NULL;
    j.number := NULL;
    IF due IS NOT NULL THEN
        j.due_at := due;
        PERFORM @.enter(j, event, now_at);
    ELSE
        j.status := 2;
        PERFORM @.save(j);
        PERFORM @.count_move(j.queue, event, before, 2);
        PERFORM @.ring('queue:' || j.queue);
    END IF;
END
$$;

CREATE FUNCTION @.poison(j @.jobs, event text, why text, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    j.is_poison := true;
    PERFORM @.finish(j, event, 5, @.utf8('poison: ' || why), now_at);
END
$$;

CREATE FUNCTION @.hand_back(j @.jobs, counts boolean, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    j.hand_backs := j.hand_backs + counts::integer;
    IF j.hand_backs > 10 AND j.cancel_requested IS NULL THEN
        PERFORM @.poison(j, 'hand back', format('handed back %s times without an outcome', j.hand_backs), now_at);
    ELSE
        PERFORM @.wait_again(j, 'hand back', now_at);
    END IF;
END
$$;

-- Drops what is kept of an ended job, all but its id and fence: somebody may still resend a call that names it.
CREATE FUNCTION @.bury(buried bytea) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    j @.jobs;
BEGIN
    SELECT * INTO j FROM @.jobs WHERE id = buried FOR UPDATE;
    PERFORM @.count_move(j.queue, 'drop', j.status, NULL);
    UPDATE @.jobs SET status = 7, payload = NULL, result = NULL, errors = NULL, extras = NULL, reason = NULL, progress = NULL,
        waiting_for = NULL, fade_at = ended_at + 120000000
    WHERE id = buried;
END
$$;

-- The history of errors with one more; it begins again with the newest when it grows too large.
CREATE FUNCTION @.noted(errors bytea, one bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN coalesce(length(errors), 0) + length(one) <= 65536 THEN coalesce(errors, '') || one ELSE one END
$$;

-- Adds one call that has a key, or awaits or joins others. The answer: "" for added, "r" and the id that gave way, "i" for an id that is
-- known, "k" and the id that has the key.
CREATE FUNCTION @.add(j @.jobs, on_conflict integer, now_at bigint) RETURNS bytea LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    waiting @.jobs;
    running bytea;
BEGIN
    IF EXISTS (SELECT 1 FROM @.jobs WHERE id = j.id) THEN
        RETURN 'i';
    END IF;
    IF j.key IS NOT NULL THEN
        SELECT * INTO waiting FROM @.jobs WHERE key = j.key AND status < 3 FOR UPDATE;
        SELECT id INTO running FROM @.jobs WHERE key = j.key AND status = 3 FOR UPDATE;
        IF on_conflict = 0 AND coalesce(waiting.id, running) IS NOT NULL THEN
            RETURN 'k'::bytea || coalesce(waiting.id, running);
        END IF;
        IF waiting.id IS NOT NULL THEN
            PERFORM @.finish(waiting, 'replace', 6, @.utf8(format('replaced by %s', @.id_text(j.id))), now_at);
        END IF;
        IF running IS NOT NULL THEN
            j.awaits := coalesce(j.awaits, 0) + 1;
            j.behind := running;
            j.waiting_for := @.utf8(format('job %s, which runs with its key', @.id_text(running)));
        END IF;
    END IF;
    j.seq := nextval('@.arrivals');
    PERFORM @.enter(j, 'enqueue', now_at, true);
    RETURN CASE WHEN waiting.id IS NULL THEN ''::bytea ELSE 'r'::bytea || waiting.id END;
END
$$;

-- Adds calls in order. NULL when all were added, else an answer for each.
CREATE FUNCTION @.add_all(
    now_at bigint, ids bytea[], queues text[], jobs text[], priorities integer[], afters bigint[], ats bigint[], expiries bigint[], keys bytea[],
    conflicts integer[], payloads bytea[], extras bytea[], awaited integer[], joined bytea[]
) RETURNS bytea[] LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    answers bytea[];
    j @.jobs;
    added bigint;
    of record;
BEGIN
    PERFORM @.lock_keys(keys);
    IF NOT EXISTS (SELECT 1 FROM unnest(keys) AS key WHERE key IS NOT NULL) AND NOT EXISTS (SELECT 1 FROM @.jobs WHERE id = ANY (ids))
        AND (SELECT count(DISTINCT id) FROM unnest(ids) AS id) = cardinality(ids)
    THEN
        WITH given AS (
            SELECT * FROM unnest(ids, queues, jobs, priorities, afters, ats, expiries, payloads, extras, awaited, joined) WITH ORDINALITY
                AS given (id, queue, job, priority, after, at, expiry, payload, extras, awaits, joins, place)
        ), added AS (
            INSERT INTO @.jobs (id, created_at, due_at, status, priority, queue, job, payload, extras, expires_at, awaits, joins)
            SELECT id, now_at, greatest(now_at, coalesce(at, now_at + after)),
                CASE WHEN awaits > 0 THEN 0 WHEN greatest(now_at, coalesce(at, now_at + after)) > now_at THEN 1 ELSE 2 END,
                priority, queue, job, payload, extras, now_at + expiry, awaits, joins
            FROM given ORDER BY place
            ON CONFLICT (id) DO NOTHING
            RETURNING queue, status
        ), counted AS (
            SELECT queue, status, count(*) AS number FROM added GROUP BY queue, status
        ), moved AS (
            SELECT @.count_move(queue, 'enqueue', NULL, status, number), @.tell_place(status, queue), number FROM counted
        )
        SELECT coalesce(sum(number), 0) INTO added FROM moved;
        IF added = cardinality(ids) THEN
            RETURN NULL;
        END IF;
        RAISE EXCEPTION 'another call has added one of these at the same moment' USING ERRCODE = 'serialization_failure';
    END IF;
    FOR of IN
        SELECT * FROM unnest(ids, queues, jobs, priorities, afters, ats, expiries, keys, conflicts, payloads, extras, awaited, joined) WITH ORDINALITY
            AS given (id, queue, job, priority, after, at, expiry, key, conflict, payload, extras, awaits, joins, place)
        ORDER BY place
    LOOP
        j := NULL;
        j.id := of.id;
        j.created_at := now_at;
        j.due_at := greatest(now_at, coalesce(of.at, now_at + of.after));
        j.epoch := 0;
        j.priority := of.priority;
        j.queue := of.queue;
        j.job := of.job;
        j.payload := of.payload;
        j.extras := of.extras;
        j.expires_at := now_at + of.expiry;
        j.key := of.key;
        j.awaits := of.awaits;
        j.joins := of.joins;
        j.failures := 0;
        j.crashes := 0;
        j.snoozes := 0;
        j.hand_backs := 0;
        answers := answers || @.add(j, of.conflict, now_at);
    END LOOP;
    RETURN answers;
END
$$;

-- The verb. `capacity`: the most live jobs, or NULL.
CREATE FUNCTION @.enqueue(
    wall bigint, capacity bigint, ids bytea[], queues text[], jobs text[], priorities integer[], afters bigint[], ats bigint[], expiries bigint[],
    keys bytea[], conflicts integer[], payloads bytea[], extras bytea[], awaited integer[], joined bytea[],
    OUT answers bytea[], OUT rung text
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    fresh bigint;
BEGIN
    IF capacity IS NOT NULL THEN
        SELECT count(*) INTO fresh FROM unnest(ids) AS given (id) WHERE NOT EXISTS (SELECT 1 FROM @.jobs WHERE jobs.id = given.id);
        IF fresh > 0 AND fresh + (SELECT count(*) FROM @.jobs WHERE status <= 3) > capacity THEN
            RAISE EXCEPTION 'the store holds % live jobs at most', capacity USING ERRCODE = 'disk_full';
        END IF;
    END IF;
    answers := @.add_all(@.wall(wall), ids, queues, jobs, priorities, afters, ats, expiries, keys, conflicts, payloads, extras, awaited, joined);
    rung := current_setting('taskflow.rung', true);
END
$$;

-- When nobody has beaten for a session's whole ttl, the store was away, not the workers: one more ttl, once.
CREATE FUNCTION @.spare_after_outage(steady bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    pulse bigint;
BEGIN
    SELECT value INTO pulse FROM @.meta WHERE name = 'pulse';
    IF pulse > steady THEN -- the server's clock was set back: nobody has beaten in the future
        UPDATE @.meta SET value = steady WHERE name = 'pulse';
        UPDATE @.sessions SET beat_at = steady WHERE dead_at IS NULL AND beat_at > steady;
    ELSE
        UPDATE @.sessions SET is_spared = true, beat_at = steady
        WHERE dead_at IS NULL AND NOT is_spared AND steady - pulse > ttl;
    END IF;
END
$$;

CREATE FUNCTION @.take_pulse(steady bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO @.meta (name, value) VALUES ('pulse', steady) ON CONFLICT (name) DO UPDATE SET value = excluded.value;
END
$$;

-- Makes a session known. False when it is dead.
CREATE FUNCTION @.register(wall bigint, steady bigint, new_id bytea, new_name text, new_ttl bigint, new_about bytea) RETURNS boolean
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    died_at bigint;
BEGIN
    steady := coalesce(steady, now_at);
    PERFORM @.spare_after_outage(steady);
    INSERT INTO @.sessions (id, name, ttl, about, registered_at, beat_at) VALUES (new_id, new_name, new_ttl, new_about, now_at, steady)
    ON CONFLICT (id) DO NOTHING;
    SELECT dead_at INTO died_at FROM @.sessions WHERE id = new_id;
    IF died_at IS NOT NULL THEN
        RETURN false;
    END IF;
    PERFORM @.take_pulse(steady);
    RETURN true;
END
$$;

-- --- claim --------------------------------------------------------------------------------------------

CREATE FUNCTION @.take(
    of_queue text, most integer, of_session bytea, of_request bigint, first_number integer, of_name bytea, now_at bigint, steady bigint
) RETURNS integer LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    taken integer;
BEGIN
    WITH picked AS MATERIALIZED (
        SELECT id, priority, due_at, seq FROM @.jobs
        WHERE status = 2 AND queue = of_queue AND (expires_at IS NULL OR expires_at > now_at)
        ORDER BY priority DESC, due_at, seq
        LIMIT most
        FOR UPDATE SKIP LOCKED
    ), numbered AS (
        SELECT id, row_number() OVER (ORDER BY priority DESC, due_at, seq) - 1 AS place FROM picked
    )
    UPDATE @.jobs SET
        status = 3, epoch = epoch + 1, session = of_session, request = of_request, number = first_number + place,
        claimed_at = now_at, claimed_steady = steady, worker = of_name, started_at = NULL, progress = NULL, waiting_for = NULL
    FROM numbered WHERE jobs.id = numbered.id;
    GET DIAGNOSTICS taken = ROW_COUNT;
    IF taken > 0 THEN
        PERFORM @.count_move(of_queue, 'claim', 2, 3, taken);
    END IF;
    RETURN taken;
END
$$;

-- The queues that have ready jobs and are not paused, by name: each is found by one step in the index.
CREATE FUNCTION @.ready_queues() RETURNS text[] LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    names text[];
BEGIN
    WITH RECURSIVE found AS (
        (SELECT queue FROM @.jobs WHERE status = 2 ORDER BY queue LIMIT 1)
        UNION ALL
        SELECT (SELECT queue FROM @.jobs WHERE status = 2 AND queue > found.queue ORDER BY queue LIMIT 1)
        FROM found WHERE found.queue IS NOT NULL
    )
    SELECT coalesce(array_agg(queue ORDER BY queue), '{}') INTO names FROM found
    WHERE queue IS NOT NULL AND queue NOT IN (SELECT queue FROM @.paused);
    RETURN names;
END
$$;

-- Leases ready jobs to a session. The rows of the leases of this request; an error of the class TF001 when the session is lost.
CREATE FUNCTION @.claim(wall bigint, steady bigint, of_session bytea, of_request bigint, queues text[], most integer) RETURNS SETOF @.jobs
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    s @.sessions;
    each text;
    taken integer := 0;
    turn integer;
BEGIN
    SELECT * INTO s FROM @.sessions WHERE id = of_session FOR UPDATE;
    IF s.id IS NULL OR s.dead_at IS NOT NULL THEN
        RAISE EXCEPTION 'the session is lost' USING ERRCODE = 'TF001';
    END IF;
    IF of_request < s.request THEN
        RETURN;
    END IF;
    IF of_request > s.request THEN
        UPDATE @.sessions SET request = of_request WHERE id = of_session;
        IF cardinality(queues) = 0 THEN
            queues := @.ready_queues();
            IF cardinality(queues) > 0 THEN
                turn := of_request % cardinality(queues);
                queues := queues[turn + 1 :] || queues[: turn];
            END IF;
        END IF;
        FOREACH each IN ARRAY queues LOOP
            EXIT WHEN taken >= most;
            IF NOT EXISTS (SELECT 1 FROM @.paused WHERE queue = each) THEN
                taken := taken + @.take(each, most - taken, of_session, of_request, taken, @.utf8(s.name), now_at, coalesce(steady, now_at));
            END IF;
        END LOOP;
    END IF;
    RETURN QUERY SELECT * FROM @.jobs WHERE session = of_session AND request = of_request AND status = 3;
END
$$;

-- --- beat ---------------------------------------------------------------------------------------------

-- `requests` and `numbers` name claims; `reported_` and `running_for`, `progress` are the reports. The answer: whether it is lost, how many
-- ghosts there were, which of the named are held (their places, from 1), and which of those are asked to stop.
CREATE FUNCTION @.beat(
    wall bigint, steady bigint, of_session bytea, requests bigint[], numbers integer[], seen bigint,
    reported_requests bigint[], reported_numbers integer[], running_for bigint[], progresses bytea[], leaving boolean,
    OUT is_lost boolean, OUT ghosts integer, OUT held integer[], OUT stopping integer[], OUT rung text
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    s @.sessions;
    j @.jobs;
BEGIN
    steady := coalesce(steady, now_at);
    ghosts := 0;
    PERFORM @.spare_after_outage(steady);
    SELECT * INTO s FROM @.sessions WHERE id = of_session FOR UPDATE;
    is_lost := s.id IS NULL OR s.dead_at IS NOT NULL;
    IF is_lost THEN
        RETURN;
    END IF;
    UPDATE @.sessions SET beat_at = steady, is_spared = false WHERE id = of_session;
    PERFORM @.take_pulse(steady);
    FOR i IN 1 .. cardinality(reported_requests) LOOP
        UPDATE @.jobs SET started_at = now_at - running_for[i], progress = coalesce(progresses[i], progress)
        WHERE session = of_session AND request = reported_requests[i] AND number = reported_numbers[i] AND status = 3;
    END LOOP;
    FOR j IN
        SELECT * FROM @.jobs
        WHERE session = of_session AND status = 3 AND request <= seen AND steady - claimed_steady >= 10000000
            AND NOT EXISTS (SELECT 1 FROM unnest(requests, numbers) AS named (request, number)
                WHERE named.request = jobs.request AND named.number = jobs.number)
        ORDER BY request, number
    LOOP
        PERFORM @.lock_jobs(ARRAY [j.id]);
        SELECT * INTO j FROM @.jobs WHERE id = j.id AND session = of_session AND status = 3;
        IF FOUND THEN
            PERFORM @.wait_again(j, 'ghost', now_at);
            ghosts := ghosts + 1;
        END IF;
    END LOOP;
    IF leaving THEN
        UPDATE @.sessions SET dead_at = now_at WHERE id = of_session;
        FOR j IN SELECT * FROM @.jobs WHERE session = of_session AND status = 3 ORDER BY request, number LOOP
            PERFORM @.lock_jobs(ARRAY [j.id]);
            SELECT * INTO j FROM @.jobs WHERE id = j.id AND session = of_session AND status = 3;
            IF FOUND THEN
                PERFORM @.hand_back(j, true, now_at);
            END IF;
        END LOOP;
    END IF;
    SELECT array_agg(named.place), array_agg(named.place) FILTER (WHERE jobs.cancel_requested IS NOT NULL) INTO held, stopping
    FROM unnest(requests, numbers) WITH ORDINALITY AS named (request, number, place)
    JOIN @.jobs ON jobs.session = of_session AND jobs.request = named.request AND jobs.number = named.number AND jobs.status = 3;
    rung := current_setting('taskflow.rung', true);
END
$$;

CREATE FUNCTION @.workers(wall bigint, steady bigint) RETURNS TABLE (
    session bytea, session_name text, session_ttl bigint, session_about bytea, registered bigint, silent_for bigint, leases bigint, is_dying boolean
) LANGUAGE sql AS $$
    SELECT id, name, ttl, about, registered_at, greatest(0, coalesce(steady, @.wall(wall)) - beat_at), count_of.leases, dead_at IS NOT NULL
    FROM @.sessions, LATERAL (SELECT count(*) AS leases FROM @.jobs WHERE jobs.session = sessions.id AND status = 3) AS count_of
    WHERE dead_at IS NULL OR count_of.leases > 0
$$;

-- Ends or turns runs, item by item; see packing.py for the kinds of verdicts. Answers: whether each is OK.
CREATE FUNCTION @.settle(
    wall bigint, ids bytea[], epochs integer[], sessions bytea[], requests bigint[], numbers integer[], kinds integer[], ran_for bigint[],
    keep_for bigint[], contents bytea[], errors bytea[], afters bigint[], followed integer[], f_ids bytea[], f_queues text[], f_jobs text[],
    f_priorities integer[], f_afters bigint[], f_ats bigint[], f_expiries bigint[], f_keys bytea[], f_conflicts integer[], f_payloads bytea[],
    f_extras bytea[], f_awaited integer[], f_joined bytea[], OUT answers boolean[], OUT rung text
) LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    done bytea[];
    j @.jobs;
    fence bytea;
BEGIN
    PERFORM @.lock_keys(array_agg(key)) FROM (SELECT key FROM @.jobs WHERE id = ANY (ids) UNION SELECT unnest(f_keys)) AS every (key);
    PERFORM 1 FROM @.jobs WHERE id = ANY (ids) ORDER BY id FOR UPDATE;
    done := @.settle_plainly(now_at, ids, epochs, sessions, requests, numbers, kinds, ran_for, keep_for, contents, followed);
    IF cardinality(done) = cardinality(ids) AND (SELECT count(DISTINCT id) FROM unnest(ids) AS id) = cardinality(ids) THEN
        answers := array_fill(true, ARRAY [cardinality(ids)]);
        rung := current_setting('taskflow.rung', true);
        RETURN;
    END IF;
    FOR i IN 1 .. cardinality(ids) LOOP
        fence := int4send(epochs[i]) || sessions[i] || int8send(requests[i]) || int4send(numbers[i]);
        IF ids[i] = ANY (done) THEN
            answers[i] := (SELECT settled = fence FROM @.jobs WHERE id = ids[i]);
            CONTINUE;
        END IF;
        SELECT * INTO j FROM @.jobs WHERE id = ids[i];
        IF NOT FOUND THEN
            answers[i] := false;
        ELSIF j.status = 3 AND j.epoch = epochs[i] AND j.session = sessions[i] AND j.request = requests[i] AND j.number = numbers[i] THEN
            j.settled := fence;
            j.started_at := now_at - ran_for[i];
            PERFORM @.end_run(j, kinds[i], keep_for[i], contents[i], errors[i], afters[i], now_at);
            answers[i] := true;
            IF i = ANY (followed) THEN
                PERFORM @.add_all(
                    now_at, array_agg(f.id ORDER BY f.n), array_agg(f.queue ORDER BY f.n), array_agg(f.job ORDER BY f.n),
                    array_agg(f.priority ORDER BY f.n), array_agg(f.after ORDER BY f.n), array_agg(f.at ORDER BY f.n),
                    array_agg(f.expiry ORDER BY f.n), array_agg(f.key ORDER BY f.n), array_agg(f.conflict ORDER BY f.n),
                    array_agg(f.payload ORDER BY f.n), array_agg(f.extra ORDER BY f.n), array_agg(f.awaits ORDER BY f.n),
                    array_agg(f.joins ORDER BY f.n)
                )
                FROM unnest(followed, f_ids, f_queues, f_jobs, f_priorities, f_afters, f_ats, f_expiries, f_keys, f_conflicts, f_payloads, f_extras,
                    f_awaited, f_joined) WITH ORDINALITY
                    AS f (of, id, queue, job, priority, after, at, expiry, key, conflict, payload, extra, awaits, joins, n)
                WHERE f.of = i;
            END IF;
        ELSE
            answers[i] := j.settled IS NOT DISTINCT FROM fence;
        END IF;
    END LOOP;
    rung := current_setting('taskflow.rung', true);
END
$$;

-- Successes of jobs that nobody waits for by key or join, all at once. The ids of those that were such.
CREATE FUNCTION @.settle_plainly(
    now_at bigint, ids bytea[], epochs integer[], sessions bytea[], requests bigint[], numbers integer[], kinds integer[], ran_for bigint[],
    keep_for bigint[], contents bytea[], followed integer[]
) RETURNS bytea[] LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    settled_ids bytea[];
BEGIN
    WITH given AS (
        SELECT * FROM unnest(ids, epochs, sessions, requests, numbers, kinds, ran_for, keep_for, contents) WITH ORDINALITY
            AS given (id, epoch, session, request, number, kind, ran_for, keep_for, result, place)
        WHERE kind = 1 AND place <> ALL (followed)
    ), matching AS MATERIALIZED ( -- each found by its id: the planner would else compare every lease with every settlement
        SELECT given.* FROM given
        CROSS JOIN LATERAL (SELECT * FROM @.jobs WHERE jobs.id = given.id OFFSET 0) AS found
        WHERE found.status = 3 AND found.epoch = given.epoch AND found.session = given.session
            AND found.request = given.request AND found.number = given.number AND found.key IS NULL AND found.joins IS NULL
    ), done AS (
        UPDATE @.jobs SET
            status = 4, payload = NULL, result = matching.result, session = NULL, request = NULL, number = NULL, reason = NULL,
            crashes = 0, hand_backs = 0, parked_at = NULL, started_at = now_at - matching.ran_for, ended_at = now_at,
            fade_at = now_at + matching.keep_for,
            settled = int4send(matching.epoch) || matching.session || int8send(matching.request) || int4send(matching.number)
        FROM matching
        WHERE jobs.id = matching.id
        RETURNING jobs.id, jobs.queue
    ), counted AS (
        SELECT @.count_move(queue, 'succeed', 3, 4, count(*)) FROM done GROUP BY queue
    ), told AS (
        SELECT @.ring(string_agg('job:' || encode(id, 'hex'), E'\n')) FROM done HAVING count(*) > 0
    )
    SELECT coalesce(array_agg(id), '{}') INTO settled_ids FROM done
    WHERE (SELECT count(*) FROM counted) >= 0 AND (SELECT count(*) FROM told) >= 0;
    RETURN settled_ids;
END
$$;

CREATE FUNCTION @.end_run(j @.jobs, kind integer, keep_for bigint, content bytea, error bytea, after bigint, now_at bigint)
RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF kind < 7 THEN
        j.crashes := 0;
        j.hand_backs := 0;
        j.parked_at := NULL;
    END IF;
    IF error IS NOT NULL THEN -- its time is the last of its fields: a 64-bit number
        j.failures := j.failures + 1;
        j.errors := @.noted(j.errors, error || '\xcf'::bytea || int8send(now_at));
    END IF;
    CASE kind
        WHEN 1 THEN
            j.result := content;
            j.payload := NULL;
            PERFORM @.finish(j, 'succeed', 4, NULL, now_at, keep_for);
        WHEN 2 THEN
            PERFORM @.finish(j, 'fail', 5, content, now_at);
        WHEN 3 THEN
            PERFORM @.finish(j, 'discard', 5, content, now_at);
        WHEN 4 THEN
            PERFORM @.finish(j, 'cancel', 6, content, now_at);
        WHEN 5 THEN
            PERFORM @.wait_again(j, 'retry', now_at, now_at + after);
        WHEN 6 THEN
            j.snoozes := j.snoozes + 1;
            PERFORM @.wait_again(j, 'snooze', now_at, now_at + after);
        WHEN 7 THEN
            j.parked_at := coalesce(j.parked_at, now_at);
            j.waiting_for := content;
            PERFORM @.wait_again(j, 'park', now_at, now_at + after);
        WHEN 8 THEN
            PERFORM @.hand_back(j, content IS NOT NULL, now_at);
    END CASE;
END
$$;

CREATE FUNCTION @.cancel(wall bigint, ids bytea[], OUT statuses integer[], OUT rung text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    j @.jobs;
BEGIN
    PERFORM @.lock_jobs(ids);
    FOR i IN 1 .. cardinality(ids) LOOP
        SELECT * INTO j FROM @.jobs WHERE id = ids[i] AND status < 7 AND (ended_at IS NULL OR fade_at > now_at);
        statuses[i] := coalesce(j.status, -1);
        IF statuses[i] BETWEEN 0 AND 2 THEN
            PERFORM @.finish(j, 'cancel', 6, @.utf8('cancelled'), now_at);
        ELSIF statuses[i] = 3 THEN
            UPDATE @.jobs SET cancel_requested = 'cancelled' WHERE id = j.id;
            PERFORM @.ring('session:' || encode(j.session, 'hex'));
        END IF;
    END LOOP;
    rung := current_setting('taskflow.rung', true);
END
$$;

CREATE FUNCTION @.read(wall bigint, ids bytea[]) RETURNS SETOF @.jobs LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    now_at bigint := @.wall(wall);
BEGIN
    RETURN QUERY SELECT * FROM @.jobs WHERE id = ANY (ids) AND status < 7 AND (ended_at IS NULL OR fade_at > now_at);
END
$$;

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
    next_in := 2000000;
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
    SELECT greatest(1, count(*)) * 2000000 INTO next_in FROM @.sessions WHERE dead_at IS NULL;
    SELECT due_at INTO first_due FROM @.jobs WHERE status = 1 ORDER BY due_at, seq, id LIMIT 1;
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
        SELECT id FROM @.jobs WHERE status = 1 AND due_at <= now_at ORDER BY due_at, seq, id LIMIT most FOR UPDATE SKIP LOCKED
    ), readied AS (
        UPDATE @.jobs SET status = 2 FROM due WHERE jobs.id = due.id RETURNING queue
    ), counted AS (
        SELECT @.count_move(queue, 'due', 1, 2, count(*)), @.ring('queue:' || queue), count(*) AS number FROM readied GROUP BY queue
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
        FOR j IN SELECT * FROM @.jobs WHERE session = s.id AND status = 3 ORDER BY request, number LIMIT most - moved LOOP
            PERFORM @.lock_jobs(ARRAY [j.id]);
            SELECT * INTO j FROM @.jobs WHERE id = j.id AND session = s.id AND status = 3;
            CONTINUE WHEN NOT FOUND;
            IF s.is_spared THEN
                PERFORM @.hand_back(j, true, now_at);
            ELSE
                PERFORM @.crash(j, now_at);
            END IF;
            moved := moved + 1;
        END LOOP;
        IF s.dead_at < now_at - 120000000 AND NOT EXISTS (SELECT 1 FROM @.jobs WHERE session = s.id AND status = 3) THEN
            DELETE FROM @.sessions WHERE id = s.id;
        END IF;
    END LOOP;
    RETURN moved;
END
$$;

CREATE FUNCTION @.crash(j @.jobs, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    waits bigint[] := '{0,5000000,30000000,300000000}';
    wait bigint;
BEGIN
    j.crashes := j.crashes + 1;
    wait := waits[least(j.crashes, cardinality(waits))];
    j.errors := @.noted(j.errors, @.packed_error('taskflow.WorkerLost', j.worker, j.crashes, j.failures + 1, now_at));
    IF j.crashes > 3 AND j.cancel_requested IS NULL THEN
        PERFORM @.poison(j, 'crash', format('its worker was lost %s times in a row while it had this job', j.crashes), now_at);
    ELSE
        PERFORM @.wait_again(j, 'crash', now_at, CASE WHEN wait > 0 THEN now_at + wait END);
    END IF;
END
$$;

-- A msgpack array of type, message, traceback, attempt and time, as verdict.py reads it.
CREATE FUNCTION @.packed_error(kind text, worker bytea, crashes integer, attempt integer, now_at bigint) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT '\x95'::bytea || @.packed_text(@.utf8(kind))
        || @.packed_text(
            @.utf8(split_part('worker %s was lost while it had this job (crash %s)', '%s', 1)) || worker || @.utf8(split_part('worker %s was lost while it had this job (crash %s)', '%s', 2) || crashes)
            || @.utf8(split_part('worker %s was lost while it had this job (crash %s)', '%s', 3))
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
        SELECT * FROM @.jobs WHERE expires_at IS NOT NULL AND status < 3 AND expires_at <= now_at ORDER BY expires_at, id LIMIT most
    LOOP
        PERFORM @.lock_jobs(ARRAY [j.id]);
        SELECT * INTO j FROM @.jobs WHERE id = j.id AND status < 3;
        IF FOUND THEN
            PERFORM @.finish(j, 'expire', 6, @.utf8('expired'), now_at);
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
        SELECT queue, what = '=' || 5 AS failed, sum(n) - 100000 AS over FROM @.totals
        WHERE what IN ('=' || 4, '=' || 6, '=' || 5)
        GROUP BY 1, 2 HAVING sum(n) > 100000 ORDER BY 1, 2
    LOOP
        FOR each IN
            SELECT id FROM @.jobs
            WHERE queue = crowded.queue AND (status = 5) = crowded.failed AND status BETWEEN 4 AND 6
            ORDER BY ended_at, seq LIMIT least(crowded.over, most - moved)
        LOOP
            PERFORM @.bury(each);
            INSERT INTO @.tally (queue, what, n) VALUES (crowded.queue, 'dropped over the cap', 1);
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
        SELECT id, fade_at FROM @.jobs WHERE fade_at <= now_at AND status < 7 ORDER BY fade_at, id LIMIT most FOR UPDATE SKIP LOCKED
    ), buried AS (
        UPDATE @.jobs SET status = 7, payload = NULL, result = NULL, errors = NULL, extras = NULL, reason = NULL, progress = NULL,
            waiting_for = NULL, fade_at = jobs.ended_at + 120000000
        FROM first, @.jobs AS before
        WHERE jobs.id = first.id AND before.id = first.id
        RETURNING jobs.queue, before.status AS status, first.fade_at AS faded_at, jobs.id AS id
    ), counted AS (
        SELECT @.count_move(queue, 'drop', status, NULL, count(*)), count(*) AS number FROM buried GROUP BY queue, status
    )
    SELECT coalesce(sum(number), 0), (SELECT faded_at FROM buried ORDER BY faded_at DESC, id DESC LIMIT 1),
        (SELECT id FROM buried ORDER BY faded_at DESC, id DESC LIMIT 1)
    INTO moved, last_at, last_id FROM counted;
    -- When the limit is used up, of the ids only those go whose turn would have come before the last of them.
    IF moved < most THEN
        DELETE FROM @.jobs WHERE status = 7 AND fade_at <= now_at;
    ELSE
        DELETE FROM @.jobs WHERE status = 7 AND (fade_at, id) < (last_at, last_id);
    END IF;
    RETURN moved;
END
$$;

-- What stands in each queue: name, whether it is paused, counts by status, due time of the oldest ready and of the next scheduled job.
CREATE FUNCTION @.queues() RETURNS TABLE (name text, is_paused boolean, counts bigint[], ready_since bigint, next_due bigint) LANGUAGE sql AS $$
    SELECT known.queue, EXISTS (SELECT 1 FROM @.paused WHERE paused.queue = known.queue),
        (SELECT array_agg(coalesce(counted.n, 0) ORDER BY code) FROM generate_series(0, 6) AS code
            LEFT JOIN @.counted ON counted.queue = known.queue AND counted.what = '=' || code),
        (SELECT min(due_at) FROM @.jobs WHERE status = 2 AND jobs.queue = known.queue),
        (SELECT min(due_at) FROM @.jobs WHERE status = 1 AND jobs.queue = known.queue)
    FROM (SELECT queue FROM @.counted UNION SELECT queue FROM @.paused) AS known
$$;

CREATE FUNCTION @.is_chosen(
    j @.jobs, now_at bigint, of_queue text, of_job text, statuses integer[], ended_before bigint, only_poison boolean
) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT j.status < 7 AND (j.ended_at IS NULL OR j.fade_at > now_at)
        AND (of_queue IS NULL OR j.queue = of_queue)
        AND (of_job IS NULL OR j.job = of_job)
        AND (statuses IS NULL OR j.status = ANY (statuses))
        AND (ended_before IS NULL OR j.ended_at <= now_at - ended_before)
        AND (NOT only_poison OR j.is_poison)
$$;

CREATE FUNCTION @.browse(
    wall bigint, of_queue text, of_job text, statuses integer[], ended_before bigint, only_poison boolean, before_id bytea, most integer
) RETURNS SETOF @.jobs LANGUAGE sql AS $$
    SELECT * FROM @.jobs
    WHERE (before_id IS NULL OR id < before_id)
        AND @.is_chosen(jobs, @.wall(wall), of_queue, of_job, statuses, ended_before, only_poison)
    ORDER BY id DESC LIMIT most
$$;

CREATE FUNCTION @.purge(
    wall bigint, of_queue text, of_job text, statuses integer[], ended_before bigint, only_poison boolean, most integer,
    OUT purged integer, OUT rung text
) LANGUAGE plpgsql AS $$
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
        WHERE status <> 3 AND @.is_chosen(jobs, now_at, of_queue, of_job, statuses, ended_before, only_poison)
        ORDER BY seq LIMIT most
    ) AS chosen;
    PERFORM @.lock_jobs(ids);
    FOREACH each IN ARRAY coalesce(ids, '{}') LOOP
        SELECT * INTO j FROM @.jobs WHERE id = each AND status <> 3;
        CONTINUE WHEN NOT FOUND;
        IF j.status < 3 THEN
            PERFORM @.finish(j, 'cancel', 6, @.utf8('purged'), now_at);
        END IF;
        PERFORM @.bury(each);
        purged := purged + 1;
    END LOOP;
    rung := current_setting('taskflow.rung', true);
END
$$;

-- An operator's retry. For each: "ok", "unknown", "live", "succeeded" or "key taken".
CREATE FUNCTION @.redo(wall bigint, ids bytea[], OUT answers text[], OUT rung text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    j @.jobs;
BEGIN
    PERFORM @.lock_jobs(ids);
    FOR i IN 1 .. cardinality(ids) LOOP
        SELECT * INTO j FROM @.jobs WHERE id = ids[i] AND status < 7 AND (ended_at IS NULL OR fade_at > now_at);
        IF NOT FOUND THEN
            answers[i] := 'unknown';
        ELSIF j.ended_at IS NULL THEN
            answers[i] := 'live';
        ELSIF j.status = 4 THEN
            answers[i] := 'succeeded';
        ELSIF j.key IS NOT NULL AND EXISTS (SELECT 1 FROM @.jobs WHERE key = j.key AND status <= 3) THEN
            answers[i] := 'key taken';
        ELSE
            j.due_at := now_at;
            j.failures := 0; j.crashes := 0; j.snoozes := 0; j.hand_backs := 0;
            j.awaits := NULL; j.behind := NULL; j.expires_at := NULL; j.ended_at := NULL; j.fade_at := NULL; j.parked_at := NULL;
            j.started_at := NULL; j.cancel_requested := NULL; j.reason := NULL; j.progress := NULL; j.worker := NULL; j.is_poison := NULL;
            PERFORM @.enter(j, 'operator''s retry', now_at);
            answers[i] := 'ok';
        END IF;
    END LOOP;
    rung := current_setting('taskflow.rung', true);
END
$$;

CREATE FUNCTION @.pause(of_queue text) RETURNS void LANGUAGE sql AS $$
    INSERT INTO @.paused (queue) VALUES (of_queue) ON CONFLICT DO NOTHING
$$;

CREATE FUNCTION @.resume(of_queue text) RETURNS void LANGUAGE sql AS $$
    DELETE FROM @.paused WHERE queue = of_queue
$$;

-- Tells listeners, once what they are told of is committed. Of the jobs that have ended only those that somebody waits for.
CREATE FUNCTION @.tell(channel text, topics text[], ended bytea[]) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    words text;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    WITH awaited AS (DELETE FROM @.awaited WHERE id = ANY (ended) RETURNING 'job:' || encode(id, 'hex') AS topic)
    SELECT string_agg(topic, E'\n') INTO words FROM (SELECT topic FROM awaited UNION ALL SELECT unnest(topics)) AS every (topic);
    IF words IS NOT NULL THEN
        PERFORM pg_notify(channel, CASE WHEN length(words) < 7000 THEN words ELSE '*' END);
    END IF;
END
$$;

-- Somebody waits for these to end. The ids of those that need not be waited for.
CREATE FUNCTION @.await(wall bigint, ids bytea[], patience bigint) RETURNS void LANGUAGE sql AS $$
    INSERT INTO @.awaited (id, until_when) SELECT DISTINCT id, @.wall(wall) + patience FROM unnest(ids) AS id
    ON CONFLICT (id) DO UPDATE SET until_when = excluded.until_when
$$;

CREATE FUNCTION @.already(ids bytea[]) RETURNS SETOF bytea LANGUAGE sql AS $$
    SELECT given.id FROM unnest(ids) AS given (id)
    WHERE NOT EXISTS (SELECT 1 FROM @.jobs WHERE jobs.id = given.id AND status <= 3)
$$;

-- Of these topics those under which there is something already.
CREATE FUNCTION @.there(topics text[]) RETURNS SETOF text LANGUAGE sql SET enable_seqscan = off AS $$
    SELECT topic FROM unnest(topics) AS topic
    WHERE CASE
        WHEN topic = 'queues' THEN EXISTS (SELECT 1 FROM @.jobs WHERE status = 2)
        WHEN topic = 'due' THEN EXISTS (SELECT 1 FROM @.jobs WHERE status = 1)
        WHEN topic LIKE 'queue:%' THEN EXISTS (SELECT 1 FROM @.jobs WHERE status = 2 AND queue = substr(topic, 7))
        WHEN topic LIKE 'session:%' THEN EXISTS (
            SELECT 1 FROM @.jobs WHERE status = 3 AND session = decode(substr(topic, 9), 'hex') AND cancel_requested IS NOT NULL
        )
        ELSE false
    END
$$;

CREATE FUNCTION @.events() RETURNS TABLE (queue text, what text, n bigint) LANGUAGE sql AS $$
    SELECT queue, what, n FROM @.counted WHERE what NOT LIKE '=%'
$$;

CREATE FUNCTION @.examined() RETURNS TABLE (version text, fsync text, synchronous_commit text, size bigint) LANGUAGE sql AS $$
    SELECT current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit'),
        pg_total_relation_size('@.jobs'::regclass)
$$;

INSERT INTO @.meta (name, value) VALUES ('version', 1);
