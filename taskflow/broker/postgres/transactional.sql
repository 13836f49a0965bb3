-- Verbs in a caller's transaction. They are functions from text to text, which every driver can call. A refusal is an answer too, because
-- an error would make the caller's transaction fail. They run as the schema's owner: a role that only sends needs EXECUTE on
-- enqueue_within().

-- Returns the store's name and version, to every role that may use the schema. No other store has that name: it is a random number from the
-- tables, and the number of the database, which may be a copy of another.
CREATE FUNCTION @.describe_store() RETURNS text LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_build_object(
        'store', concat_ws(
            '/', (SELECT value FROM @.meta WHERE name = 'store'), (SELECT oid FROM pg_database WHERE datname = current_database())
        ),
        'version', (SELECT value FROM @.meta WHERE name = 'version')
    )
$$;

CREATE FUNCTION @.refused(why text, message text) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_build_object('refused', why, 'message', message)
$$;

CREATE FUNCTION @.refuse_request(request text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM @.refuse(format('the request has %s bytes', octet_length(request)), 'Expected a JSON object of at most P.MOST_REQUEST bytes.');
END
$$;

-- Adds one call without a key that is ready at once. Returns NULL, or the answer of known_as(). The mark is lowered and listeners are notified when
-- the transaction commits: see on_commit(). This is called once for each job of most transactions, so it has few expressions: each costs
-- time again in each transaction.
CREATE FUNCTION @.add_ready_within(
    now_at bigint, of_queue text, of_job text, of_priority integer, of_id bytea, of_payload bytea, of_extras bytea, of_expiry bigint
) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
    noted CONSTANT text := coalesce(current_setting('taskflow.uncommitted_places', true), '');
    place CONSTANT text := '@.' || of_queue || ' ' || of_priority || ';';
BEGIN
    WITH added AS (
        INSERT INTO @.jobs (created_at, due_at, status, queue, job, extras, expires_at, id, priority, payload)
        VALUES (now_at, now_at, S.READY, of_queue, of_job, of_extras, now_at + of_expiry, of_id, of_priority, of_payload)
        ON CONFLICT (id) DO NOTHING RETURNING queue
    )
    INSERT INTO @.tally (queue, event, before, after, n, late_priority, late_at)
    SELECT queue, E.ENQUEUE, NULL, S.READY, 1, of_priority, CASE WHEN position(place IN noted) = 0 THEN now_at END FROM added;
    IF FOUND AND position(place IN noted) = 0 THEN
        PERFORM set_config('taskflow.uncommitted_places', noted || place, true);
    END IF;
    RETURN CASE WHEN NOT FOUND THEN @.known_as(of_id, of_queue, of_job, NULL, of_payload) END;
END
$$;

-- Adds calls, given as arrays of the columns of add_jobs(), with bytes as bytea's text.
CREATE FUNCTION @.add_jobs_within(now_at bigint, fields jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    ids CONSTANT bytea[] := ARRAY(SELECT value::bytea FROM jsonb_array_elements_text(fields -> 'id') AS value);
    answers bytea[];
BEGIN
    PERFORM set_config('taskflow.wakeups', '', true);
    answers := @.add_jobs(
        now_at, @sent{ARRAY(SELECT value::%t FROM jsonb_array_elements_text(fields -> '%n') WITH ORDINALITY AS each (value, n) ORDER BY n)}
    );
    PERFORM @.announce_at_commit(ids, fields -> 'queue' ->> 0, now_at);
    RETURN jsonb_build_object('answers', ( -- as bytea they would be written as `bytea_output` says
        SELECT jsonb_agg(encode(answer, 'hex') ORDER BY n) FROM unnest(answers) WITH ORDINALITY AS each (answer, n)
    ));
END
$$;

-- Adds calls, in the form of add_jobs_within(), or one in the form of add_ready_within(), under "one". With a `capacity`, checks it first.
-- No migration drops this function, because others' rights depend on it.
CREATE OR REPLACE FUNCTION @.enqueue_within(request text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    fields CONSTANT jsonb := CASE WHEN octet_length(request) <= P.MOST_REQUEST THEN request END;
    single_call CONSTANT jsonb := fields -> 'one';
    now_at CONSTANT bigint := @.wall((fields ->> 'wall')::bigint);
    waits CONSTANT text := current_setting('lock_timeout');
    answer bytea;
    answers jsonb;
BEGIN
    IF (jsonb_typeof(fields) = 'object') IS NOT TRUE THEN
        PERFORM @.refuse_request(request);
    END IF;
    IF single_call IS NOT NULL THEN
        answer := @.add_ready_within(
            now_at, single_call ->> 'queue', single_call ->> 'job', (single_call ->> 'priority')::integer, (single_call ->> 'id')::bytea,
            (single_call ->> 'payload')::bytea, (single_call ->> 'extras')::bytea, (single_call ->> 'expiry')::bigint
        );
        RETURN CASE WHEN answer IS NULL THEN '{"answers": null}' ELSE '{"answers": ["' || encode(answer, 'hex') || '"]}' END;
    ELSIF fields ->> 'capacity' IS NULL AND NOT fields ? 'keys' THEN
        RETURN @.add_jobs_within(now_at, fields);
    END IF;
    BEGIN -- which is a savepoint: a time limit here cannot make the transaction fail
        PERFORM set_config('lock_timeout', '3s', true);
        IF fields ->> 'capacity' IS NOT NULL THEN
            PERFORM @.refuse_if_full(
                ARRAY(SELECT value::bytea FROM jsonb_array_elements_text(fields -> 'id') AS value), (fields ->> 'capacity')::bigint
            );
        END IF;
        PERFORM @.check_keys(coalesce((fields ->> 'keys')::integer, 0));
        answers := @.add_jobs_within(now_at, fields);
        PERFORM set_config('lock_timeout', waits, true);
        RETURN answers;
    EXCEPTION
        WHEN lock_not_available OR deadlock_detected THEN
            RETURN @.refused('busy', SQLERRM);
        WHEN unique_violation OR serialization_failure THEN -- at "repeatable read": see add_one()
            RETURN @.refused('changed', SQLERRM);
        WHEN disk_full THEN
            RETURN @.refused('full', SQLERRM);
        WHEN configuration_limit_exceeded THEN
            RETURN @.refused('keys', SQLERRM);
        WHEN out_of_memory THEN -- other transactions have filled the lock table too
            RETURN @.refused('keys', 'the server has no locks left for keys');
    END;
END
$$;
REVOKE EXECUTE ON FUNCTION @.enqueue_within(text) FROM PUBLIC;

-- Settles a run as SUCCEEDED, and marks its fence, so that settle() finds out that this has committed. The request has the wall clock and
-- the parts of the settlement, with bytes as bytea's text. No migration drops this function either.
CREATE OR REPLACE FUNCTION @.settle_within(request text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '1500ms' SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    fields CONSTANT jsonb := CASE WHEN octet_length(request) <= P.MOST_REQUEST THEN request END;
    now_at CONSTANT bigint := @.wall((fields ->> 'wall')::bigint);
    of_id CONSTANT bytea := fields ->> 'id';
    fence CONSTANT bytea := fields ->> 'fence';
    others CONSTANT text := coalesce(current_setting('taskflow.wakeups', true), '');
    follow_ups CONSTANT jsonb := fields -> 'follow_ups';
    j @.jobs;
    released bytea[];
BEGIN
    IF (jsonb_typeof(fields) = 'object') IS NOT TRUE THEN
        PERFORM @.refuse_request(request);
    END IF;
    PERFORM @.lock_settled(ARRAY[of_id], ARRAY(SELECT value::bytea FROM jsonb_array_elements_text(follow_ups -> 'key') AS value));
    SELECT * INTO j FROM @.jobs WHERE id = of_id;
    IF j.settled = @.committed_fence(fence) THEN -- the setting ends with the transaction, or with a rollback to a savepoint
        RETURN CASE current_setting('taskflow.settled', true) WHEN encode(fence, 'hex') THEN '{"settled": "ok"}' ELSE '{"settled": "committed"}' END;
    ELSIF (j.status = S.RUNNING AND @.fence_of(j) = fence) IS NOT TRUE THEN
        RETURN '{"settled": "stale"}';
    END IF;
    released := ARRAY(
        SELECT id FROM @.jobs WHERE key = j.key AND status < S.RUNNING AND behind = j.id
        UNION ALL
        SELECT substr(j.joins, 16 * i + 1, 16) FROM generate_series(0, length(j.joins) / 16 - 1) AS i
    );
    PERFORM set_config('taskflow.settled', encode(fence, 'hex'), true);
    PERFORM set_config('taskflow.wakeups', '', true);
    @lighten(j);
    j.settled := @.committed_fence(fence);
    j.started_at := now_at - (fields ->> 'ran_for')::bigint;
    j.progress := coalesce((fields ->> 'progress')::bytea, j.progress);
    PERFORM @.apply_verdict(j, 1, (fields ->> 'keep_for')::bigint, (fields ->> 'result')::bytea, NULL, NULL, now_at);
    PERFORM @.announce_at_commit(released, j.queue, now_at);
    PERFORM set_config('taskflow.wakeups', others, true);
    PERFORM @.add_jobs_within(now_at, follow_ups) WHERE follow_ups <> 'null';
    RETURN '{"settled": "ok"}';
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN '{"settled": "held up"}';
END
$$;
REVOKE EXECUTE ON FUNCTION @.settle_within(text) FROM PUBLIC;
