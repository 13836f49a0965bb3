-- Advisory locks, and the isolation of the transaction that holds them.

-- Returns true if this transaction sees the notes as they were when it began, and would fail if it changed a note that has changed since.
CREATE FUNCTION @.has_fixed_snapshot() RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT current_setting('transaction_isolation') NOT LIKE 'read %'
$$;

-- Any role that may connect can hold any advisory lock. So a lock counts only if its holder has also locked a table of ours, which it needs
-- rights for. A stranger's lock is passed over. These locks keep verbs from conflicts; without them a verb may fail in one, and is repeated.

CREATE FUNCTION @.is_held_by_us(lock bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN EXISTS (
        SELECT 1 FROM pg_locks AS held JOIN pg_locks AS other USING (virtualtransaction)
        WHERE held.locktype = 'advisory' AND held.granted AND held.pid IS DISTINCT FROM pg_backend_pid() AND held.objsubid = 1
            AND held.classid = (lock >> 32 & 4294967295)::oid AND held.objid = (lock & 4294967295)::oid
            AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND other.locktype = 'relation' AND other.database = held.database
            AND other.relation IN (SELECT oid FROM pg_class WHERE relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = '@.jobs'::regclass))
    );
END
$$;

-- Takes a lock until the end of the transaction. Returns false if a transaction of ours holds it.
CREATE FUNCTION @.try_lock(lock bigint, is_shared boolean DEFAULT false) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF (CASE WHEN is_shared THEN pg_try_advisory_xact_lock_shared(lock) ELSE pg_try_advisory_xact_lock(lock) END) THEN
        RETURN true;
    ELSIF @.is_held_by_us(lock) THEN
        RETURN false;
    END IF; -- a stranger holds it, or it is free by now
    RETURN CASE WHEN is_shared THEN pg_try_advisory_xact_lock_shared(lock) ELSE pg_try_advisory_xact_lock(lock) END OR NOT @.is_held_by_us(lock);
END
$$;

-- Waits for a lock while transactions of ours hold it, up to lock_timeout. Without one, it looks every few seconds, which are more than
-- deadlock_timeout, whether a stranger has come first. A transaction that ends lets go of its tables just before this lock, so a stranger
-- counts as one only after a short wait.
CREATE FUNCTION @.take_lock(lock bigint, is_shared boolean DEFAULT false) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    waits CONSTANT text := current_setting('lock_timeout');
    is_ours boolean;
BEGIN
    WHILE NOT CASE WHEN is_shared THEN pg_try_advisory_xact_lock_shared(lock) ELSE pg_try_advisory_xact_lock(lock) END LOOP
        is_ours := @.is_held_by_us(lock);
        BEGIN
            PERFORM set_config('lock_timeout', CASE WHEN NOT is_ours THEN '100ms' WHEN waits = '0' THEN '3s' ELSE waits END, true);
            PERFORM CASE WHEN is_shared THEN pg_advisory_xact_lock_shared(lock) ELSE pg_advisory_xact_lock(lock) END;
            PERFORM set_config('lock_timeout', waits, true);
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            IF NOT @.is_held_by_us(lock) THEN
                RETURN;
            ELSIF is_ours AND waits <> '0' THEN
                RAISE;
            END IF;
        END;
    END LOOP;
END
$$;


-- Locks keys and jobs until the transaction ends, also keys that do not exist. A program that has been stopped does not keep them for long.
CREATE FUNCTION @.lock_records(job_ids bytea[], key_ids bytea[]) RETURNS void LANGUAGE plpgsql @SETTINGS SET lock_timeout = '3s' AS $$
#variable_conflict use_column
BEGIN
    PERFORM set_config('idle_in_transaction_session_timeout', '3s', true);
    PERFORM @.take_lock(number) FROM (
        SELECT DISTINCT hashtextextended('@.keys ' || encode(key, 'hex'), 0) AS number FROM unnest(key_ids) AS key ORDER BY 1
    ) AS each;
    PERFORM 1 FROM @.keys WHERE id = ANY (key_ids) ORDER BY id FOR UPDATE;
    PERFORM 1 FROM @.jobs WHERE id = ANY (job_ids) ORDER BY id FOR UPDATE;
END
$$;
