-- Jobs from SQL: functions that triggers and other languages call, in their own transaction and under their own role.

-- --- fields as the client writes them -----------------------------------------------------------------

CREATE FUNCTION @.refuse(message text, hint text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = message, HINT = hint;
END
$$;

-- Returns a value as it was given, for messages.
CREATE FUNCTION @.shown(value anyelement) RETURNS text LANGUAGE sql AS $$
    SELECT coalesce('''' || left(value::text, 100) || CASE WHEN length(value::text) > 100 THEN '...' ELSE '' END || '''', 'NULL')
$$;

-- Returns the microseconds of an interval that begins now, up to a hundred years. Months and days are those of the calendar.
CREATE FUNCTION @.duration(option text, length interval) RETURNS bigint LANGUAGE plpgsql STRICT AS $$
DECLARE
    began_at CONSTANT timestamptz := clock_timestamp();
    microseconds bigint;
BEGIN
    IF length BETWEEN '-36525 days' AND '36525 days' THEN -- a longer one may end at an invalid time; a year has 360 days here
        microseconds := (extract(epoch FROM began_at + length) - extract(epoch FROM began_at)) * 1000000;
    END IF;
    IF (microseconds BETWEEN 0 AND 3155760000000000) IS NOT TRUE THEN
        PERFORM @.refuse(format('%s is %s', option, @.shown(length)), 'Expected an interval from 0 to a hundred years.');
    END IF;
    RETURN microseconds;
END
$$;

-- Returns UTF-8 as a msgpack string.
CREATE FUNCTION @.packed_text(utf8 bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN length(utf8) < 32768 THEN decode('da', 'hex') || int2send(length(utf8)::smallint) ELSE decode('db', 'hex') || int4send(length(utf8)) END
        || utf8
$$;

-- Returns the immutable body of a job: see `Sent` in engine/job.py.
CREATE FUNCTION @.packed_sent(extras bytea, key bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT decode('93', 'hex') || coalesce(decode('c6', 'hex') || int4send(length(extras)) || extras, decode('c0', 'hex'))
        || coalesce(decode('c410', 'hex') || key, decode('c0', 'hex')) || decode('c400', 'hex')
    WHERE num_nonnulls(extras, key) > 0
$$;

-- Packs the opaque fields as the client does: a msgpack map without the fields that have their default values.
CREATE FUNCTION @.packed_extras(max_attempts integer, timeout bigint, keep_result bigint, headers jsonb, key_text text, tags text[])
RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
    fields bytea := '';
    number integer := 0;
BEGIN
    IF tags <> '{}' THEN -- first, as the client does
        fields := decode('a167', 'hex') || @.packed_text(@.utf8(array_to_string(tags, ' ')));
        number := 1;
    END IF;
    IF max_attempts <> 10 THEN
        fields := fields || decode('a16dce', 'hex') || int4send(max_attempts);
        number := number + 1;
    END IF;
    IF timeout IS NOT NULL THEN
        fields := fields || decode('a174', 'hex') || decode('cb', 'hex') || float8send(timeout / 1000000.0::float8);
        number := number + 1;
    END IF;
    IF keep_result IS NOT NULL THEN
        fields := fields || decode('a16b', 'hex') || decode('cb', 'hex') || float8send(keep_result / 1000000.0::float8);
        number := number + 1;
    END IF;
    IF headers <> '{}' THEN
        fields := fields || (
            SELECT decode('a168de', 'hex') || int2send(count(*)::smallint) || string_agg(@.packed_text(@.utf8(key)) || @.packed_text(@.utf8(value)), '')
            FROM jsonb_each_text(headers)
        );
        number := number + 1;
    END IF;
    IF key_text IS NOT NULL THEN
        fields := fields || decode('a175', 'hex') || @.packed_text(@.utf8(key_text));
        number := number + 1;
    END IF;
    RETURN CASE WHEN number > 0 THEN set_byte('\x80', 0, 128 + number) || fields END;
END
$$;

-- --- keys ---------------------------------------------------------------------------------------------

-- Returns the digest of a key, as every client computes it (see ids.py), so a key is the same wherever the job was sent. The queue is ''
-- for a key whose scope is the job's name. Users call this under their own search_path, so it qualifies every name that it uses.
CREATE FUNCTION @.key_digest(queue text, job text, key text) RETURNS bytea LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT pg_catalog.substr(pg_catalog.sha256(
        @.utf8(queue) OPERATOR(pg_catalog.||) E'\\x00'::bytea OPERATOR(pg_catalog.||) @.utf8(job) OPERATOR(pg_catalog.||) E'\\x00'::bytea
        OPERATOR(pg_catalog.||) @.utf8(key)
    ), 1, 16)
$$;

-- --- checks of a call ----------------------------------------------------------------------------------

-- Checks a call's options, with the same limits as the client.
CREATE FUNCTION @.check_call(job text, queue text, priority integer, max_attempts integer, on_conflict text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF (length(job) BETWEEN 1 AND 200) IS NOT TRUE
        OR job ~ '[\u0001-\u001f\u007f-\u00a0\u00ad\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff\ufff0-\ufffb]'
    THEN
        PERFORM @.refuse(format('job is %s', @.shown(job)), 'A job''s name has 1 to 200 printable characters.');
    ELSIF (queue ~ '^[A-Za-z0-9_.:/-]{1,100}$') IS NOT TRUE THEN
        PERFORM @.refuse(format('queue is %s', @.shown(queue)), 'A queue''s name has 1 to 100 of the characters A-Z a-z 0-9 _ . - : /');
    ELSIF (priority BETWEEN -100 AND 100) IS NOT TRUE THEN
        PERFORM @.refuse(format('priority is %s', @.shown(priority)), 'Expected a whole number from -100 to 100; higher runs first.');
    ELSIF (max_attempts BETWEEN 1 AND 1000000) IS NOT TRUE THEN
        PERFORM @.refuse(format('max_attempts is %s', @.shown(max_attempts)), 'Expected 1 to 1,000,000.');
    ELSIF (on_conflict IN ('keep', 'replace', 'raise')) IS NOT TRUE THEN
        PERFORM @.refuse(format('on_conflict is %s', @.shown(on_conflict)), 'Expected ''keep'', ''replace'' or ''raise''.');
    END IF;
END
$$;

-- Checks tags, and returns them without repetitions.
CREATE FUNCTION @.check_tags(tags text[]) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    different CONSTANT text[] := ARRAY(SELECT tag FROM unnest(tags) WITH ORDINALITY AS each (tag, n) GROUP BY tag ORDER BY min(n));
    wrong text;
BEGIN
    SELECT @.shown(tag) INTO wrong FROM unnest(different) AS tag WHERE (tag ~ '^[A-Za-z0-9_.:/-]{1,100}$') IS NOT TRUE LIMIT 1;
    IF FOUND THEN
        PERFORM @.refuse(format('tags has %s', wrong), 'A tag has 1 to 100 of the characters A-Z a-z 0-9 _ . - : /');
    ELSIF cardinality(different) > 10 THEN
        PERFORM @.refuse(format('tags has %s tags', cardinality(different)), 'A job can have at most 10.');
    END IF;
    RETURN different;
END
$$;

CREATE FUNCTION @.check_headers(headers jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    wrong text;
    size bigint;
BEGIN
    IF (jsonb_typeof(headers) = 'object') IS NOT TRUE THEN
        PERFORM @.refuse(format('headers is %s', @.shown(headers)), 'Expected a JSON object of text to text.');
    END IF;
    SELECT key INTO wrong FROM jsonb_each(headers) WHERE jsonb_typeof(value) <> 'string' LIMIT 1;
    IF FOUND THEN
        PERFORM @.refuse(format('headers has %s for %s', @.shown(headers -> wrong), @.shown(wrong)), 'Names and values must be text.');
    END IF;
    SELECT key INTO wrong FROM jsonb_object_keys(headers) AS key WHERE starts_with(key, 'tf-') LIMIT 1;
    IF FOUND THEN
        PERFORM @.refuse(format('headers has %s', @.shown(wrong)), 'Names that begin with tf- are taskflow''s own.');
    END IF;
    SELECT sum(length(@.utf8(key)) + length(@.utf8(value))) INTO size FROM jsonb_each_text(headers);
    IF size > 4096 THEN
        PERFORM @.refuse(format('headers has %s bytes in all', size), 'Expected at most 4096.');
    END IF;
END
$$;

-- Encodes a payload of content 2. Its maximum size is the client's default, unless a database or role sets another one as its clients do:
-- ALTER DATABASE ... SET taskflow.max_payload = ...
-- Like the clients' setting, it can be at most P.MAX_PAYLOAD: a larger payload could not be claimed.
CREATE FUNCTION @.payload_of(arguments jsonb) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
    setting CONSTANT text := coalesce(nullif(current_setting('taskflow.max_payload', true), ''), '1048576');
    most CONSTANT bigint := CASE WHEN setting ~ '^[0-9]{1,18}$' THEN least(setting::bigint, P.MAX_PAYLOAD) END;
    payload CONSTANT bytea := decode('01000002', 'hex') || @.utf8(arguments::text);
BEGIN
    IF (jsonb_typeof(arguments) = 'object') IS NOT TRUE THEN
        PERFORM @.refuse(format('arguments is %s', @.shown(arguments)), 'Expected a JSON object by the names of the job''s parameters.');
    ELSIF most IS NULL THEN
        PERFORM @.refuse(format('the setting taskflow.max_payload is %s', @.shown(setting)), 'Expected a whole number of bytes, without a unit.');
    ELSIF length(payload) > most THEN
        PERFORM @.refuse(
            format('arguments has %s bytes, but the limit is %s', length(payload), most),
            'Send a reference to the data, or raise taskflow.max_payload here and max_payload in senders and workers.'
        );
    END IF;
    RETURN payload;
END
$$;

CREATE FUNCTION @.key_of(queue text, job text, key text) RETURNS bytea LANGUAGE plpgsql STRICT AS $$
BEGIN
    IF length(@.utf8(key)) NOT BETWEEN 1 AND 200 THEN
        PERFORM @.refuse(format('key is %s', @.shown(key)), format('Expected 1 to 200 bytes of UTF-8, got %s.', length(@.utf8(key))));
    END IF;
    RETURN @.key_digest(queue, job, key);
END
$$;

-- Returns microseconds since 1970, or NULL if neither is given.
CREATE FUNCTION @.instant_of(after interval, at timestamptz) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    IF after IS NOT NULL AND at IS NOT NULL THEN
        PERFORM @.refuse(format('after is %s and at is %s', @.shown(after), @.shown(at)), 'They cannot be combined: give only one.');
    ELSIF NOT isfinite(at) OR at >= '10000-01-01 00:00:00+00' THEN
        PERFORM @.refuse(format('at is %s', @.shown(at)), 'Expected a time before the year 10000; the past means now.');
    END IF;
    RETURN (extract(epoch FROM at) * 1000000)::bigint;
END
$$;

-- --- sending -------------------------------------------------------------------------------------------

-- Adds a job, which exists once the transaction is committed, and returns its id. The options are those of a job's .options() in Python,
-- with the same limits. The defaults of the job's decorator are not known here.
--
-- With the `key_scope` 'name' a key is the same in all queues. If a live job of this name and queue has the `key`, 'keep' returns the id of
-- that job, 'replace' returns the new job's id, and 'raise' fails with unique_violation. A run that was asked to stop blocks no other job:
-- the new job waits for its end. Jobs that other open transactions have added do not count. If two such jobs have the same key, a worker
-- cancels one of them after the commits.
--
-- A role needs USAGE on the schema and EXECUTE on this function, which every role has unless it is revoked. The function runs as the
-- schema's owner, so nothing in it may depend on the caller's search_path, and no text may become a statement. No migration drops it,
-- because others' rights, triggers and defaults depend on it. A migration that changes its parameters must drop it itself.
CREATE OR REPLACE FUNCTION @.enqueue(
    job text,
    arguments jsonb DEFAULT '{}',
    queue text DEFAULT 'default',
    priority integer DEFAULT 0,
    after interval DEFAULT NULL,
    at timestamptz DEFAULT NULL,
    expires interval DEFAULT NULL,
    max_attempts integer DEFAULT 10,
    timeout interval DEFAULT NULL,
    key text DEFAULT NULL,
    on_conflict text DEFAULT 'keep',
    keep_result interval DEFAULT NULL,
    headers jsonb DEFAULT '{}',
    key_scope text DEFAULT 'queue',
    tags text[] DEFAULT '{}'
) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
DECLARE
    now_at CONSTANT bigint := @.wall(NULL);
    -- UUIDv7, without a shard: 48 bits of milliseconds, 62 random bits.
    id CONSTANT bytea := substr(int8send(now_at / 1000), 3, 6) || decode('7000', 'hex') || substr(uuid_send(gen_random_uuid()), 9, 8);
    j @.jobs := jsonb_populate_record(NULL::@.jobs, @NEW_JOB);
    digest bytea;
    extras bytea;
    answer bytea;
BEGIN
    PERFORM @.check_call(job, queue, priority, max_attempts, on_conflict);
    IF (key_scope IN ('queue', 'name')) IS NOT TRUE THEN
        PERFORM @.refuse(format('key_scope is %s', @.shown(key_scope)), 'Expected ''queue'' or ''name''.');
    END IF;
    headers := coalesce(headers, '{}');
    IF headers <> '{}' THEN
        PERFORM @.check_headers(headers);
    END IF;
    tags := coalesce(tags, '{}');
    IF tags <> '{}' THEN
        tags := @.check_tags(tags);
    END IF;
    extras := @.packed_extras(
        max_attempts, @.duration('timeout', timeout), @.duration('keep_result', keep_result), headers, key, tags
    );
    IF key IS NULL AND after IS NULL AND at IS NULL AND tags = '{}' THEN
        PERFORM @.add_ready_within(
            now_at, queue, job, priority, id, @.payload_of(arguments), @.packed_sent(extras, NULL), @.duration('expires', expires)
        );
        RETURN encode(id, 'hex')::uuid;
    END IF;
    digest := @.key_of(CASE key_scope WHEN 'queue' THEN queue ELSE '' END, job, key);
    j.id := id;
    j.queue := queue;
    j.job := job;
    j.priority := priority;
    j.content := @.payload_of(arguments);
    j.sent := @.packed_sent(extras, digest);
    j.flags := CASE WHEN key IS NULL THEN 0 ELSE @KEYED END | CASE WHEN tags = '{}' THEN 0 ELSE @TAGGED END;
    j.due_at := coalesce(@.instant_of(after, at), now_at + @.duration('after', after));
    j.expires_at := now_at + @.duration('expires', expires);
    answer := @.add_one_within(@.as_new(j, now_at), tags, digest, on_conflict = 'replace');
    IF substr(answer, 1, 1) <> 'k'::bytea THEN
        RETURN encode(id, 'hex')::uuid;
    ELSIF on_conflict = 'raise' THEN
        RAISE EXCEPTION USING ERRCODE = 'unique_violation',
            MESSAGE = format('key is %s, which the live job %s has', @.shown(key), @.id_text(substr(answer, 2))),
            HINT = 'With on_conflict => ''keep'', its id is returned; with ''replace'', it is replaced.';
    END IF;
    RETURN encode(substr(answer, 2), 'hex')::uuid;
END
$$;
