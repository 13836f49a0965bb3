-- Locks of keys and jobs, and the isolation of the transaction that holds them.

-- Returns true if this transaction sees the notes as they were when it began, and would fail if it changed a note that has changed since.
CREATE FUNCTION @.has_fixed_snapshot() RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT current_setting('transaction_isolation') NOT LIKE 'read %'
$$;

CREATE FUNCTION @.key_lock(key bytea) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT ('x' || encode(substr(key, 1, 8), 'hex'))::bit(64)::bigint
$$;

-- Locks keys in order, so that no two verbs wait for each other.
CREATE FUNCTION @.lock_keys(keys bytea[]) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    each bytea;
BEGIN
    FOR each IN SELECT DISTINCT key FROM unnest(keys) AS key WHERE key IS NOT NULL ORDER BY key LOOP
        PERFORM pg_advisory_xact_lock(@.key_lock(each));
    END LOOP;
END
$$;

-- Locks jobs and their keys: keys first, then rows by id. A plan that was made for an empty table, and is kept, must not read a full one
-- from end to end. This holds for all functions with many ids.
CREATE FUNCTION @.lock_jobs(ids bytea[]) RETURNS void LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
    PERFORM @.lock_keys(array_agg(key)) FROM @.jobs WHERE id = ANY (ids) AND key IS NOT NULL;
    PERFORM 1 FROM @.jobs WHERE id = ANY (ids) ORDER BY id FOR UPDATE;
END
$$;

-- Locks one job without waiting. Returns false if another transaction has locked it, or its key, and may last long.
CREATE FUNCTION @.try_lock_job(of_id bytea) RETURNS boolean LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    of_key bytea;
BEGIN
    SELECT key INTO of_key FROM @.jobs WHERE id = of_id;
    IF of_key IS NOT NULL AND NOT pg_try_advisory_xact_lock(@.key_lock(of_key)) THEN
        RETURN false;
    END IF;
    PERFORM 1 FROM @.jobs WHERE id = of_id FOR UPDATE SKIP LOCKED;
    RETURN FOUND;
END
$$;
