-- Wake-ups: first the notes of listeners, which show what each waits for; then the news that an operation gathers, and its notifications.
--
-- Each listener has its own channel, and a sender notifies as many as there is work for.
--
-- A listener writes its notes to `idle` and `awaited`. A sender reads these notes in notify(), after the commit of its operation. If it
-- finds none, it sends nothing. A note and a job may be written at the same moment, so that neither transaction sees the other. Therefore a
-- transaction that searches for notes holds a shared lock until its commit, and a listener that has just written a note searches for jobs
-- again until that lock is free.

-- Returns true if this transaction sees the notes as they were when it began, and would fail if it changed a note that has changed since.
CREATE FUNCTION @.has_fixed_snapshot() RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT current_setting('transaction_isolation') NOT LIKE 'read %'
$$;

CREATE FUNCTION @.listener_registration_lock() RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT hashtextextended('@.listener_registration', 0)
$$;

-- Replaces a listener's `former` notes by a new one, with a row for each queue. `note` is its number, or 0 if the listener waits for
-- nothing. Each note has a new number, so that replacing one reads no dead rows, which a long transaction keeps.
CREATE FUNCTION @.record_idle(of_listener text, former bigint[], note bigint, topics text[]) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
BEGIN
    DELETE FROM @.idle AS i WHERE i.listener = of_listener AND i.note = ANY (former);
    IF note > 0 THEN
        INSERT INTO @.idle AS i (listener, note, topic, since) SELECT DISTINCT of_listener, note, topic, @.wall(NULL) FROM unnest(topics) AS topic ORDER BY 3;
    END IF;
END
$$;

-- Records what a listener waits for: queues, due jobs, a session's cancellations, and the ends of jobs.
CREATE FUNCTION @.record_waiting(
    wall bigint, of_listener text, former bigint[], note bigint, topics text[], ids bytea[], awaited_for bigint
) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
    SET LOCAL synchronous_commit = off;
    UPDATE @.sessions SET listener = of_listener -- first: a claim locks its session before its notes
    WHERE id = ANY (ARRAY(SELECT decode(substr(topic, 9), 'hex') FROM unnest(topics) AS topic WHERE topic LIKE 'session:%'))
        AND listener IS DISTINCT FROM of_listener;
    IF note > 0 THEN
        PERFORM @.record_idle(of_listener, former, note, ARRAY(SELECT topic FROM unnest(topics) AS topic WHERE topic LIKE 'queue%'));
    END IF;
    IF 'due' = ANY (topics) THEN -- renewed once a minute, always as number 0
        INSERT INTO @.idle (listener, note, topic, since) VALUES (of_listener, 0, 'due', @.wall(NULL))
        ON CONFLICT (listener, note, topic) DO UPDATE SET since = excluded.since;
    END IF;
    INSERT INTO @.awaited (id, listener, until_when) SELECT DISTINCT given.id, of_listener, @.wall(wall) + awaited_for FROM unnest(ids) AS given (id)
    ON CONFLICT (id, listener) DO UPDATE SET until_when = excluded.until_when;
END
$$;

-- Reads jobs, and records that a listener waits for the ends of the `awaited` ones that have not ended.
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

-- Returns the topics and jobs for which something has already happened. `may_have_missed`: a transaction that has searched for notes is
-- still open, and may add jobs. The plans are made once, perhaps when there are few jobs, so they must not scan whole tables.
CREATE FUNCTION @.look_for(topics text[], ids bytea[], OUT available text[], OUT ended bytea[], OUT may_have_missed boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off AS $$
BEGIN
    -- In one expression, so that no cancellation leaves the lock taken: users' commits would wait for it.
    may_have_missed := CASE
        WHEN pg_try_advisory_lock(@.listener_registration_lock()) THEN NOT pg_advisory_unlock(@.listener_registration_lock())
        ELSE true
    END;
    available := ARRAY(
        SELECT topic FROM unnest(topics) AS topic
        WHERE CASE
            WHEN topic = 'queues' THEN EXISTS (
                SELECT 1 FROM @.ready_marks() AS m
                WHERE NOT @.is_paused(m.queue) AND (@.first_ready(m.queue, m.rank, m.at, m.seq)).due_at IS NOT NULL
            )
            WHEN topic = 'due' THEN EXISTS (
                SELECT 1 FROM @.jobs
                WHERE (@IS_DUE)
                    AND due_at >= (SELECT (@.newest_mark('due')).at)
            ) OR EXISTS (SELECT 1 FROM @.schedules WHERE offer_at IS NOT NULL) OR EXISTS (SELECT 1 FROM @.jobs WHERE flags & @ARRIVING <> 0)
                OR EXISTS (SELECT 1 FROM @.jobs WHERE @IS_TO_ADMIT) OR EXISTS (SELECT 1 FROM @.inbox)
            WHEN topic LIKE 'queue:%' THEN NOT @.is_paused(substr(topic, 7))
                AND EXISTS (SELECT 1 FROM @.ready_marks(substr(topic, 7)) AS m WHERE (@.first_ready(m.queue, m.rank, m.at, m.seq)).due_at IS NOT NULL)
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

-- Returns true if a listener has a note that it waits for jobs of a queue, or for due jobs. Reading begins with the newest note, because a
-- long transaction keeps the older versions of renewed notes. (An EXISTS would ignore the ORDER BY.)
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

-- Returns the time of the oldest valid notes. Older ones belong to listeners that are gone. Reading begins here, so that dead rows that a
-- long transaction keeps are not read again and again.
CREATE FUNCTION @.noted_since() RETURNS bigint LANGUAGE sql AS $$
    SELECT @.wall(NULL) - P.NOTE_TTL
$$;

-- Returns two of the listeners that wait for jobs of a queue: the one that has waited longest and the one that came last, because one of
-- them may be gone. For the end of a job, returns all that await it.
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
            (SELECT listener FROM @.idle WHERE topic = each.topic AND NOT is_nudged AND since >= from_when ORDER BY since LIMIT 1)
            UNION ALL
            (SELECT listener FROM @.idle WHERE topic = each.topic AND NOT is_nudged AND since >= from_when ORDER BY since DESC LIMIT 1)
        ) AS found LIMIT 2
    );
    IF cardinality(listeners) = 0 THEN
        listeners := ARRAY( -- each topic by itself: for both, statistics of an empty table would make the plan use another index
            SELECT found.listener FROM (VALUES (of_topic), ('queues')) AS each (topic) CROSS JOIN LATERAL (
                SELECT listener, since FROM @.idle WHERE topic = each.topic AND since >= from_when ORDER BY since DESC LIMIT 1
            ) AS found ORDER BY found.since DESC LIMIT 1
        );
    END IF;
    RETURN listeners;
END
$$;

-- --- the news of an operation -------------------------------------------------------------------------------------

-- Adds a topic to announce after the commit, with the number of jobs. A setting of the transaction gathers the topics, one per line. If
-- they exceed one notification, it becomes "*", which means everything, because each addition copies the whole text. Only another program
-- can have given a queue a name with a line break.
CREATE FUNCTION @.add_wakeup(topic text, number bigint DEFAULT 1) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    so_far CONSTANT text := current_setting('taskflow.wakeups', true);
BEGIN
    IF so_far <> '*' IS NOT FALSE THEN
        topic := CASE WHEN position(E'\n' IN topic) > 0 THEN 'queues' ELSE topic END;
        PERFORM set_config(
            'taskflow.wakeups',
            CASE WHEN length(so_far) > 7000 THEN '*' ELSE concat_ws(E'\n', nullif(so_far, ''), number || ' ' || topic) END,
            true
        );
    END IF;
END
$$;

CREATE FUNCTION @.topic_in(line text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT substr(line, position(' ' IN line) + 1)
$$;

-- Returns lines of numbers and topics; the number is 0 if no listener waits for such jobs.
CREATE FUNCTION @.wakeups() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    so_far CONSTANT text := current_setting('taskflow.wakeups', true);
BEGIN
    IF so_far = '' IS NOT FALSE OR so_far = '*' THEN
        RETURN so_far;
    ELSIF position(E'\n' IN so_far) = 0 THEN
        RETURN CASE WHEN @.is_awaited(@.topic_in(so_far)) THEN so_far ELSE '0 ' || @.topic_in(so_far) END;
    END IF;
    RETURN (
        SELECT string_agg(concat(CASE WHEN @.is_awaited(topic) THEN number ELSE 0 END, ' ', topic), E'\n')
        FROM (
            SELECT @.topic_in(line) AS topic, sum(split_part(line, ' ', 1)::bigint) AS number
            FROM unnest(string_to_array(so_far, E'\n')) AS line GROUP BY 1
        ) AS each
    );
END
$$;

-- Returns true if a listener waits for this topic. Jobs of a paused queue are no news.
CREATE FUNCTION @.is_awaited(of_topic text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF of_topic LIKE 'job:%' OR of_topic LIKE 'session:%' OR @.has_fixed_snapshot()
        OR NOT pg_try_advisory_xact_lock_shared(@.listener_registration_lock())
    THEN
        RETURN true; -- the lock is taken: a listener searches at this moment
    END IF;
    RETURN @.has_note(of_topic) AND NOT @.is_paused(substr(of_topic, 7));
END
$$;

-- Nudges again for jobs that have been ready for a moment, because a nudge may have reached a listener that is gone, or has no room.
CREATE FUNCTION @.nudge_again(now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM @.add_wakeup('queue:' || queue) FROM (
        SELECT DISTINCT queue FROM @.ready_marks() AS m WHERE @.has_note('queue:' || m.queue) AND (@.first_ready(m.queue, m.rank, m.at, m.seq)).due_at < now_at - R.pass_on_timeout LIMIT 10
    ) AS left_over;
END
$$;

-- --- notifying ------------------------------------------------------------------------------------------------

-- Notifies `number` listeners of jobs in a queue, beginning with those that came last, whose notes are the quickest to find. A nudged
-- listener gets no further nudge through any of its notes until it claims, because that claim may take all of these jobs.
CREATE FUNCTION @.nudge(of_topic text, number bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    from_when CONSTANT bigint := @.noted_since();
    place text;
    known integer;
    found text[];
    notes bigint[];
    notified text[] := '{}';
BEGIN
    FOREACH place IN ARRAY ARRAY[of_topic, 'queues'] LOOP
        LOOP -- again if a listener was found twice: while it replaces its note, it may have two
            known := cardinality(notified);
            EXIT WHEN known >= number;
            WITH nudged AS (
                UPDATE @.idle SET is_nudged = true WHERE ctid = ANY (ARRAY(
                    SELECT ctid FROM @.idle WHERE topic = place AND NOT is_nudged AND since >= from_when
                    ORDER BY since DESC LIMIT number - known FOR UPDATE SKIP LOCKED
                )) RETURNING listener, note
            )
            SELECT array_agg(listener), array_agg(note) INTO found, notes FROM nudged;
            EXIT WHEN found IS NULL;
            notified := ARRAY(SELECT DISTINCT unnest(notified || found));
            UPDATE @.idle SET is_nudged = true WHERE ctid = ANY (ARRAY(
                SELECT i.ctid FROM unnest(found, notes) AS f (listener, note)
                CROSS JOIN LATERAL ( -- its two notes have neighbouring numbers, and dead versions of older ones are not read
                    SELECT ctid FROM @.idle WHERE idle.listener = f.listener AND NOT is_nudged
                        AND idle.note BETWEEN greatest(f.note, 2) - 2 AND least(f.note, P.LATEST) + 2
                    FOR UPDATE SKIP LOCKED
                ) AS i
            ));
            EXIT WHEN cardinality(notified) = known + cardinality(found);
        END LOOP;
    END LOOP;
    FOREACH place IN ARRAY ARRAY[of_topic, 'queues'] LOOP -- listeners nudged before may be claiming, and have missed these jobs
        EXIT WHEN cardinality(notified) >= number;
        notified := notified || ARRAY(
            SELECT listener FROM @.idle WHERE topic = place AND is_nudged AND since >= from_when AND listener <> ALL (notified)
            ORDER BY since DESC LIMIT number - cardinality(notified)
        );
    END LOOP;
    PERFORM pg_notify(listener, of_topic) FROM unnest(notified) AS listener;
END
$$;

-- Notifies listeners of committed changes: the number of jobs for each topic, and the ends of jobs, with their records if these are small.
CREATE FUNCTION @.notify(wall bigint, topics text[], numbers bigint[], ended bytea[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    from_when CONSTANT bigint := @.noted_since();
BEGIN
    SET LOCAL synchronous_commit = off;
    FOR i IN 1 .. cardinality(topics) LOOP
        IF topics[i] LIKE 'queue:%' THEN
            PERFORM @.nudge(topics[i], numbers[i]);
        ELSIF topics[i] = 'due' THEN
            PERFORM pg_notify(listener, 'due') FROM (
                SELECT listener FROM @.idle WHERE topic = 'due' AND since >= from_when ORDER BY since DESC LIMIT R.max_nudged_when_due
            ) AS newest;
        ELSIF topics[i] LIKE 'session:%' THEN
            PERFORM pg_notify(listener, topics[i]) FROM @.sessions WHERE id = decode(substr(topics[i], 9), 'hex') AND listener IS NOT NULL;
        ELSIF topics[i] = '*' THEN
            PERFORM pg_notify(listener, '*') FROM (SELECT listener FROM @.awaited UNION SELECT listener FROM @.idle WHERE since >= from_when) AS known;
        END IF;
    END LOOP;
    IF cardinality(ended) > 0 THEN
        PERFORM @.tell_ended(ended, now_at);
    END IF;
END
$$;

-- Sends one message to each listener that awaits one of these jobs. It leaves out records that do not fit, and the listener reads them.
CREATE FUNCTION @.tell_ended(ended bytea[], now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    each record;
BEGIN
    FOR each IN
        WITH gone AS (
            DELETE FROM @.awaited WHERE id = ANY (ended) RETURNING id, listener
        ), packed_ends AS (
            SELECT id, 'job:' || encode(id, 'hex') AS topic, (
                SELECT translate(encode(record_send(packed), 'base64'), E'\n', '') FROM @.load_jobs(ARRAY[awaited.id], true) AS packed
                WHERE status BETWEEN S.SUCCEEDED AND S.CANCELLED AND fade_at > now_at AND octet_length(record_send(packed)) <= P.MAX_NOTIFIED_BYTES
            ) AS packed FROM (SELECT DISTINCT id FROM gone) AS awaited
        )
        SELECT listener, string_agg(topic, E'\n') AS topics, string_agg(concat_ws(' ', topic, packed), E'\n') AS words
        FROM gone JOIN packed_ends USING (id) GROUP BY listener
    LOOP
        PERFORM pg_notify(each.listener, CASE WHEN length(each.words) < 7900 THEN each.words WHEN length(each.topics) < 7900 THEN each.topics ELSE '*' END);
    END LOOP;
END
$$;

-- Makes the commit of a caller's transaction announce a topic: "due", or the end of a job. Returns false if the commit already does.
-- Otherwise the calling function writes a late row of tally, whose trigger announces all topics: see on_commit().
CREATE FUNCTION @.announce_at_commit(topic text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    others CONSTANT text := coalesce(current_setting('taskflow.at_commit', true), '');
BEGIN
    IF position(topic IN others) > 0 THEN
        RETURN false;
    END IF;
    PERFORM set_config('taskflow.at_commit', concat_ws(E'\n', nullif(others, ''), topic), true);
    RETURN true;
END
$$;

-- Notifies listeners, as a user's transaction commits, of its jobs in a queue and of the topics that announce_at_commit() has left in a
-- setting. It writes nothing. It sends nothing if no listener waits, because all such commits compete for the lock of NOTIFY. Of several
-- transactions that commit together, only one notifies for a queue, and the listener searches again until the others have committed. If the
-- registration lock is taken, by a listener that searches at this moment or by another program, it notifies every listener without waiting.
CREATE FUNCTION @.notify_at_commit(of_topic text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    others CONSTANT text := current_setting('taskflow.at_commit', true);
    sees_notes CONSTANT boolean := NOT @.has_fixed_snapshot() AND pg_try_advisory_xact_lock_shared(@.listener_registration_lock());
BEGIN
    IF of_topic IS NOT NULL THEN
        PERFORM @.notify_topic(of_topic, sees_notes);
    END IF;
    IF others <> '' THEN
        PERFORM set_config('taskflow.at_commit', '', true);
        PERFORM @.notify_topic(topic, sees_notes) FROM unnest(string_to_array(left(others, P.MAX_BYTES), E'\n')) AS topic
        WHERE topic ~ '^(due|job:[0-9a-f]{32})$'; -- the sender's role can write the setting
    END IF;
END
$$;

CREATE FUNCTION @.notify_topic(of_topic text, sees_notes boolean) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    listeners text[];
BEGIN
    IF NOT sees_notes THEN -- every listener listens on the channel with the schema's name
        listeners := ARRAY[(parse_ident('@.jobs'))[1]];
    ELSIF of_topic LIKE 'job:%' OR @.has_note(of_topic) THEN
        listeners := @.listeners_for(of_topic);
    END IF;
    IF cardinality(listeners) > 0 AND (of_topic LIKE 'job:%' OR pg_try_advisory_xact_lock(hashtextextended('@.notifying ' || of_topic, 0))) THEN
        PERFORM pg_notify(listener, of_topic || E'\nagain') FROM unnest(listeners) AS listener;
    END IF;
END
$$;
