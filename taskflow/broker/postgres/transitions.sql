-- The moves of jobs between statuses, one job at a time. The caller has locked the job, and its key.

-- Functions that change rows are plpgsql, which keeps its plans. Plans of SQL functions are made at every call.

-- Returns microseconds since 1970: a test's time, else the server's.
CREATE FUNCTION @.wall(given bigint) RETURNS bigint LANGUAGE sql AS $$
    SELECT coalesce(given, (extract(epoch FROM pg_catalog.clock_timestamp()) OPERATOR(pg_catalog.*) 1000000::numeric)::bigint)
$$;

CREATE FUNCTION @.id_text(id bytea) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT encode(id, 'hex')::uuid::text
$$;

CREATE FUNCTION @.utf8(words text) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT pg_catalog.convert_to(words, 'UTF8')
$$;

CREATE FUNCTION @.count_move(of_queue text, event text, from_status integer, to_status integer, number bigint DEFAULT 1) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO @.tally (queue, event, before, after, n) VALUES (of_queue, event, nullif(from_status, S.BURIED), nullif(to_status, S.BURIED), number);
END
$$;

CREATE FUNCTION @.save(j @.jobs) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE @.jobs SET @changing{%n = j.%n}, payload = CASE WHEN j.status <> S.SUCCEEDED THEN payload END WHERE id = j.id;
END
$$;

-- Returns whether a job with these extras has `on_failure`, which comes first, or after the tags: see job_schema.py.
CREATE FUNCTION @.has_follow_up(extras bytea) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF @.has_tags(extras) THEN
        RETURN (SELECT substr(extras, at + size, 2) = P.FOLLOWED_UP FROM @.place_of_tags(extras));
    END IF;
    RETURN (substr(extras, 2, 2) = P.FOLLOWED_UP) IS TRUE;
END
$$;

-- --- waiting ------------------------------------------------------------------------------------------

-- Announces that so many jobs wait with this status; the first is at (due, of_seq).
CREATE FUNCTION @.announce_waiting(
    status integer, queue text, priority integer, due bigint, of_seq bigint, now_at bigint, number bigint DEFAULT 1
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF status = S.SCHEDULED THEN
        PERFORM @.lower_mark('due', '', 0, due, 0, now_at);
        PERFORM @.add_wakeup('due', @.is_first_due(due, of_seq)::integer);
    ELSIF status = S.READY THEN
        PERFORM @.lower_mark('ready', queue, -priority, due, of_seq, now_at);
        PERFORM @.add_wakeup('queue:' || queue, number);
    END IF;
END
$$;

-- Returns true if no job is due before one at (due, of_seq): only the first determines when the next upkeep is due.
CREATE FUNCTION @.is_first_due(due bigint, of_seq bigint) RETURNS boolean LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET enable_bitmapscan = off AS $$
DECLARE
    from_at CONSTANT bigint := (@.newest_mark('due', '', 0, @.wall(NULL))).at;
BEGIN
    RETURN NOT EXISTS (SELECT 1 FROM @.jobs WHERE status = S.SCHEDULED AND due_at >= from_at AND (due_at, seq) < (due, of_seq));
END
$$;

-- Waits in the place that its due time and what it awaits give it. `is_new`: it is not in the table yet.
CREATE FUNCTION @.enter(j @.jobs, event text, now_at bigint, is_new boolean DEFAULT false) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    before smallint := CASE WHEN is_new THEN NULL ELSE j.status END;
BEGIN
    j.status := CASE WHEN coalesce(j.awaits, 0) > 0 THEN S.HELD WHEN j.due_at > now_at THEN S.SCHEDULED ELSE S.READY END;
    IF is_new THEN
        INSERT INTO @.jobs SELECT j.*;
        IF substr(j.extras, 2, 2) = P.TAGGED THEN
            PERFORM @.index_tags(ARRAY[j.id], ARRAY[j.extras]);
        END IF;
    ELSE
        PERFORM @.save(j);
    END IF;
    PERFORM @.count_move(j.queue, event, before, j.status);
    PERFORM @.announce_waiting(j.status, j.queue, j.priority, j.due_at, j.seq, now_at);
END
$$;

CREATE FUNCTION @.release_awaiting(held bytea, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    j @.jobs;
BEGIN
    SELECT * INTO j FROM @.jobs WHERE id = held AND status = S.HELD FOR UPDATE;
    IF NOT FOUND OR j.behind IS NOT NULL AND j.awaits <= 1 THEN
        RETURN; -- the last one counted is the holder of its key, whose end is not that of a joiner
    END IF;
    @lighten(j);
    j.awaits := j.awaits - 1;
    IF j.awaits > 0 THEN
        PERFORM @.save(j);
    ELSE
        j.due_at := greatest(j.due_at, now_at);
        PERFORM @.enter(j, E.RELEASE, now_at);
    END IF;
END
$$;

-- --- ending -------------------------------------------------------------------------------------------

-- Returns true if a living session subscribes to ends without a settlement.
CREATE FUNCTION @.has_end_subscriber() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN EXISTS (SELECT 1 FROM @.sessions WHERE wants_ends AND dead_at IS NULL);
END
$$;

-- Notes a job that has ended without a settlement, while a living session subscribes to ends.
CREATE FUNCTION @.note_end(of_id bytea) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF @.has_end_subscriber() THEN
        IF NOT EXISTS (SELECT 1 FROM @.ends) THEN
            PERFORM @.add_wakeup('due');
        END IF;
        INSERT INTO @.ends (id) VALUES (of_id);
    END IF;
END
$$;

-- Ends a job, frees its key, and releases the jobs that await it. `keep_for` is in microseconds; NULL means the default of the status.
CREATE FUNCTION @.finish(j @.jobs, event text, to_status integer, why bytea, now_at bigint, keep_for bigint DEFAULT NULL)
RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    before smallint := j.status;
    joined bytea := j.joins;
    is_settled boolean := j.session IS NOT NULL AND substr(j.settled, 1, 32) = @.fence_of(j);
    each @.jobs;
BEGIN
    j.status := to_status;
    j.session := NULL;
    j.request := NULL;
    j.number := NULL;
    j.reason := why;
    j.waiting_for := NULL;
    j.ended_at := now_at;
    j.fade_at := now_at + coalesce(keep_for, CASE WHEN to_status = S.FAILED THEN R.keep_failed ELSE R.keep_cancelled END);
    j.joins := NULL;
    PERFORM @.save(j);
    PERFORM @.count_move(j.queue, event, before, to_status);
    PERFORM @.add_wakeup('job:' || encode(j.id, 'hex'));
    IF is_settled IS NOT TRUE THEN
        PERFORM @.note_end(j.id);
    END IF;
    IF j.key IS NOT NULL THEN
        FOR each IN SELECT * FROM @.jobs WHERE key = j.key AND status < S.RUNNING AND behind = j.id FOR UPDATE LOOP
            @lighten(each);
            each.behind := NULL;
            each.waiting_for := NULL;
            PERFORM @.save(each);
            PERFORM @.release_awaiting(each.id, now_at);
        END LOOP;
    END IF;
    FOR i IN 0 .. coalesce(length(joined), 0) / 16 - 1 LOOP
        PERFORM @.release_awaiting(substr(joined, 16 * i + 1, 16), now_at);
    END LOOP;
END
$$;

-- Drops everything except ids and fences of ended jobs, and of waiting jobs on which no other depends. Returns how many.
CREATE FUNCTION @.bury(ids bytea[], now_at bigint) RETURNS integer LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    buried integer;
    first_fade bigint;
    topics text[];
    tagged bytea[];
    tags bytea[];
BEGIN
    WITH gone AS (
        UPDATE @.jobs SET
            status = S.BURIED, @drop{%n = %d},
            ended_at = coalesce(jobs.ended_at, now_at), fade_at = least(coalesce(jobs.ended_at, now_at) + R.repeat_for, P.LATEST)
        FROM @.jobs AS before
        WHERE jobs.id = ANY (ids) AND before.id = jobs.id
            AND (jobs.status BETWEEN S.SUCCEEDED AND S.CANCELLED OR jobs.status < S.RUNNING AND jobs.key IS NULL AND jobs.joins IS NULL)
        RETURNING jobs.id, jobs.queue, jobs.fade_at, before.status, before.extras
    ), counted AS (
        INSERT INTO @.tally (queue, event, before, after, n)
        SELECT queue, E.CANCEL, status, S.CANCELLED, count(*) FROM gone WHERE status < S.RUNNING GROUP BY queue, status
        UNION ALL
        SELECT queue, E.DROP, CASE WHEN status < S.RUNNING THEN S.CANCELLED ELSE status END, NULL, count(*) FROM gone GROUP BY 1, 3
    )
    SELECT count(*), min(fade_at), array_agg('job:' || encode(id, 'hex')) FILTER (WHERE status < S.RUNNING),
        array_agg(id) FILTER (WHERE @.has_tags(extras)), array_agg(substr(extras, 1, P.MOST_TAGS)) FILTER (WHERE @.has_tags(extras))
    INTO buried, first_fade, topics, tagged, tags FROM gone;
    IF tagged IS NOT NULL THEN
        PERFORM @.drop_tags(tagged, tags);
    END IF;
    IF buried > 0 THEN
        PERFORM @.lower_mark('fade', '', 0, first_fade, 0, now_at);
        IF cardinality(topics) > 100 THEN
            PERFORM set_config('taskflow.wakeups', '*', true);
        ELSE
            PERFORM @.add_wakeup(topic) FROM unnest(topics) AS topic;
        END IF;
    END IF;
    RETURN buried;
END
$$;

-- Makes a job wait again after a run. A requested cancellation, or a replacement that waits for it, ends it instead. Without `due` it is
-- ready in its old place, even if the clock was set back before its due time.
CREATE FUNCTION @.requeue(j @.jobs, event text, now_at bigint, due bigint DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    successor bytea;
    before smallint := j.status;
BEGIN
    IF j.key IS NOT NULL THEN
        SELECT id INTO successor FROM @.jobs WHERE key = j.key AND status < S.RUNNING AND behind = j.id;
    END IF;
    j.session := NULL; -- before finish(), so that this end is noted: the verdict does not say it
    j.request := NULL;
    j.number := NULL;
    IF j.cancel_requested IS NOT NULL THEN
        PERFORM @.finish(j, event, S.CANCELLED, @.utf8(j.cancel_requested), now_at);
        RETURN;
    ELSIF successor IS NOT NULL THEN
        PERFORM @.finish(j, event, S.CANCELLED, @.utf8(format(W.REPLACED_BY, @.id_text(successor))), now_at);
        RETURN;
    END IF;
    IF j.expires_at <= now_at THEN
        PERFORM @.lower_mark('expiry', '', 0, j.expires_at, 0, now_at);
    END IF;
    IF due IS NOT NULL THEN
        j.due_at := due;
        PERFORM @.enter(j, event, now_at);
    ELSE
        j.status := S.READY;
        PERFORM @.save(j);
        PERFORM @.count_move(j.queue, event, before, S.READY);
        PERFORM @.announce_waiting(S.READY, j.queue, j.priority, j.due_at, j.seq, now_at);
    END IF;
END
$$;

CREATE FUNCTION @.hand_back(j @.jobs, counts boolean, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    waits bigint[] := R.hand_back_backoff;
    wait bigint := 0;
BEGIN
    IF counts THEN
        j.hand_backs := least(j.hand_backs + 1, P.MOST_COUNTED);
        wait := waits[least(j.hand_backs, cardinality(waits))];
    END IF;
    IF wait > 0 THEN
        j.waiting_for := @.utf8(format(W.HANDED_BACK_IN_VAIN, j.hand_backs));
    END IF;
    PERFORM @.requeue(j, E.HAND_BACK, now_at, CASE WHEN wait > 0 THEN now_at + wait END);
END
$$;

-- Returns UTF-8 as a msgpack string.
CREATE FUNCTION @.packed_text(utf8 bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN length(utf8) < 32768 THEN decode('da', 'hex') || int2send(length(utf8)::smallint) ELSE decode('db', 'hex') || int4send(length(utf8)) END
        || utf8
$$;

-- Returns a number as a msgpack integer of 64 bits.
CREATE FUNCTION @.packed_number(number bigint) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT decode('cf', 'hex') || int8send(number)
$$;

-- Returns the history of a job's errors with one more: msgpack arrays in a row, as verdict.py reads them. `error` is one without its last
-- three elements, which are added here: worker, start and end. If the history grows too large, only the newest stays.
CREATE FUNCTION @.append_error(j @.jobs, error bytea, now_at bigint) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
    one bytea := error || @.packed_text(coalesce(j.worker, '')) || @.packed_number(coalesce(j.started_at, j.claimed_at, 0)) || @.packed_number(now_at);
BEGIN
    RETURN CASE WHEN coalesce(length(j.errors), 0) + length(one) <= R.max_errors_bytes THEN coalesce(j.errors, '') || one ELSE one END;
END
$$;

-- Counts a lost worker. `cause` is NULL if it is unknown; otherwise `fingerprint` is that of jobs that are poison because of it. A poison
-- job with a follow-up waits for a worker that ends it and sends that. If its workers keep being lost, it ends without.
CREATE FUNCTION @.crash(j @.jobs, cause bytea, now_at bigint, fingerprint bytea DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    follows boolean := @.has_follow_up(j.extras);
    waits bigint[] := R.crash_backoff;
    wait bigint;
BEGIN
    j.crashes := least(j.crashes + 1, P.MOST_COUNTED);
    wait := waits[least(j.crashes, cardinality(waits))];
    j.errors := @.append_error(
        j, -- type, message, traceback, attempt and ending
        decode('98', 'hex') || @.packed_text(@.utf8(W.CRASHED))
            || @.packed_text(
                @.utf8(split_part(W.WORKER_LOST, '%s', 1)) || j.worker || @.utf8(split_part(W.WORKER_LOST, '%s', 2) || j.crashes)
                || @.utf8(split_part(W.WORKER_LOST, '%s', 3)) || coalesce(@.utf8(W.DIED_OF) || cause, '')
            )
            || @.packed_text('') || @.packed_number(j.failures + 1) || @.packed_text(@.utf8(W.ENDING_CRASHED)),
        now_at
    );
    IF j.crashes > R.max_crashes AND j.cancel_requested IS NULL THEN
        j.is_poison := true;
        j.reason := @.utf8(W.POISON || format(W.LOST_IN_A_ROW, j.crashes)) || coalesce(@.utf8(W.LAST_DIED_OF) || cause, '');
        IF follows AND j.crashes <= R.most_crashes_as_poison THEN
            j.waiting_for := @.utf8(W.FOLLOW_UP_WAITS);
            j.expires_at := NULL;
            PERFORM @.requeue(j, E.CRASH, now_at, CASE WHEN wait > 0 AND j.crashes > R.max_crashes + 1 THEN now_at + wait END);
        ELSE
            j.cause := coalesce(fingerprint, P.POISON) || coalesce((SELECT substr(deploy, 1, P.MOST_DEPLOY) FROM @.sessions WHERE id = j.session), '');
            PERFORM @.finish(j, E.CRASH, S.FAILED, j.reason || CASE WHEN follows THEN @.utf8(W.FOLLOW_UP_LOST) ELSE '' END, now_at);
        END IF;
    ELSE
        PERFORM @.requeue(j, E.CRASH, now_at, CASE WHEN wait > 0 THEN now_at + wait END);
    END IF;
END
$$;

-- Ends the lease of a dead session on a job, unless another transaction has locked the job: as a crash with `cause`, or, if the session
-- `is_spared`, as a hand-back. Returns whether it did.
CREATE FUNCTION @.end_dead_lease(of_id bytea, of_session bytea, is_spared boolean, cause bytea, now_at bigint, fingerprint bytea DEFAULT NULL)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    j @.jobs;
BEGIN
    IF @.try_lock_job(of_id) THEN
        SELECT * INTO j FROM @.jobs WHERE id = of_id AND session = of_session AND status = S.RUNNING;
        @lighten(j);
    END IF;
    IF j.id IS NULL THEN
        RETURN false;
    ELSIF is_spared THEN
        PERFORM @.hand_back(j, true, now_at);
    ELSE
        PERFORM @.crash(j, cause, now_at, fingerprint);
    END IF;
    RETURN true;
END
$$;
