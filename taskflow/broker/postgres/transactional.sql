-- Operations in a caller's transaction. They are functions from text to text, which every driver can call. A refusal is an answer too,
-- because an error would make the caller's transaction fail. They run as the schema's owner: a role that only sends needs EXECUTE on
-- enqueue_within().
--
-- They write rows that no other transaction writes, and lock only the job that is settled. So no transaction waits for another, whatever it
-- sends, and however long it stays open. Consequences for other records are left to the engine, which decides on them after the commit: see
-- taskflow/broker/engine/arrivals.py.

-- Returns the store's name and version, to every role that may use the schema. No other store has that name: it consists of a random number
-- from the tables and of the database's oid, because the database may be a copy of another.
CREATE FUNCTION @.describe_store() RETURNS text LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_build_object(
        'store', concat_ws(
            '/', (SELECT value FROM @.meta WHERE name = 'store'), (SELECT oid FROM pg_database WHERE datname = current_database())
        ),
        'version', (SELECT value FROM @.meta WHERE name = 'version')
    )
$$;

CREATE FUNCTION @.refuse_request(request text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM @.refuse(format('the request has %s bytes', octet_length(request)), 'Expected a JSON object of at most P.MAX_REQUEST bytes.');
END
$$;

CREATE FUNCTION @.random_rev() RETURNS bigint LANGUAGE sql AS $$
    SELECT ('x' || substr(replace(gen_random_uuid()::text, '-', ''), 1, 16))::bit(64)::bigint
$$;

-- --- jobs without a key -------------------------------------------------------------------------------

-- Returns "i" if the job is known, "c" if its id belongs to a different job, and NULL if the id is unknown.
CREATE FUNCTION @.known_as(of_id bytea, of_queue text, of_job text, of_key bytea, of_payload bytea) RETURNS bytea LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN status = S.BURIED OR queue = of_queue AND job = of_job AND (flags & @KEYED <> 0) = (of_key IS NOT NULL)
            AND coalesce(position(of_key IN sent) > 0, true) AND (status = S.SUCCEEDED OR content = of_payload) THEN 'i'::bytea
        ELSE 'c'::bytea
    END FROM @.jobs WHERE id = of_id
$$;

-- Adds one job without ties that is ready at once. Returns NULL, or the answer of known_as(). The mark is lowered and listeners are
-- notified when the transaction commits: see on_commit(). In most transactions, each job is added by this function. It has few expressions,
-- because each one costs time again in each transaction.
CREATE FUNCTION @.add_ready_within(
    now_at bigint, of_queue text, of_job text, of_priority integer, of_id bytea, of_payload bytea, of_sent bytea, of_expiry bigint
) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
    noted CONSTANT text := coalesce(current_setting('taskflow.uncommitted_places', true), '');
    place CONSTANT text := '@.' || of_queue || ' ' || of_priority || ';';
BEGIN
    WITH added AS (
        INSERT INTO @.jobs (id, rev, status, flags, priority, queue, job, created_at, due_at, expires_at, awaits, epoch, sent, content)
        VALUES (of_id, @.random_rev(), S.READY, 0, of_priority, of_queue, of_job, now_at, now_at, now_at + of_expiry, 0, 0, of_sent, of_payload)
        ON CONFLICT (id) DO NOTHING RETURNING queue
    )
    INSERT INTO @.tally (queue, event, after, n, late_priority, late_at)
    SELECT queue, E.ENQUEUE, S.READY, 1, of_priority, CASE WHEN position(place IN noted) = 0 THEN now_at END FROM added;
    IF FOUND AND position(place IN noted) = 0 THEN
        PERFORM set_config('taskflow.uncommitted_places', noted || place, true);
    END IF;
    RETURN CASE WHEN NOT FOUND THEN @.known_as(of_id, of_queue, of_job, NULL, of_payload) END;
END
$$;

-- Counts jobs that were added to a place, the first of them due at `due`. Marks are lowered and listeners are notified at the commit. A
-- setting of the transaction lists the places with READY jobs. Each place is listed once, because its first job is the oldest.
CREATE FUNCTION @.record_added(
    of_queue text, of_priority integer, of_status integer, number bigint, due bigint, is_arriving boolean, now_at bigint
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    noted CONSTANT text := coalesce(current_setting('taskflow.uncommitted_places', true), '');
    place CONSTANT text := '@.' || of_queue || ' ' || of_priority || ';';
    is_late boolean := CASE of_status WHEN S.READY THEN position(place IN noted) = 0 ELSE of_status = S.SCHEDULED END;
BEGIN
    IF is_arriving THEN
        is_late := @.announce_at_commit('due');
    ELSIF of_status = S.SCHEDULED AND @.is_first_due(due) THEN
        PERFORM @.announce_at_commit('due');
    END IF;
    INSERT INTO @.tally (queue, event, after, n, late_priority, late_at)
    VALUES (of_queue, E.ENQUEUE, of_status, number, CASE of_status WHEN S.READY THEN of_priority END, CASE WHEN is_late THEN due END);
    IF is_late AND of_status = S.READY THEN
        PERFORM set_config('taskflow.uncommitted_places', noted || place, true);
    END IF;
END
$$;

-- Returns true if no other job is due before this time: only the first determines when the next upkeep is due.
CREATE FUNCTION @.is_first_due(due bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    from_at CONSTANT bigint := (@.newest_mark('due')).at;
BEGIN
    RETURN NOT EXISTS (
        SELECT 1 FROM @.jobs
        WHERE (@IS_DUE) AND due_at >= from_at AND due_at < due
    );
END
$$;

-- --- jobs with a key ----------------------------------------------------------------------------------

-- A transaction records its arrivals in settings, which a rollback to a savepoint restores. Searching an index for them would
-- make serializable transactions fail. There are 256 settings, because each addition copies the whole text of one. The sender's role can
-- write them too.
CREATE FUNCTION @.own_arrivals(of_key bytea, OUT setting text, OUT entry text, OUT known text, OUT id bytea) LANGUAGE plpgsql AS $$
BEGIN
    setting := 'taskflow.arrivals_' || encode(substr(of_key, 1, 1), 'hex');
    entry := '@.' || encode(of_key, 'hex') || '=';
    known := coalesce(current_setting(setting, true), '');
    id := CASE WHEN position(entry IN known) > 0 THEN
        decode(substring(substr(known, position(entry IN known) + length(entry), 32) FROM '^[0-9a-f]{32}$'), 'hex')
    END;
END
$$;

-- Returns the job that has a key, if it prevents another job from being added: see transitions.refused_for(). It is read without a lock. If
-- the transaction has a fixed snapshot, and the job has changed since, the engine decides after the commit.
CREATE FUNCTION @.key_holder(of_key bytea) RETURNS bytea LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    found_id bytea := (
        SELECT id FROM @.jobs
        WHERE id = ANY (ARRAY(SELECT unnest(ARRAY[holder, next]) FROM @.keys WHERE keys.id = of_key))
            AND (status + 0 < S.RUNNING OR status + 0 = S.RUNNING AND flags & @MARKED = 0)
        ORDER BY status + 0 LIMIT 1
    );
BEGIN
    IF found_id IS NOT NULL AND @.has_fixed_snapshot() THEN
        BEGIN -- the lock ends with this block
            PERFORM 1 FROM @.jobs WHERE id = found_id FOR KEY SHARE SKIP LOCKED;
            RAISE EXCEPTION USING ERRCODE = CASE WHEN FOUND THEN 'TF002' ELSE 'serialization_failure' END;
        EXCEPTION
            WHEN SQLSTATE 'TF002' THEN
                RETURN found_id;
            WHEN serialization_failure THEN
                RETURN NULL;
        END;
    END IF;
    RETURN found_id;
END
$$;

-- Adds one job. Returns "" if it was added, "r" and the id of the transaction's own job that it replaces, "k" and the id that has the key,
-- or the answer of known_as().
CREATE FUNCTION @.add_one_within(j @.jobs, of_tags text[], of_key bytea, replaces boolean) RETURNS bytea LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    is_arriving CONSTANT boolean := of_key IS NOT NULL OR j.flags & @ADMITTED <> 0;
    own record;
    existing bytea;
    known bytea;
    replaced bytea;
BEGIN
    IF of_key IS NOT NULL THEN
        SELECT * INTO own FROM @.own_arrivals(of_key);
        existing := CASE WHEN own.id IS NULL AND replaces IS NOT TRUE THEN @.key_holder(of_key) ELSE own.id END;
        IF existing IS NOT NULL THEN -- only if needed: in a serializable transaction, this conflicts with others that add jobs
            known := @.known_as(j.id, j.queue, j.job, of_key, j.content);
            IF known IS NOT NULL OR replaces IS NOT TRUE THEN
                RETURN coalesce(known, 'k'::bytea || existing);
            END IF;
            UPDATE @.jobs SET rev = @.random_rev(), state = P.STATE_REPLACED || j.id
            WHERE id = existing AND status + 0 = S.HELD AND flags & @ARRIVING <> 0 AND position(of_key IN sent) > 0 RETURNING id INTO replaced;
        END IF;
        j.flags := j.flags | @ARRIVING | @BEHIND;
        j.state := CASE WHEN replaces THEN P.STATE_REPLACING ELSE P.STATE_ARRIVING END;
    END IF;
    INSERT INTO @.jobs SELECT (j).* ON CONFLICT (id) DO NOTHING;
    IF NOT FOUND THEN
        RETURN @.known_as(j.id, j.queue, j.job, of_key, j.content);
    ELSIF of_key IS NOT NULL THEN
        PERFORM set_config(own.setting, own.entry || encode(j.id, 'hex') || ';' || own.known, true);
    END IF;
    IF cardinality(of_tags) > 0 THEN
        INSERT INTO @.tags (value, id) SELECT DISTINCT tag, j.id FROM unnest(of_tags) AS tag ON CONFLICT DO NOTHING;
    END IF;
    PERFORM @.record_added(j.queue, j.priority, j.status, 1, CASE WHEN is_arriving THEN j.created_at ELSE j.due_at END, is_arriving, j.created_at);
    RETURN CASE WHEN replaced IS NULL THEN ''::bytea ELSE 'r'::bytea || replaced END;
END
$$;

-- --- calls --------------------------------------------------------------------------------------------

-- Returns a new job with these columns, and with those that the store sets. Without a time, the job is due now.
CREATE FUNCTION @.as_new(j @.jobs, now_at bigint) RETURNS @.jobs LANGUAGE plpgsql AS $$
BEGIN
    j.rev := @.random_rev();
    j.seq := nextval('@.jobs_seq_seq');
    j.created_at := now_at;
    j.due_at := greatest(now_at, j.due_at);
    j.status := CASE
        WHEN j.flags & (@KEYED | @ADMITTED) <> 0 OR j.awaits > 0 THEN S.HELD WHEN j.due_at > now_at THEN S.SCHEDULED ELSE S.READY
    END;
    IF j.flags & @ADMITTED <> 0 THEN -- the engine admits it after the commit
        j.flags := j.flags | @ARRIVING | @BEHIND;
        j.state := P.STATE_ARRIVING;
    END IF;
    RETURN j;
END
$$;

-- Parses calls. Each is a JSON object with columns of `jobs`, with bytes in the text form of bytea, and with times relative to the present
-- under "after".
CREATE FUNCTION @.calls_in(calls jsonb, now_at bigint) RETURNS TABLE (n bigint, job @.jobs, tags text[], key bytea, replaces boolean)
LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    SELECT each.n, @.as_new(jsonb_populate_record(NULL::@.jobs, @NEW_JOB || call || more.later), now_at),
        ARRAY(SELECT jsonb_array_elements_text(call -> 'tags')), (call ->> 'key')::bytea, (call ->> 'replaces')::boolean
    FROM jsonb_array_elements(calls) WITH ORDINALITY AS each (call, n), LATERAL (
        SELECT coalesce(jsonb_object_agg(name, now_at + value::bigint), '{}') AS later FROM jsonb_each_text(call -> 'after') AS a (name, value)
    ) AS more ORDER BY each.n;
END
$$;

-- Adds jobs in order. If none of them has a key or a limit, one statement adds them all.
CREATE FUNCTION @.add_jobs_within(now_at bigint, calls jsonb) RETURNS text LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    added_ids bytea[] := '{}';
    answers bytea[];
    each record;
BEGIN
    IF jsonb_path_exists(calls, '$[*].key') OR jsonb_path_exists(calls, '$[*].flags ? (@ >= @LIMITED)') THEN
        FOR each IN SELECT * FROM @.calls_in(calls, now_at) LOOP
            answers := answers || @.add_one_within(each.job, each.tags, each.key, each.replaces);
        END LOOP;
    ELSE
        FOR each IN
            WITH given AS MATERIALIZED (
                SELECT * FROM @.calls_in(calls, now_at)
            ), added AS (
                INSERT INTO @.jobs SELECT (job).* FROM given ORDER BY n ON CONFLICT (id) DO NOTHING
                RETURNING id, queue, priority, status, due_at
            ), tagged AS (
                INSERT INTO @.tags (value, id) SELECT DISTINCT tag, added.id FROM given JOIN added ON added.id = (given.job).id, unnest(given.tags) AS tag
                ON CONFLICT DO NOTHING
            )
            SELECT queue, priority, status, count(*) AS number, min(due_at) AS due, array_agg(id) AS ids FROM added GROUP BY queue, priority, status
        LOOP
            added_ids := added_ids || each.ids;
            PERFORM @.record_added(each.queue, each.priority, each.status, each.number, each.due, false, now_at);
        END LOOP;
        IF cardinality(added_ids) = jsonb_array_length(calls) THEN
            RETURN '{"answers": null}';
        END IF;
        answers := ARRAY(
            SELECT CASE
                WHEN (c.job).id = ANY (added_ids) AND row_number() OVER (PARTITION BY (c.job).id ORDER BY n) = 1 THEN ''::bytea
                ELSE @.known_as((c.job).id, (c.job).queue, (c.job).job, NULL, (c.job).content)
            END FROM @.calls_in(calls, now_at) AS c ORDER BY n
        );
    END IF;
    RETURN jsonb_build_object('answers', ( -- the text of bytea would depend on `bytea_output`
        SELECT jsonb_agg(encode(answer, 'hex') ORDER BY n) FROM unnest(answers) WITH ORDINALITY AS a (answer, n)
    ));
END
$$;

-- Adds jobs, in the form of calls_in(), or one job in the form of add_ready_within(), under "one". Checks the `capacity` first, if there is
-- one. No migration drops this function, because others' rights depend on it.
CREATE OR REPLACE FUNCTION @.enqueue_within(request text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    fields CONSTANT jsonb := CASE WHEN octet_length(request) <= P.MAX_REQUEST THEN request END;
    single_call CONSTANT jsonb := fields -> 'one';
    now_at CONSTANT bigint := @.wall((fields ->> 'wall')::bigint);
    answer bytea;
BEGIN
    IF (jsonb_typeof(fields) = 'object') IS NOT TRUE THEN
        PERFORM @.refuse_request(request);
    END IF;
    IF single_call IS NOT NULL THEN
        answer := @.add_ready_within(
            now_at, single_call ->> 'queue', single_call ->> 'job', (single_call ->> 'priority')::integer, (single_call ->> 'id')::bytea,
            (single_call ->> 'content')::bytea, (single_call ->> 'sent')::bytea, (single_call -> 'after' ->> 'expires_at')::bigint
        );
        RETURN CASE WHEN answer IS NULL THEN '{"answers": null}' ELSE '{"answers": ["' || encode(answer, 'hex') || '"]}' END;
    ELSIF fields ->> 'capacity' IS NOT NULL AND @.has_no_room(fields -> 'jobs', (fields ->> 'capacity')::bigint) THEN
        RETURN jsonb_build_object('refused', 'full', 'message', format(W.STORE_FULL, fields ->> 'capacity'));
    END IF;
    RETURN @.add_jobs_within(now_at, fields -> 'jobs');
END
$$;
REVOKE EXECUTE ON FUNCTION @.enqueue_within(text) FROM PUBLIC;

CREATE FUNCTION @.has_no_room(calls jsonb, capacity bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN @.room(capacity) < (
        SELECT count(DISTINCT (call ->> 'id')::bytea) FROM jsonb_array_elements(calls) AS call WHERE NOT EXISTS (SELECT 1 FROM @.jobs WHERE id = (call ->> 'id')::bytea)
    );
END
$$;

-- --- the end of a run ---------------------------------------------------------------------------------

-- Settles a run as SUCCEEDED, and marks its fence, so that the engine finds out that this has committed. The consequences for other records
-- wait in the inbox until the engine applies them. The request has the wall clock and the parts of the settlement, with bytes in the text
-- form of bytea. No migration drops this function either.
CREATE OR REPLACE FUNCTION @.settle_within(request text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '1500ms' SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    fields CONSTANT jsonb := CASE WHEN octet_length(request) <= P.MAX_REQUEST THEN request END;
    now_at CONSTANT bigint := @.wall((fields ->> 'wall')::bigint);
    of_id CONSTANT bytea := fields ->> 'id';
    fence CONSTANT bytea := fields ->> 'fence';
    committed CONSTANT bytea := substr(fence, 1, 36) || decode('01', 'hex');
    progress CONSTANT bytea := fields ->> 'progress';
    j record;
BEGIN
    IF (jsonb_typeof(fields) = 'object') IS NOT TRUE THEN
        PERFORM @.refuse_request(request);
    END IF;
    SELECT status, flags, queue, epoch, session, claim, settled, sent INTO j FROM @.jobs WHERE id = of_id FOR UPDATE;
    IF j.settled = committed THEN -- the setting ends with the transaction, or with a rollback to a savepoint
        RETURN CASE current_setting('taskflow.settled', true) WHEN encode(fence, 'hex') THEN '{"settled": "ok"}' ELSE '{"settled": "committed"}' END;
    ELSIF (j.status = S.RUNNING AND int8send(j.epoch) || j.session || j.claim || decode('00', 'hex') = fence) IS NOT TRUE THEN
        RETURN '{"settled": "stale"}';
    END IF;
    UPDATE @.jobs SET
        status = S.SUCCEEDED, rev = @.random_rev(), flags = flags & ~@AWAITED, content = (fields ->> 'result')::bytea, session = NULL,
        claim = NULL, settled = committed, cause = NULL, started_at = now_at - (fields ->> 'ran_for')::bigint, ended_at = now_at,
        fade_at = now_at + greatest((fields ->> 'keep_for')::bigint, CASE WHEN member IS NOT NULL THEN P.MIN_KEPT END)
    WHERE id = of_id;
    PERFORM set_config('taskflow.settled', encode(fence, 'hex'), true);
    PERFORM @.announce_at_commit('job:' || encode(of_id, 'hex'));
    IF j.flags & P.CONSEQUENTIAL <> 0 OR progress IS NOT NULL THEN
        INSERT INTO @.inbox (id, rev, sent, state) VALUES (of_id, @.random_rev(), j.sent, int2send(j.flags) || coalesce(progress, ''))
        ON CONFLICT (id) DO UPDATE SET rev = excluded.rev, sent = excluded.sent, state = excluded.state;
        PERFORM @.announce_at_commit('due');
    END IF;
    INSERT INTO @.tally (queue, event, before, after, n, late_at) VALUES (j.queue, E.SUCCEED, S.RUNNING, S.SUCCEEDED, 1, now_at);
    PERFORM @.add_jobs_within(now_at, fields -> 'follow_ups') WHERE fields ? 'follow_ups';
    RETURN '{"settled": "ok"}';
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
    RETURN '{"settled": "held up"}';
END
$$;
REVOKE EXECUTE ON FUNCTION @.settle_within(text) FROM PUBLIC;
