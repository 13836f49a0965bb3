-- Rows that somebody else has written so that no verb could work with them: see soundness.py. Every verb that changes jobs calls mend() first,
-- so that one bad row spoils one job.

-- Gives unsound jobs values that verbs can work with, and notes what stood there. A role that may only look leaves them as they are.
CREATE FUNCTION @.mend(now_at bigint) RETURNS void LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM @.jobs WHERE P.UNSOUND) THEN
        BEGIN
            PERFORM @.mend_jobs(now_at);
        EXCEPTION WHEN insufficient_privilege THEN
            NULL;
        END;
    END IF;
END
$$;

CREATE FUNCTION @.mend_jobs(now_at bigint) RETURNS void LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    bad record;
BEGIN
    FOR bad IN SELECT ctid AS tid, P.PROBLEMS AS problems FROM @.jobs WHERE P.UNSOUND ORDER BY seq LIMIT 100 FOR UPDATE SKIP LOCKED LOOP
        BEGIN
            PERFORM @.mend_job(bad.tid, bad.problems, now_at);
        EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded THEN
            RAISE WARNING 'taskflow: an unreadable job cannot be mended (%): %', bad.problems, SQLERRM;
        END;
    END LOOP;
    PERFORM @.recount();
END
$$;

-- What has ended stays so. All else becomes ready: a claim tells what is noted in `spoilt`, and the worker ends the job as FAILED.
CREATE FUNCTION @.mend_job(place tid, problems text, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    j @.jobs;
    has_ended boolean;
BEGIN
    SELECT coalesce(P.HAS_ENDED, false) INTO has_ended FROM @.jobs WHERE ctid = place;
    UPDATE @.jobs SET
        id = CASE WHEN octet_length(id) = 16 THEN id ELSE @.new_id() END,
        seq = CASE WHEN seq > 0 THEN seq ELSE nextval('@.arrivals') END,
        created_at = @.a_time(created_at, now_at), due_at = @.a_time(due_at, now_at), expires_at = @.a_time(expires_at, NULL),
        parked_at = @.a_time(parked_at, NULL),
        status = CASE WHEN has_ended THEN status ELSE S.READY END,
        ended_at = CASE WHEN has_ended THEN @.a_time(ended_at, now_at) END,
        fade_at = CASE WHEN has_ended THEN @.a_time(fade_at, now_at + R.keep_failed) END,
        priority = CASE WHEN priority BETWEEN -100 AND 100 THEN priority ELSE 0 END,
        queue = CASE WHEN octet_length(queue) BETWEEN 1 AND 400 THEN queue ELSE 'default' END,
        job = coalesce(nullif(left(job, 200), ''), '?'),
        epoch = @.a_count(epoch), failures = @.a_count(failures), crashes = @.a_count(crashes), snoozes = @.a_count(snoozes),
        hand_backs = @.a_count(hand_backs), joins = substr(joins, 1, P.MOST_JOINED_BYTES), key = CASE WHEN has_ended THEN key END,
        awaits = NULL, behind = NULL, session = NULL, request = NULL, number = NULL, waiting_for = NULL, spoilt = problems
    WHERE ctid = place
    RETURNING * INTO j;
    PERFORM @.be_found(j.status, j.queue, j.priority, j.due_at, j.seq, now_at);
END
$$;

-- Text as the database has it: one in SQL_ASCII checks nothing, and holds bytes that are no UTF-8.
CREATE FUNCTION @.raw(words text) RETURNS bytea LANGUAGE sql STABLE AS $$
    SELECT convert_to(words, CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END::name)
$$;

CREATE FUNCTION @.a_time(stored bigint, instead bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN stored BETWEEN 0 AND 253402300799999999 THEN stored ELSE instead END
$$;

CREATE FUNCTION @.a_count(stored integer) RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN stored BETWEEN 0 AND 2147483646 THEN stored ELSE 0 END
$$;

-- Makes the counts those of the table. What others add meanwhile is in both, or in neither.
CREATE FUNCTION @.recount() RETURNS void LANGUAGE plpgsql SET jit = off AS $$
#variable_conflict use_column
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('@.recount', 0)) THEN
        RETURN;
    END IF;
    INSERT INTO @.tally (queue, event, before, after, n)
    SELECT queue, NULL, NULL, status, sum(n) FROM (
        SELECT queue, status, count(*) AS n FROM @.jobs WHERE status BETWEEN S.HELD AND S.CANCELLED AND queue IS NOT NULL GROUP BY 1, 2
        UNION ALL
        SELECT queue, substr(what, 2)::smallint, -n FROM @.counted WHERE what LIKE '=%'
    ) AS every
    GROUP BY queue, status HAVING sum(n) <> 0;
END
$$;

-- Sessions whose times would be in nobody's reach, or hide what they hold.
CREATE FUNCTION @.mend_sessions(steady bigint, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    UPDATE @.sessions SET P.MENDED_SESSION WHERE P.UNSOUND_SESSION;
END
$$;

-- Runs whose session is not known: nobody would ever release them. One step in the index for each session that holds something.
CREATE FUNCTION @.release_orphans(now_at bigint) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    j @.jobs;
    orphan bytea;
BEGIN
    FOR orphan IN
        WITH RECURSIVE holding AS (
            (SELECT session FROM @.jobs WHERE status = S.RUNNING ORDER BY session, request, number LIMIT 1)
            UNION ALL
            SELECT next.session FROM holding CROSS JOIN LATERAL (
                SELECT jobs.session FROM @.jobs WHERE status = S.RUNNING AND jobs.session > holding.session
                ORDER BY jobs.session, request, number LIMIT 1
            ) AS next
        )
        SELECT jobs.id FROM holding JOIN @.jobs ON jobs.session = holding.session AND jobs.status = S.RUNNING
        WHERE NOT EXISTS (SELECT 1 FROM @.sessions WHERE sessions.id = holding.session)
    LOOP
        CONTINUE WHEN NOT @.try_lock_job(orphan);
        SELECT * INTO j FROM @.jobs WHERE id = orphan AND status = S.RUNNING;
        IF FOUND AND NOT EXISTS (SELECT 1 FROM @.sessions WHERE id = j.session) THEN
            PERFORM @.crash(j, NULL, now_at);
        END IF;
    END LOOP;
END
$$;
