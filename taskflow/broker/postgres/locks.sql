-- The isolation of a transaction, and locks of records.

-- Returns true if this transaction sees the notes as they were when it began, and would fail if it changed a note that has changed since.
CREATE FUNCTION @.has_fixed_snapshot() RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT current_setting('transaction_isolation') NOT LIKE 'read %'
$$;

-- Locks keys and jobs until the transaction ends, also keys that do not exist: a row of `meta` stands for a 64th of them. (Any role that may
-- connect can hold any advisory lock.) A program that has been stopped does not keep them for long.
CREATE FUNCTION @.lock_records(job_ids bytea[], key_ids bytea[]) RETURNS void LANGUAGE plpgsql @SETTINGS SET lock_timeout = '3s' AS $$
#variable_conflict use_column
BEGIN
    PERFORM set_config('idle_in_transaction_session_timeout', '3s', true);
    PERFORM 1 FROM @.meta WHERE name = ANY (ARRAY(SELECT 'keys ' || (get_byte(key, 0) & 63) FROM unnest(key_ids) AS key)) ORDER BY name FOR UPDATE;
    PERFORM 1 FROM @.keys WHERE id = ANY (key_ids) ORDER BY id FOR UPDATE;
    PERFORM 1 FROM @.jobs WHERE id = ANY (job_ids) ORDER BY id FOR UPDATE;
END
$$;
