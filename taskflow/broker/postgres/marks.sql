-- Low-water marks: where to begin to read an index. While a transaction anywhere in the database is open, nothing that died after it began
-- can be cleaned away; whoever reads an index from its start walks over all of that, time and again.
--
-- A mark may stand too low, never too high: what lies before it is not found. So whoever puts a job before a mark lowers it in the same
-- transaction (lower_mark), and whoever raises one has nobody beside him who lowers it: for what is older than a moment both lock the place,
-- the one for sharing, the other by a try. What is added now lies before no mark, since none goes beyond half a second ago. A job
-- that was added in a transaction which commits late is the one that its mark may have passed: whoever adds jobs in a verb that took
-- longer looks behind the marks afterwards; a transaction of a user's lowers its marks once more as it commits (lower_late_mark); and the broker
-- looks behind them all every ten seconds (check_marks).

-- The newest of a place, or one without a number. None that was set in the future is believed: the clock has been set back.
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

-- Something is alive at (new_at, new_seq). Whether the mark was beyond it. Where there is none an index is read from its start; what is
-- ready is looked for by its marks alone, so that there is one from now on, at the start: others may have made something ready beside us.
-- So there is in place of one that is not believed now, for it would be again when the clock has come to where it once was.
CREATE FUNCTION @.lower_mark(of_kind text, of_queue text, of_rank integer, new_at bigint, new_seq bigint, now_at bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    newest @.marks;
    idle @.marks;
BEGIN
    IF new_at < @.wall(NULL) - 250000 THEN
        PERFORM pg_advisory_xact_lock_shared(@.mark_lock(of_kind, of_queue, of_rank));
    END IF;
    newest := @.newest_mark(of_kind, of_queue, of_rank, now_at);
    IF of_kind = 'ready' THEN
        idle := @.newest_mark('idle', of_queue, of_rank, now_at);
        IF idle.n > coalesce(newest.n, 0) THEN -- nobody looks there any more, or soon will not
            IF newest.n IS NULL THEN
                newest := idle;
            END IF;
            INSERT INTO @.marks (kind, queue, rank, at, seq, set_at)
            SELECT of_kind, of_queue, of_rank, at, seq, now_at -- the one that is left may have been lowered as the place came to rest
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

-- Whether lower_mark() would have nothing to do for what is ready there: one look for most that is added.
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
    SELECT hashtextextended('@.marks ' || kind || ' ' || queue || ' ' || rank::text, 0) -- immutable as it stands, and so a part of its callers' plans
$$;

-- Whether the mark m may be raised by this transaction: to be asked before the index is read. Not when it was set a moment ago, when it is
-- not the newest any more, or while somebody else lowers or raises it.
CREATE FUNCTION @.may_raise_mark(m @.marks, now_at bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN m.set_at < now_at - 200000 AND pg_try_advisory_xact_lock(@.mark_lock(m.kind, m.queue, m.rank))
        AND (@.newest_mark(m.kind, m.queue, m.rank, now_at)).n IS NOT DISTINCT FROM m.n;
END
$$;

-- Nothing is alive before (new_at, new_seq), as the index was read from the mark m on, after may_raise_mark(m).
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

-- --- what is ready --------------------------------------------------------------------------------------

-- The newest marks of the priorities of the queues from `first` on and before `past`, if that is not NULL, in order. Each is found by one step in
-- the index. A part of the statement that it stands in: that may stop after a few, and sees to the plan.
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

-- The marks of all queues, or of one.
CREATE FUNCTION @.ready_marks(now_at bigint, of_queue text DEFAULT NULL) RETURNS SETOF @.marks LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
BEGIN
    RETURN QUERY SELECT (@.trusted(m, now_at)).* FROM @.walk_marks(coalesce(of_queue, ''), of_queue || E'\x01') AS m;
END
$$;

-- When the first job that is ready in the mark's place was due. NULL if there is none.
CREATE FUNCTION @.first_ready(m @.marks) RETURNS bigint LANGUAGE plpgsql SET enable_seqscan = off SET jit = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN (
        SELECT due_at FROM @.jobs WHERE status = S.READY AND queue = m.queue AND priority = -m.rank AND (due_at, seq) >= (m.at, m.seq)
        ORDER BY due_at, seq LIMIT 1
    );
END
$$;

-- --- commits that come late -------------------------------------------------------------------------------

-- For whoever makes a job ready in a transaction that is not a verb's: its mark is lowered again as it commits, once for a place, since the
-- first such job of a transaction is the oldest. The places that have been noted stand in a setting of the transaction.
CREATE FUNCTION @.lower_mark_at_commit(of_queue text, of_priority integer, due bigint, is_scheduled boolean) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    place CONSTANT text := CASE WHEN is_scheduled THEN format('@. %s;', due) ELSE format('@.%s %s;', of_queue, of_priority) END;
    noted CONSTANT text := coalesce(current_setting('taskflow.late', true), '');
BEGIN
    IF position(place IN noted) = 0 THEN
        INSERT INTO @.tally (queue, n, late_priority, late_at) VALUES (of_queue, 0, CASE WHEN NOT is_scheduled THEN of_priority END, due);
        IF NOT is_scheduled THEN
            PERFORM set_config('taskflow.late', noted || place, true);
        END IF;
    END IF;
END
$$;

-- Without a priority it is scheduled. Run as the owner, for tally alone: of another table its columns would be whatever its owner likes.
CREATE FUNCTION @.lower_late_mark() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_RELID <> '@.tally'::regclass THEN
        RAISE EXCEPTION 'this is a trigger of @.tally alone' USING ERRCODE = 'insufficient_privilege';
    ELSIF current_setting('transaction_isolation') NOT LIKE 'read %' THEN -- which does not see the marks of today: read from the start once
        INSERT INTO @.marks (kind, queue, rank, at, seq, set_at)
        SELECT CASE WHEN NEW.late_priority IS NULL THEN 'due' ELSE 'ready' END, CASE WHEN NEW.late_priority IS NULL THEN '' ELSE NEW.queue END,
            coalesce(-NEW.late_priority, 0), 0, 0, @.wall(NULL);
    ELSIF NEW.late_priority IS NULL THEN
        PERFORM pg_advisory_xact_lock_shared(@.mark_lock('due', '', 0)); -- the commit itself may take long: nobody raises the mark meanwhile
        PERFORM @.lower_mark('due', '', 0, NEW.late_at, 0, @.wall(NULL));
    ELSE
        PERFORM pg_advisory_xact_lock_shared(@.mark_lock('ready', NEW.queue, -NEW.late_priority));
        PERFORM @.lower_mark('ready', NEW.queue, -NEW.late_priority, NEW.late_at, 0, @.wall(NULL));
    END IF;
    RETURN NULL;
END
$$;
REVOKE EXECUTE ON FUNCTION @.lower_late_mark() FROM PUBLIC;

CREATE CONSTRAINT TRIGGER tally_late AFTER INSERT ON @.tally DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.late_at IS NOT NULL) EXECUTE FUNCTION @.lower_late_mark();

-- Reads every index from its start, as if there were no marks, and lowers those that were too high. Drops what no mark needs any more. A
-- statement of its own, since it may take long: what it lowers must be committed at once, and nothing else is to wait for it.
CREATE FUNCTION @.check_marks(wall bigint, OUT wakeups text) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    began_at bigint := @.wall(NULL);
    now_at bigint;
    live @.marks[];
    m @.marks;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('@.check_marks', 0));
    WITH RECURSIVE ready AS (
        (SELECT queue, priority, due_at, seq FROM @.jobs WHERE status = S.READY ORDER BY queue, priority DESC, due_at, seq LIMIT 1)
        UNION ALL
        SELECT next.* FROM ready CROSS JOIN LATERAL (
            (
                SELECT jobs.queue, jobs.priority, jobs.due_at, jobs.seq FROM @.jobs
                WHERE status = S.READY AND jobs.queue = ready.queue AND jobs.priority < ready.priority
                ORDER BY jobs.queue, jobs.priority DESC, jobs.due_at, jobs.seq LIMIT 1
            )
            UNION ALL
            (
                SELECT jobs.queue, jobs.priority, jobs.due_at, jobs.seq FROM @.jobs
                WHERE status = S.READY AND jobs.queue > ready.queue
                ORDER BY jobs.queue, jobs.priority DESC, jobs.due_at, jobs.seq LIMIT 1
            )
            LIMIT 1
        ) AS next
    ), every AS (
        SELECT 'ready' AS kind, queue, -priority::integer AS rank, due_at AS at, seq FROM ready
        UNION ALL
        (SELECT 'due', '', 0, due_at, 0 FROM @.jobs WHERE status = S.SCHEDULED ORDER BY due_at, seq, id LIMIT 1)
        UNION ALL
        (SELECT 'expiry', '', 0, expires_at, 0 FROM @.jobs WHERE expires_at IS NOT NULL AND status < S.RUNNING ORDER BY expires_at, id LIMIT 1)
        UNION ALL
        (SELECT 'fade', '', 0, fade_at, 0 FROM @.jobs WHERE fade_at IS NOT NULL ORDER BY fade_at, id LIMIT 1)
        UNION ALL
        (SELECT 'tally', '', 0, id, 0 FROM @.tally ORDER BY id LIMIT 1)
    )
    SELECT coalesce(array_agg(ROW(kind, queue, rank, NULL, at, seq, 0)::@.marks), '{}') INTO live FROM every;
    now_at := @.wall(wall); -- marks that were set while it was reading are not of the future
    FOREACH m IN ARRAY live LOOP
        IF @.lower_mark(m.kind, m.queue, m.rank, m.at, m.seq, now_at) AND m.kind IN ('ready', 'due') THEN
            PERFORM @.add_wakeup(CASE m.kind WHEN 'due' THEN 'due' ELSE 'queue:' || m.queue END);
        END IF;
    END LOOP;
    PERFORM @.drop_old_marks(now_at);
    PERFORM @.release_orphans(now_at);
    INSERT INTO @.meta (name, value) VALUES ('check_marks_at', now_at + greatest(10000000, 10 * (@.wall(NULL) - began_at)))
    ON CONFLICT (name) DO UPDATE SET value = excluded.value;
    wakeups := current_setting('taskflow.wakeups', true);
END
$$;

-- Whether it is time to look behind, never more than a tenth of all time, and the caller is to see to it: until its look has ended nobody else
-- is told so, or in ten seconds, when it should have come to nothing.
CREATE FUNCTION @.may_check_marks(now_at bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS ( -- the last of these: unless the clock was set back
        SELECT 1 FROM @.meta WHERE name IN ('check_marks_at', 'check_marks_turn') AND value > now_at AND value <= now_at + 86400000000
    ) THEN
        RETURN false;
    ELSIF NOT pg_try_advisory_xact_lock(hashtextextended('@.check_marks_turn', 0)) THEN -- a beat waits for nobody, upkeep least of all
        RETURN false;
    END IF;
    -- Not in the row that the look itself writes at its end: at "repeatable read" it would fail then, and all that it has done.
    INSERT INTO @.meta (name, value) VALUES ('check_marks_turn', now_at + 10000000) ON CONFLICT (name) DO UPDATE SET value = excluded.value;
    RETURN true;
END
$$;

-- Drops what no mark and no verb needs any more.
--
-- Places where nothing has become ready for ten seconds are idle: claims need not look there. First it is written that they are, and where their
-- mark was, so that a function that makes something ready there from now on adds a mark again (lower_mark). Ten seconds later, when all other
-- transactions have ended, or lower their marks as they commit, the marks by which claims look there go. After an hour it is forgotten.
CREATE FUNCTION @.drop_old_marks(now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    DELETE FROM @.marks AS old USING (SELECT kind, queue, rank, max(n) AS n FROM @.marks GROUP BY kind, queue, rank) AS newest
    WHERE newest.kind = old.kind AND newest.queue = old.queue AND newest.rank = old.rank AND newest.n > old.n;
    DELETE FROM @.requests AS old USING (SELECT session, max(request) AS request FROM @.requests GROUP BY session) AS newest
    WHERE newest.session = old.session AND newest.request > old.request;
    DELETE FROM @.requests WHERE NOT EXISTS (SELECT 1 FROM @.sessions WHERE id = session);
    DELETE FROM @.awaited WHERE until_when < now_at;
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
