-- Notifies listeners after the commit. Ends of jobs are announced only if a caller waits for them.
CREATE FUNCTION @.notify(channel text, topics text[], ended bytea[]) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    words text;
BEGIN
    SET LOCAL synchronous_commit = off;
    words := array_to_string(topics, E'\n');
    IF cardinality(ended) > 0 THEN
        WITH awaited AS (DELETE FROM @.awaited WHERE id = ANY (ended) RETURNING 'job:' || encode(id, 'hex') AS topic)
        SELECT concat_ws(E'\n', nullif(words, ''), string_agg(topic, E'\n')) INTO words FROM awaited;
    END IF;
    IF words <> '' THEN
        PERFORM pg_notify(channel, CASE WHEN length(words) < 7000 THEN words ELSE '*' END);
    END IF;
END
$$;

-- Records that a caller waits for these jobs to end.
CREATE FUNCTION @.await(wall bigint, ids bytea[], patience bigint) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET jit = off AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO @.awaited (id, until_when) SELECT DISTINCT given.id, @.wall(wall) + patience FROM unnest(ids) AS given (id)
    ON CONFLICT (id) DO UPDATE SET until_when = excluded.until_when;
END
$$;

-- Returns the topics and the jobs for which something has already happened. The plans are made once, perhaps when there are few jobs,
-- and must
-- not read many from end to end.
CREATE FUNCTION @.look_for(topics text[], ids bytea[], OUT there text[], OUT ended bytea[]) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    now_at CONSTANT bigint := @.wall(NULL);
BEGIN
    there := ARRAY(
        SELECT topic FROM unnest(topics) AS topic
        WHERE CASE
            WHEN topic = 'queues' THEN EXISTS (SELECT 1 FROM @.ready_marks(now_at) AS m WHERE @.first_ready(m) IS NOT NULL)
            WHEN topic = 'due' THEN EXISTS (SELECT 1 FROM @.jobs WHERE status = S.SCHEDULED AND due_at >= (SELECT (@.newest_mark('due', '', 0, now_at)).at))
            WHEN topic LIKE 'queue:%' THEN EXISTS (SELECT 1 FROM @.ready_marks(now_at, substr(topic, 7)) AS m WHERE @.first_ready(m) IS NOT NULL)
            WHEN topic LIKE 'session:%' THEN EXISTS (
                SELECT 1 FROM @.sessions AS s, LATERAL @.leases_of(s) AS lease WHERE s.id = decode(substr(topic, 9), 'hex') AND lease.is_asked_to_stop
            )
            ELSE false
        END
    );
    ended := ARRAY(
        SELECT given.id FROM unnest(ids) AS given (id)
        WHERE NOT EXISTS (SELECT 1 FROM @.jobs WHERE jobs.id = given.id AND jobs.status <= S.RUNNING)
    );
END
$$;
