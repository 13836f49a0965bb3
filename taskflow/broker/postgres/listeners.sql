-- Listeners: which one waits for what. Each listener has its own channel, and a sender notifies as many as there is work for.
--
-- A listener notes itself in `idle` and `awaited`. A sender reads these notes in notify(), after the commit of its verb. If a verb finds no
-- note, it sends nothing. A note and a job may be written at the same moment, so that neither transaction sees the other. Therefore a
-- transaction that looks for notes holds a shared lock until its commit. A listener that has just noted itself looks for jobs again until
-- that lock is free.

CREATE FUNCTION @.listener_registration_lock() RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT hashtextextended('@.listener_registration', 0)
$$;

CREATE FUNCTION @.note_idle(of_listener text, topics text[]) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO @.idle (listener, topic, since) SELECT DISTINCT of_listener, each.topic, @.wall(NULL) FROM unnest(topics) AS each (topic) ORDER BY 2
    ON CONFLICT (listener, topic) DO UPDATE SET since = excluded.since, nudged_at = NULL, nudged_for = NULL;
END
$$;

-- Notes what a listener waits for: queues, what is due, a session's cancellations, and the ends of jobs.
CREATE FUNCTION @.note_waiting(wall bigint, of_listener text, topics text[], ids bytea[], awaited_for bigint) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
    SET LOCAL synchronous_commit = off;
    UPDATE @.sessions SET listener = of_listener -- first: a claim locks its session before its notes
    WHERE id = ANY (ARRAY(SELECT decode(substr(topic, 9), 'hex') FROM unnest(topics) AS topic WHERE topic LIKE 'session:%'))
        AND listener IS DISTINCT FROM of_listener;
    PERFORM @.note_idle(of_listener, ARRAY(SELECT topic FROM unnest(topics) AS topic WHERE topic NOT LIKE 'session:%'));
    INSERT INTO @.awaited (id, listener, until_when) SELECT DISTINCT given.id, of_listener, @.wall(wall) + awaited_for FROM unnest(ids) AS given (id)
    ON CONFLICT (id, listener) DO UPDATE SET until_when = excluded.until_when;
END
$$;

-- Reads jobs, and notes that a listener waits for the ends of those among them that it has `awaited`, and that have not ended.
CREATE FUNCTION @.load_awaiting(wall bigint, ids bytea[], awaited bytea[], of_listener text, awaited_for bigint) RETURNS SETOF @.row
LANGUAGE plpgsql @SETTINGS AS $$
#variable_conflict use_column
BEGIN
    SET LOCAL synchronous_commit = off;
    INSERT INTO @.awaited (id, listener, until_when)
    SELECT DISTINCT given.id, of_listener, @.wall(wall) + awaited_for FROM unnest(awaited) AS given (id)
    WHERE EXISTS (SELECT 1 FROM @.jobs WHERE jobs.id = given.id AND jobs.status <= S.RUNNING OFFSET 0)
    ON CONFLICT (id, listener) DO UPDATE SET until_when = excluded.until_when;
    RETURN QUERY SELECT * FROM @.look(wall, ids, '{}', true, false);
END
$$;

CREATE FUNCTION @.forget_listener(of_listener text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    SET LOCAL synchronous_commit = off;
    DELETE FROM @.idle WHERE listener = of_listener;
END
$$;

-- Returns those topics and those jobs for which something has already happened. `may_have_missed`: a transaction that has looked for notes
-- has not ended, and may bring something. The plans are made once, perhaps when there are few jobs: they must not read many from end to
-- end.
CREATE FUNCTION @.look_for(topics text[], ids bytea[], OUT available text[], OUT ended bytea[], OUT may_have_missed boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
BEGIN
    -- In one expression, so that no cancellation comes between: users' commits would wait for this lock.
    may_have_missed := CASE
        WHEN pg_try_advisory_lock(@.listener_registration_lock()) THEN NOT pg_advisory_unlock(@.listener_registration_lock())
        ELSE true
    END;
    available := ARRAY(
        SELECT topic FROM unnest(topics) AS topic
        WHERE CASE
            WHEN topic = 'queues' THEN EXISTS (
                SELECT 1 FROM @.ready_marks() AS m
                WHERE NOT @.is_paused(m.queue) AND (@.first_ready(m)).due_at IS NOT NULL
            )
            WHEN topic = 'due' THEN EXISTS (
                SELECT 1 FROM @.jobs
                WHERE (status = S.SCHEDULED OR status = S.HELD AND awaits <= 0 AND flags & @BEHIND = 0)
                    AND due_at >= (SELECT (@.newest_mark('due')).at)
            ) OR EXISTS (SELECT 1 FROM @.schedules WHERE offer_at IS NOT NULL) OR EXISTS (SELECT 1 FROM @.jobs WHERE flags & @ARRIVING <> 0)
                OR EXISTS (SELECT 1 FROM @.inbox)
            WHEN topic LIKE 'queue:%' THEN NOT @.is_paused(substr(topic, 7))
                AND EXISTS (SELECT 1 FROM @.ready_marks(substr(topic, 7)) AS m WHERE (@.first_ready(m)).due_at IS NOT NULL)
            WHEN topic LIKE 'session:%' THEN EXISTS (
                SELECT 1 FROM @.jobs WHERE status = S.RUNNING AND flags & @MARKED <> 0 AND session = decode(substr(topic, 9), 'hex')
                OFFSET 0 -- a look-up by the session, not a list of all sessions
            )
            ELSE false
        END
    );
    ended := ARRAY(
        SELECT given.id FROM unnest(ids) AS given (id)
        WHERE NOT EXISTS (SELECT 1 FROM @.jobs WHERE jobs.id = given.id AND jobs.status <= S.RUNNING OFFSET 0)
    );
END
$$;

-- Returns true if a listener has noted that it waits for jobs of a queue, or for what is due. Reading begins with the newest note, because
-- a long transaction keeps the older versions of those that were written again. (An EXISTS would ignore the ORDER BY.)
CREATE FUNCTION @.has_note(of_topic text) RETURNS boolean LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    from_when CONSTANT bigint := @.noted_since();
BEGIN
    RETURN coalesce(
        (SELECT true FROM @.idle WHERE topic = of_topic AND since >= from_when ORDER BY since DESC LIMIT 1),
        (SELECT true FROM @.idle WHERE of_topic <> 'due' AND topic = 'queues' AND since >= from_when ORDER BY since DESC LIMIT 1),
        false
    );
END
$$;

-- Older notes are of listeners that are gone. Reading begins here, so that rows that cannot be cleaned away while a long transaction is
-- open are not read again and again.
CREATE FUNCTION @.noted_since() RETURNS bigint LANGUAGE sql AS $$
    SELECT @.wall(NULL) - P.NOTED_FOR
$$;

-- Returns two of those that wait for jobs of a queue: the one that has waited longest and the one that came last, as one of them may be
-- gone.
CREATE FUNCTION @.listeners_for(of_topic text) RETURNS text[] LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    from_when CONSTANT bigint := @.noted_since();
    listeners text[];
BEGIN
    IF of_topic LIKE 'job:%' THEN
        RETURN ARRAY(SELECT listener FROM @.awaited WHERE id = decode(substr(of_topic, 5), 'hex'));
    ELSIF @.is_paused(substr(of_topic, 7)) THEN
        RETURN '{}';
    END IF;
    listeners := ARRAY(
        SELECT DISTINCT found.listener
        FROM (VALUES (of_topic), (CASE WHEN of_topic <> 'due' THEN 'queues' END)) AS each (topic)
        CROSS JOIN LATERAL (
            (SELECT listener FROM @.idle WHERE topic = each.topic AND nudged_at IS NULL AND since >= from_when ORDER BY since LIMIT 1)
            UNION ALL
            (SELECT listener FROM @.idle WHERE topic = each.topic AND nudged_at IS NULL AND since >= from_when ORDER BY since DESC LIMIT 1)
        ) AS found LIMIT 2
    );
    IF cardinality(listeners) = 0 THEN
        listeners := ARRAY( -- by each topic alone: with both, statistics of an empty table lead the plan to another index
            SELECT found.listener FROM (VALUES (of_topic), ('queues')) AS each (topic) CROSS JOIN LATERAL (
                SELECT listener, since FROM @.idle WHERE topic = each.topic AND since >= from_when ORDER BY since DESC LIMIT 1
            ) AS found ORDER BY found.since DESC LIMIT 1
        );
    END IF;
    RETURN listeners;
END
$$;
