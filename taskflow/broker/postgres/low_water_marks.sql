-- Low-water marks: positions from which to read an index. While any transaction in the database is open, rows that died after it began
-- cannot be vacuumed, and a reader that starts at the beginning of an index would pass all of them each time.
--
-- A mark may be too low, but never too high, because jobs before it are not found. So a function that puts a job before a mark lowers the
-- mark in the same transaction (lower_mark), and no mark is raised while another transaction lowers it. Except for very recent jobs, both
-- lock the place: the one with a shared lock, the other with a try. New jobs do not lie before a mark, because none goes beyond half a
-- second ago. But a transaction that commits late may leave its jobs behind a mark. A verb that took longer checks the marks afterwards, a
-- transaction of a user lowers its marks again when it commits (on_commit), and the broker checks all marks every ten seconds
-- (check_marks).

-- Returns the newest mark of a place, or one without a number. Marks in the future are ignored: the clock was set back.
CREATE FUNCTION @.newest_mark(of_kind text, of_queue text, of_rank integer, now_at bigint) RETURNS @.marks LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    newest @.marks;
BEGIN
    SELECT * INTO newest FROM @.marks WHERE kind = of_kind AND queue = of_queue AND rank = of_rank ORDER BY n DESC LIMIT 1;
    IF NOT FOUND THEN
        SELECT of_kind, of_queue, of_rank, NULL, 0, 0, 0 INTO newest;
    END IF;
    RETURN @.trusted(newest, now_at);
END
$$;

CREATE FUNCTION @.is_trusted(set_at bigint, now_at bigint) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT set_at <= now_at + 250000
$$;

CREATE FUNCTION @.trusted(m @.marks, now_at bigint) RETURNS @.marks LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF NOT @.is_trusted(m.set_at, now_at) THEN
        m.at := 0;
        m.seq := 0;
        m.set_at := 0;
    END IF;
    RETURN m;
END
$$;

-- Records that a row lives at (new_at, new_seq). Returns true if the mark was lowered. Without a mark, an index is read from its start.
-- Ready jobs are found only by marks, so a missing mark is created at the start, because other transactions may have made jobs ready
-- meanwhile. A mark from the future is replaced too, because it would become valid when the clock reaches it again.
CREATE FUNCTION @.lower_mark(of_kind text, of_queue text, of_rank integer, new_at bigint, new_seq bigint, now_at bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    newest @.marks;
    idle @.marks;
BEGIN
    IF new_at < @.wall(NULL) - 250000 THEN
        PERFORM @.take_lock(@.mark_lock(of_kind, of_queue, of_rank), true);
    END IF;
    newest := @.newest_mark(of_kind, of_queue, of_rank, now_at);
    IF of_kind = 'ready' THEN
        idle := @.newest_mark('idle', of_queue, of_rank, now_at);
        IF idle.n > coalesce(newest.n, 0) THEN -- claims no longer look there, or soon will not
            IF newest.n IS NULL THEN
                newest := idle;
            END IF;
            INSERT INTO @.marks (kind, queue, rank, at, seq, set_at)
            SELECT of_kind, of_queue, of_rank, at, seq, now_at -- the remaining mark may have been lowered when the place became idle
            FROM (VALUES (new_at, new_seq), (idle.at, idle.seq), (newest.at, newest.seq)) AS each (at, seq)
            ORDER BY at, seq LIMIT 1;
            RETURN true;
        END IF;
    END IF;
    IF newest.set_at = 0 THEN
        IF newest.n IS NULL AND of_kind <> 'ready' THEN
            RETURN false;
        END IF;
        new_at := 0;
        new_seq := 0;
    ELSIF (newest.at, newest.seq) <= (new_at, new_seq) THEN
        RETURN false;
    END IF;
    INSERT INTO @.marks (kind, queue, rank, at, seq, set_at) VALUES (of_kind, of_queue, of_rank, new_at, new_seq, now_at);
    RETURN true;
END
$$;

-- Returns true if lower_mark() would change nothing for ready jobs there. This is the only look-up that most added jobs need.
CREATE FUNCTION @.is_after_mark(of_queue text, of_rank integer, new_at bigint, new_seq bigint, now_at bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    RETURN new_at >= @.wall(NULL) - 250000 AND EXISTS (
        SELECT 1 FROM (
            SELECT * FROM @.marks WHERE kind = 'ready' AND queue = of_queue AND rank = of_rank ORDER BY n DESC LIMIT 1
        ) AS newest
        WHERE set_at BETWEEN 1 AND now_at AND (newest.at, newest.seq) <= (new_at, new_seq) AND NOT EXISTS (
            SELECT 1 FROM @.marks WHERE kind = 'idle' AND marks.queue = of_queue AND rank = of_rank AND n > newest.n
        )
    );
END
$$;

CREATE FUNCTION @.mark_lock(kind text, queue text, rank integer) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT hashtextextended('@.marks ' || kind || ' ' || queue || ' ' || rank::text, 0) -- immutable, so that it is inlined into its callers' plans
$$;

-- Returns true if this transaction may raise the mark m; to be called before the index is read. Returns false if the mark was set a moment
-- ago, is not the newest, or is being lowered or raised by another transaction.
CREATE FUNCTION @.may_raise_mark(m @.marks, now_at bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN m.set_at < now_at - 200000 AND pg_try_advisory_xact_lock(@.mark_lock(m.kind, m.queue, m.rank))
        AND (@.newest_mark(m.kind, m.queue, m.rank, now_at)).n IS NOT DISTINCT FROM m.n;
END
$$;

-- Records that no row lives before (new_at, new_seq), because the index was read from the mark m on, after may_raise_mark(m).
CREATE FUNCTION @.raise_mark(m @.marks, new_at bigint, new_seq bigint, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF new_at > now_at - 500000 THEN
        new_at := now_at - 500000;
        new_seq := 0;
    END IF;
    IF (new_at, new_seq) > (m.at, m.seq) THEN
        INSERT INTO @.marks (kind, queue, rank, at, seq, set_at) VALUES (m.kind, m.queue, m.rank, new_at, new_seq, now_at);
    END IF;
END
$$;

-- --- ready jobs --------------------------------------------------------------------------------------

-- Returns the newest marks of the priorities of the queues from `first` up to `past` (NULL: no end), in order. Each takes one step in the
-- index. The function is inlined into the calling statement, which may stop after a few, and determines the plan.
CREATE FUNCTION @.walk_marks(first text, past text) RETURNS SETOF @.marks LANGUAGE sql STABLE AS $$
    WITH RECURSIVE step AS (
        (SELECT * FROM @.marks WHERE kind = 'ready' AND queue >= first ORDER BY kind, queue, rank, n DESC LIMIT 1)
        UNION ALL
        SELECT next.* FROM step CROSS JOIN LATERAL (
            SELECT * FROM @.marks WHERE kind = 'ready' AND (marks.queue, marks.rank) > (step.queue, step.rank)
            ORDER BY kind, marks.queue, marks.rank, marks.n DESC LIMIT 1
        ) AS next
        WHERE past IS NULL OR next.queue < past
    )
    SELECT * FROM step WHERE past IS NULL OR queue < past
$$;

-- Returns the marks of all queues, or of one.
CREATE FUNCTION @.ready_marks(now_at bigint, of_queue text DEFAULT NULL) RETURNS SETOF @.marks LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
BEGIN
    RETURN QUERY SELECT (@.trusted(m, now_at)).* FROM @.walk_marks(coalesce(of_queue, ''), of_queue || E'\x01') AS m;
END
$$;

-- Returns when the first ready job in the mark's place was due; NULL if there is none.
CREATE FUNCTION @.first_ready(m @.marks) RETURNS bigint
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN (
        SELECT due_at FROM @.jobs WHERE status = S.READY AND queue = m.queue AND (-priority) = m.rank AND (due_at, seq) >= (m.at, m.seq)
        ORDER BY due_at, seq LIMIT 1
    );
END
$$;

-- --- leases -------------------------------------------------------------------------------------------

-- Notes the session's first lease. The caller has locked the session, as claims do: each later lease belongs to a higher request.
CREATE FUNCTION @.raise_first_lease(of_session bytea) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    newest @.requests;
    first bytea;
BEGIN
    SELECT * INTO newest FROM @.requests WHERE session = of_session ORDER BY request DESC LIMIT 1;
    SELECT claim INTO first FROM @.jobs
    WHERE status = S.RUNNING AND session = of_session AND claim >= newest.leases_from ORDER BY session, claim LIMIT 1;
    first := coalesce(first, int8send(least(newest.request, P.LATEST) + 1));
    UPDATE @.requests SET leases_from = first WHERE session = of_session AND request = newest.request AND leases_from < first;
END
$$;

-- --- late commits ------------------------------------------------------------------------------------

-- Without a priority the job is scheduled. Runs as the owner, and only for tally, because another table's owner could choose its columns
-- freely.
CREATE FUNCTION @.on_commit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_RELID <> '@.tally'::regclass THEN
        RAISE EXCEPTION 'this is a trigger of @.tally alone' USING ERRCODE = 'insufficient_privilege';
    ELSIF NEW.late_priority IS NOT NULL
        AND position('@.' || NEW.queue || ' ' || NEW.late_priority || ';' IN coalesce(current_setting('taskflow.uncommitted_places', true), '')) = 0
    THEN
        RETURN NULL; -- not at the commit, but after the INSERT (SET CONSTRAINTS): others' transactions would wait for the locks
    ELSIF current_setting('transaction_isolation') NOT LIKE 'read %' THEN -- it does not see the current marks: read from the start once
        INSERT INTO @.marks (kind, queue, rank, at, seq, set_at)
        SELECT CASE WHEN NEW.late_priority IS NULL THEN 'due' ELSE 'ready' END, CASE WHEN NEW.late_priority IS NULL THEN '' ELSE NEW.queue END,
            coalesce(-NEW.late_priority, 0), 0, 0, @.wall(NULL);
    ELSIF NEW.late_priority IS NULL THEN
        PERFORM @.take_lock(@.mark_lock('due', '', 0), true); -- no transaction may raise the mark during the commit
        PERFORM @.lower_mark('due', '', 0, NEW.late_at, 0, @.wall(NULL));
    ELSE
        -- A claim that raises this mark at the moment raises it to half a second ago: a younger job need not wait for the claim's commit.
        IF NOT pg_try_advisory_xact_lock_shared(@.mark_lock('ready', NEW.queue, -NEW.late_priority)) AND NEW.late_at < @.wall(NULL) - 250000 THEN
            PERFORM @.take_lock(@.mark_lock('ready', NEW.queue, -NEW.late_priority), true);
        END IF;
        IF NOT @.is_after_mark(NEW.queue, -NEW.late_priority, NEW.late_at, 0, @.wall(NULL)) THEN
            PERFORM @.lower_mark('ready', NEW.queue, -NEW.late_priority, NEW.late_at, 0, @.wall(NULL));
        END IF;
    END IF;
    PERFORM @.notify_at_commit(CASE WHEN NEW.late_priority IS NOT NULL THEN 'queue:' || NEW.queue END);
    RETURN NULL;
END
$$;
REVOKE EXECUTE ON FUNCTION @.on_commit() FROM PUBLIC;

CREATE CONSTRAINT TRIGGER tally_on_commit AFTER INSERT ON @.tally DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.late_at IS NOT NULL) EXECUTE FUNCTION @.on_commit();

-- Reads every index from its start, as if there were no marks, and lowers marks that were too high. Drops marks that are no longer needed.
-- It is a separate statement because it may take long: lowered marks must be committed at once, and nothing else should wait for it.
CREATE FUNCTION @.check_marks(wall bigint, OUT wakeups text) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    began_at bigint := @.wall(NULL);
    now_at bigint;
    live @.marks[];
    m @.marks;
BEGIN
    PERFORM @.take_lock(hashtextextended('@.check_marks', 0));
    WITH RECURSIVE ready AS (
        (SELECT queue, priority, due_at, seq FROM @.jobs WHERE status = S.READY ORDER BY queue, (-priority), due_at, seq LIMIT 1)
        UNION ALL
        SELECT next.* FROM ready CROSS JOIN LATERAL (
            (
                SELECT jobs.queue, jobs.priority, jobs.due_at, jobs.seq FROM @.jobs
                WHERE status = S.READY AND jobs.queue = ready.queue AND (-jobs.priority) > -ready.priority
                ORDER BY jobs.queue, (-jobs.priority), jobs.due_at, jobs.seq LIMIT 1
            )
            UNION ALL
            (
                SELECT jobs.queue, jobs.priority, jobs.due_at, jobs.seq FROM @.jobs
                WHERE status = S.READY AND jobs.queue > ready.queue
                ORDER BY jobs.queue, (-jobs.priority), jobs.due_at, jobs.seq LIMIT 1
            )
            LIMIT 1
        ) AS next
    ), every AS (
        SELECT 'ready' AS kind, queue, -priority::integer AS rank, due_at AS at, seq FROM ready
        UNION ALL
        (
            SELECT 'due', '', 0, due_at, 0 FROM @.jobs WHERE status = S.SCHEDULED OR status = S.HELD AND awaits <= 0 AND flags & @BEHIND = 0
            ORDER BY due_at, seq LIMIT 1
        )
        UNION ALL
        (SELECT 'expiry', '', 0, expires_at, 0 FROM @.jobs WHERE expires_at IS NOT NULL AND status < S.RUNNING ORDER BY expires_at, id LIMIT 1)
        UNION ALL
        (SELECT 'fade', '', 0, fade_at, 0 FROM @.jobs WHERE fade_at IS NOT NULL ORDER BY fade_at, id LIMIT 1)
        UNION ALL
        (SELECT 'tally', '', 0, id, 0 FROM @.tally ORDER BY id LIMIT 1)
    )
    SELECT coalesce(array_agg(ROW(kind, queue, rank, NULL, at, seq, 0)::@.marks), '{}') INTO live FROM every;
    now_at := @.wall(wall); -- marks that were set while it was reading are not from the future
    FOREACH m IN ARRAY live LOOP
        IF @.lower_mark(m.kind, m.queue, m.rank, m.at, m.seq, now_at) AND m.kind IN ('ready', 'due') THEN
            PERFORM @.add_wakeup(CASE m.kind WHEN 'due' THEN 'due' ELSE 'queue:' || m.queue END);
        END IF;
    END LOOP;
    PERFORM @.drop_old_marks(now_at);
    INSERT INTO @.meta (name, value) VALUES ('check_marks_at', now_at + greatest(10000000, 10 * (@.wall(NULL) - began_at)))
    ON CONFLICT (name) DO UPDATE SET value = excluded.value;
    wakeups := @.wakeups();
END
$$;

-- Returns true if it is time for check_marks and the caller should call it. Checks take at most a tenth of all time. No other caller gets
-- true until the check has ended, or for ten seconds if it fails.
CREATE FUNCTION @.may_check_marks(now_at bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS ( -- the last of these, unless the clock was set back
        SELECT 1 FROM @.meta WHERE name IN ('check_marks_at', 'check_marks_turn') AND value > now_at AND value <= now_at + 86400000000
    ) THEN
        RETURN false;
    ELSIF NOT @.try_lock(hashtextextended('@.check_marks_turn', 0)) THEN -- a heartbeat must not wait for upkeep
        RETURN false;
    END IF;
    -- Not in the row that check_marks itself writes at its end: at "repeatable read" it would then fail and lose all its work.
    INSERT INTO @.meta (name, value) VALUES ('check_marks_turn', now_at + 10000000) ON CONFLICT (name) DO UPDATE SET value = excluded.value;
    RETURN true;
END
$$;

-- Drops rows that no mark and no verb needs any more. A place in which no job has become ready for ten seconds is idle, and claims need not
-- look there. First its mark is recorded as idle, so that a function that makes a job ready there adds a mark again (lower_mark). The marks
-- by which claims look there are dropped ten seconds later, when all other transactions have ended, or lower their marks when they commit.
-- After an hour the place is forgotten.
CREATE FUNCTION @.drop_old_marks(now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    DELETE FROM @.marks AS old USING (SELECT kind, queue, rank, max(n) AS n FROM @.marks GROUP BY kind, queue, rank) AS newest
    WHERE newest.kind = old.kind AND newest.queue = old.queue AND newest.rank = old.rank AND newest.n > old.n;
    DELETE FROM @.requests AS old USING (SELECT session, max(request) AS request FROM @.requests GROUP BY session) AS newest
    WHERE newest.session = old.session AND newest.request > old.request;
    DELETE FROM @.requests WHERE NOT EXISTS (SELECT 1 FROM @.sessions WHERE id = session);
    DELETE FROM @.awaited WHERE until_when < now_at;
    DELETE FROM @.idle WHERE since < @.noted_since();
    DELETE FROM @.marks AS old USING @.marks AS idle
    WHERE old.kind = 'ready' AND idle.kind = 'idle' AND idle.queue = old.queue AND idle.rank = old.rank AND idle.n > old.n
        AND idle.set_at < now_at - 10000000 AND @.first_ready(old) IS NULL;
    INSERT INTO @.marks (kind, queue, rank, at, seq, set_at)
    SELECT 'idle', queue, rank, at, seq, now_at FROM @.ready_marks(now_at) AS m
    WHERE set_at < now_at - 10000000 AND @.first_ready(m) IS NULL
        AND NOT EXISTS (SELECT 1 FROM @.marks AS known WHERE known.kind = 'idle' AND known.queue = m.queue AND known.rank = m.rank AND known.n > m.n);
    DELETE FROM @.marks AS idle WHERE kind = 'idle' AND (
        set_at < now_at - 3600000000 OR EXISTS (
            SELECT 1 FROM @.marks AS newer
            WHERE newer.kind = 'ready' AND newer.queue = idle.queue AND newer.rank = idle.rank AND newer.n > idle.n
        )
    );
END
$$;
