-- Wake-ups: the news that a verb gathers, and the notifications of listeners, whose notes are in listeners.sql.

-- --- what a verb has to tell --------------------------------------------------------------------------------

-- Adds a topic to announce after the commit, with the number of jobs. A setting of the transaction gathers them, a line for each. If they
-- exceed one notification, it becomes "*", which means everything: each addition copies the whole text. A queue's name with a line break is
-- another program's.
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

-- Returns true if a listener waits for such news. Jobs of a paused queue are none.
CREATE FUNCTION @.is_awaited(of_topic text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF of_topic LIKE 'job:%' OR of_topic LIKE 'session:%' OR of_topic = 'late' OR @.has_fixed_snapshot()
        OR NOT pg_try_advisory_xact_lock_shared(@.listener_registration_lock())
    THEN
        RETURN true; -- without that lock: a listener looks at this moment
    END IF;
    RETURN @.has_note(of_topic) AND NOT @.is_paused(substr(of_topic, 7));
END
$$;

-- Lets notify() pass on nudges that no claim has followed in time.
CREATE FUNCTION @.pass_on_late_nudges(now_at bigint) RETURNS void LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_column
BEGIN
    PERFORM @.add_wakeup('late') WHERE EXISTS (
        SELECT 1 FROM @.idle WHERE nudged_at IS NOT NULL AND nudged_at BETWEEN now_at - P.NOTED_FOR AND now_at - R.passed_on_after AND nudged_for IS NOT NULL
    );
END
$$;

-- --- notifying ------------------------------------------------------------------------------------------------

-- Tells `number` listeners that there are jobs in a queue: first those that came last, whose notes are the quickest to find. Until a
-- listener claims, none of its queues nudges it, because that claim may take the jobs of all.
CREATE FUNCTION @.nudge(of_topic text, number bigint, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    from_when CONSTANT bigint := @.noted_since();
    place text;
    just_notified text[];
    notified text[] := '{}';
BEGIN
    FOREACH place IN ARRAY ARRAY[of_topic, 'queues'] LOOP
        EXIT WHEN cardinality(notified) >= number;
        WITH nudged AS (
            UPDATE @.idle SET nudged_at = now_at, nudged_for = of_topic
            WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM @.idle WHERE topic = place AND nudged_at IS NULL AND since >= from_when
                ORDER BY since DESC LIMIT number - cardinality(notified) FOR UPDATE SKIP LOCKED
            ))
            RETURNING listener
        )
        SELECT array_agg(listener) INTO just_notified FROM nudged;
        IF just_notified IS NOT NULL THEN
            notified := notified || just_notified;
            UPDATE @.idle SET nudged_at = now_at WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM @.idle WHERE listener = ANY (just_notified) AND topic <> 'due' AND nudged_at IS NULL FOR UPDATE SKIP LOCKED
            ));
        END IF;
    END LOOP;
    FOREACH place IN ARRAY ARRAY[of_topic, 'queues'] LOOP -- claims of those nudged before may be under way, and have missed these jobs
        EXIT WHEN cardinality(notified) >= number;
        notified := notified || ARRAY(
            SELECT listener FROM @.idle WHERE topic = place AND nudged_at IS NOT NULL AND since >= from_when AND listener <> ALL (notified)
            ORDER BY since DESC LIMIT number - cardinality(notified)
        );
    END LOOP;
    PERFORM pg_notify(listener, of_topic) FROM unnest(notified) AS listener;
END
$$;

-- Lets a listener be nudged for its other queues again. Waits for no lock: another transaction that has locked one of these notes writes
-- it.
CREATE FUNCTION @.allow_nudges(of_listener text) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    UPDATE @.idle SET nudged_at = NULL WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM @.idle
        WHERE listener = of_listener AND topic <> 'due' AND nudged_at IS NOT NULL AND nudged_for IS NULL FOR UPDATE SKIP LOCKED
    ));
END
$$;

-- Tells listeners what was committed: of so many jobs in the topics, and the ends of jobs with their records, if these are small.
-- `passed_on_by`: a listener that was nudged, but in whose process no worker claims.
CREATE FUNCTION @.notify(wall bigint, topics text[], numbers bigint[], ended bytea[], passed_on_by text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    from_when CONSTANT bigint := @.noted_since();
    each record;
    notified_due text[];
BEGIN
    SET LOCAL synchronous_commit = off;
    IF passed_on_by IS NOT NULL THEN -- its notes that are not nudged are younger
        DELETE FROM @.idle WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM @.idle
            WHERE listener = passed_on_by AND topic = ANY (topics || 'queues'::text) AND nudged_at IS NOT NULL
            FOR UPDATE SKIP LOCKED
        ));
        PERFORM @.allow_nudges(passed_on_by);
    END IF;
    FOR each IN
        DELETE FROM @.idle WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM @.idle
            WHERE nudged_at IS NOT NULL AND nudged_at BETWEEN now_at - P.NOTED_FOR AND now_at - R.passed_on_after AND nudged_for IS NOT NULL
            LIMIT 1000 FOR UPDATE SKIP LOCKED
        )) RETURNING listener, nudged_for AS topic
    LOOP
        PERFORM @.nudge(each.topic, 1, now_at) WHERE each.topic LIKE 'queue:%';
        PERFORM @.allow_nudges(each.listener);
    END LOOP;
    FOR i IN 1 .. cardinality(topics) LOOP
        IF topics[i] LIKE 'queue:%' THEN
            PERFORM @.nudge(topics[i], numbers[i], now_at);
        ELSIF topics[i] = 'due' THEN
            WITH notified AS (
                UPDATE @.idle SET nudged_at = now_at WHERE ctid = ANY (ARRAY(
                    SELECT ctid FROM @.idle WHERE topic = 'due' AND since >= from_when ORDER BY nudged_at NULLS FIRST, since
                    LIMIT R.upkeepers FOR UPDATE SKIP LOCKED
                )) RETURNING listener
            )
            SELECT array_agg(listener) INTO notified_due FROM notified;
            PERFORM pg_notify(listener, 'due') FROM unnest(notified_due) AS listener;
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

-- One message for each listener. Records that do not fit are left out: the listener then reads them.
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
                WHERE status BETWEEN S.SUCCEEDED AND S.CANCELLED AND fade_at > now_at AND octet_length(record_send(packed)) <= P.MOST_NOTIFIED_BYTES
            ) AS packed FROM (SELECT DISTINCT id FROM gone) AS awaited
        )
        SELECT listener, string_agg(topic, E'\n') AS topics, string_agg(concat_ws(' ', topic, packed), E'\n') AS words
        FROM gone JOIN packed_ends USING (id) GROUP BY listener
    LOOP
        PERFORM pg_notify(each.listener, CASE WHEN length(each.words) < 7900 THEN each.words WHEN length(each.topics) < 7900 THEN each.topics ELSE '*' END);
    END LOOP;
END
$$;

-- Lets the commit of a caller's transaction announce a topic: "due", or the end of a job. Returns false if it does so already. Otherwise the
-- caller then writes a late row of tally, whose trigger announces all: see on_commit().
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

-- Tells, as a user's transaction commits, what it has done: jobs in a queue, and what announce_at_commit() has left in a setting. It writes
-- nothing. A NOTIFY takes a lock that all such commits share. So it sends nothing if no listener waits. Of several transactions that commit
-- together only one notifies for a queue; the listener looks again until the others have committed. If the lock is not free, a listener
-- looks at this moment, or a stranger holds the lock: then it notifies every listener, and waits for nothing.
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
        PERFORM @.notify_topic(topic, sees_notes) FROM unnest(string_to_array(left(others, P.MOST_BYTES), E'\n')) AS topic
        WHERE topic ~ '^(due|job:[0-9a-f]{32})$'; -- the sender's role can write the setting
    END IF;
END
$$;

CREATE FUNCTION @.notify_topic(of_topic text, sees_notes boolean) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    listeners text[];
BEGIN
    IF NOT sees_notes THEN -- every listener hears the channel that has the schema's name
        listeners := ARRAY[(parse_ident('@.jobs'))[1]];
    ELSIF of_topic LIKE 'job:%' OR @.has_note(of_topic) THEN
        listeners := @.listeners_for(of_topic);
    END IF;
    IF cardinality(listeners) > 0 AND (of_topic LIKE 'job:%' OR pg_try_advisory_xact_lock(hashtextextended('@.notifying ' || of_topic, 0))) THEN
        PERFORM pg_notify(listener, of_topic || E'\nagain') FROM unnest(listeners) AS listener;
    END IF;
END
$$;
