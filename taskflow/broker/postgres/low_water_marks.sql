-- Low-water marks: positions from which to read an index. While any transaction in the database is open, rows that died after it began
-- cannot be vacuumed, and a reader that starts at the beginning of an index would pass all of them each time.
--
-- A mark may be too low, but not too high for long, because jobs before it are not found. No transaction waits for a lock of a mark. Of the
-- rows of a place the one with the highest `gen` counts, and of these the one with the highest `n`. A function that puts a job before the
-- mark adds a lower one with the next `gen` in the same transaction (lower_mark). Of two that do so at once the lower one counts, so `n` is
-- negative and falls with the position. A function that has read the index from a mark on adds a higher one with the same `gen`
-- (raise_mark): it loses against a lower one that it has not seen. New jobs do not lie before a mark, because none goes beyond half a second
-- ago. A transaction of a user lowers its marks when it commits (on_commit). What is left, such as a commit that took long, is found by a
-- check of all indexes every ten seconds, or after a verb that took long (check_marks).

-- Returns the newest mark of a place, or one without a number.
CREATE FUNCTION @.newest_mark(of_kind text, of_queue text DEFAULT '', of_rank integer DEFAULT 0) RETURNS @.marks LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    newest @.marks;
BEGIN
    SELECT * INTO newest FROM @.marks WHERE kind = of_kind AND queue = of_queue AND rank = of_rank ORDER BY gen DESC, n DESC LIMIT 1;
    IF NOT FOUND THEN
        SELECT of_kind, of_queue, of_rank, 0, NULL, 0, 0, 0 INTO newest;
    END IF;
    RETURN newest;
END
$$;

-- Records that a row lives at (new_at, new_seq). Returns true if the mark was lowered. Without a mark, an index is read from its start.
-- Ready jobs are found only by marks, so a missing mark is created, at the start: other transactions may have made jobs ready meanwhile. A
-- mark that may soon be dropped is renewed: see drop_old_marks().
CREATE FUNCTION @.lower_mark(of_kind text, of_queue text, of_rank integer, new_at bigint, new_seq bigint, now_at bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    newest @.marks;
    is_lower boolean;
BEGIN
    SELECT * INTO newest FROM @.marks WHERE kind = of_kind AND queue = of_queue AND rank = of_rank ORDER BY gen DESC, n DESC LIMIT 1;
    is_lower := CASE WHEN newest.n IS NULL THEN of_kind = 'ready' ELSE (new_at, new_seq) < (newest.at, newest.seq) END;
    IF newest.n IS NULL THEN
        new_at := 0;
        new_seq := 0;
    END IF;
    IF is_lower THEN
        INSERT INTO @.marks (kind, queue, rank, gen, n, at, seq, set_at)
        VALUES (of_kind, of_queue, of_rank, coalesce(newest.gen, 0) + 1, -new_at - 1, new_at, new_seq, now_at);
    ELSIF of_kind = 'ready' AND newest.set_at < now_at - 10000000 THEN
        INSERT INTO @.marks (kind, queue, rank, gen, n, at, seq, set_at)
        VALUES (of_kind, of_queue, of_rank, newest.gen, newest.n + 1, newest.at, newest.seq, now_at);
    END IF;
    RETURN is_lower;
END
$$;

-- Records that no row lives before (new_at, new_seq), because the index was read from the mark m on. Not again within a moment, but for a
-- clock that was set back.
CREATE FUNCTION @.raise_mark(m @.marks, new_at bigint, new_seq bigint, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF new_at > now_at - 500000 THEN
        new_at := now_at - 500000;
        new_seq := 0;
    END IF;
    IF (new_at, new_seq) > (m.at, m.seq) AND m.set_at NOT BETWEEN now_at - 200000 AND now_at THEN
        INSERT INTO @.marks (kind, queue, rank, gen, n, at, seq, set_at) VALUES (m.kind, m.queue, m.rank, m.gen, new_at, new_at, new_seq, now_at);
    END IF;
END
$$;

-- --- ready jobs --------------------------------------------------------------------------------------

-- Returns the newest marks of the priorities of the queues from `first` up to `past` (NULL: no end), in order. Each takes one step in the
-- index. The function is inlined into the calling statement, which may stop after a few, and determines the plan.
CREATE FUNCTION @.walk_marks(first text, past text) RETURNS SETOF @.marks LANGUAGE sql STABLE AS $$
    WITH RECURSIVE step AS (
        (SELECT * FROM @.marks WHERE kind = 'ready' AND queue >= first ORDER BY kind, queue, rank, gen DESC, n DESC LIMIT 1)
        UNION ALL
        SELECT next.* FROM step CROSS JOIN LATERAL (
            SELECT * FROM @.marks WHERE kind = 'ready' AND (marks.queue, marks.rank) > (step.queue, step.rank)
            ORDER BY kind, marks.queue, marks.rank, marks.gen DESC, marks.n DESC LIMIT 1
        ) AS next
        WHERE past IS NULL OR next.queue < past
    )
    SELECT * FROM step WHERE past IS NULL OR queue < past
$$;

-- Returns the marks of all queues, or of one.
CREATE FUNCTION @.ready_marks(of_queue text DEFAULT NULL) RETURNS SETOF @.marks LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
BEGIN
    RETURN QUERY SELECT * FROM @.walk_marks(coalesce(of_queue, ''), of_queue || E'\x01');
END
$$;

-- Returns the first ready job in the mark's place.
CREATE FUNCTION @.first_ready(m @.marks, OUT due_at bigint, OUT seq bigint)
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
BEGIN
    SELECT due_at, seq INTO due_at, seq FROM @.jobs WHERE status = S.READY AND queue = m.queue AND (-priority) = m.rank AND (due_at, seq) >= (m.at, m.seq)
    ORDER BY due_at, seq LIMIT 1;
END
$$;

-- Raises a place's mark to the first job that is still ready, even if another transaction has locked it, because it may stay ready.
CREATE FUNCTION @.raise_ready_mark(of_queue text, of_rank integer, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    m @.marks := @.newest_mark('ready', of_queue, of_rank);
    first record;
BEGIN
    IF m.set_at NOT BETWEEN now_at - 200000 AND now_at THEN
        first := @.first_ready(m);
        PERFORM @.raise_mark(m, coalesce(first.due_at, now_at), coalesce(first.seq, 0), now_at);
    END IF;
END
$$;

-- --- leases -------------------------------------------------------------------------------------------

-- Notes the session's first lease. The caller has locked the session, as claims do: each later lease belongs to a higher request. The leases
-- of a dead session are read from the start: another program may have changed their claims, and nothing else finds them.
CREATE FUNCTION @.raise_first_lease(of_session bytea) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    newest @.requests;
    first bytea;
BEGIN
    SELECT * INTO newest FROM @.requests WHERE session = of_session ORDER BY request DESC LIMIT 1;
    IF EXISTS (SELECT FROM @.sessions WHERE id = of_session AND dead_at IS NOT NULL) THEN
        UPDATE @.requests SET leases_from = '' WHERE session = of_session AND request = newest.request AND leases_from > '';
        RETURN;
    END IF;
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
    THEN -- not at the commit, but after the INSERT (SET CONSTRAINTS): others would wait for the rest until the end
        INSERT INTO @.marks (kind, queue, rank, gen, at, set_at)
        VALUES ('ready', NEW.queue, -NEW.late_priority, @.wall(NULL), 0, @.wall(NULL));
        RETURN NULL;
    ELSIF @.has_fixed_snapshot() THEN -- it does not see the current marks: read from the start once
        INSERT INTO @.marks (kind, queue, rank, gen, at, set_at) VALUES (
            CASE WHEN NEW.late_priority IS NULL THEN 'due' ELSE 'ready' END, CASE WHEN NEW.late_priority IS NULL THEN '' ELSE NEW.queue END,
            coalesce(-NEW.late_priority, 0), @.wall(NULL), 0, @.wall(NULL)
        );
    ELSIF NEW.late_priority IS NULL THEN -- a mark that others raise until the commit loses against this one
        INSERT INTO @.marks (kind, gen, n, at, set_at)
        SELECT 'due', m.gen + 1, -least(m.at, NEW.late_at) - 1, least(m.at, NEW.late_at), @.wall(NULL) FROM @.newest_mark('due') AS m;
    ELSE
        PERFORM @.lower_mark('ready', NEW.queue, -NEW.late_priority, NEW.late_at, 0, @.wall(NULL));
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
        (SELECT 'fade', '', 0, fade_at, 0 FROM @.jobs WHERE fade_at IS NOT NULL ORDER BY fade_at, id LIMIT 1)
        UNION ALL
        (SELECT 'tally', '', 0, id, 0 FROM @.tally ORDER BY id LIMIT 1)
    )
    SELECT coalesce(array_agg(ROW(kind, queue, rank, 0, NULL, at, seq, 0)::@.marks), '{}') INTO live FROM every;
    now_at := @.wall(wall); -- marks that were set while it was reading are not from the future
    FOREACH m IN ARRAY live LOOP
        IF @.lower_mark(m.kind, m.queue, m.rank, m.at, m.seq, now_at) AND m.kind IN ('ready', 'due') THEN
            PERFORM @.add_wakeup(CASE m.kind WHEN 'due' THEN 'due' ELSE 'queue:' || m.queue END);
        END IF;
    END LOOP;
    PERFORM @.drop_old_marks(now_at);
    UPDATE @.meta SET value = now_at + greatest(10000000, 10 * (@.wall(NULL) - began_at)) WHERE name = 'check_marks_at';
    wakeups := @.wakeups();
END
$$;

-- Returns true if it is time for check_marks and the caller should call it. Checks take at most a tenth of all time. No other caller gets
-- true until the check has ended, or for 20 seconds if it fails.
CREATE FUNCTION @.may_check_marks(wall bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    now_at CONSTANT bigint := @.wall(wall);
BEGIN
    UPDATE @.meta SET value = now_at + 20000000 WHERE ctid = ANY (ARRAY( -- a time a day ahead is of a clock that was set back
        SELECT ctid FROM @.meta WHERE name = 'check_marks_at' AND value NOT BETWEEN now_at + 1 AND now_at + 86400000000 FOR UPDATE SKIP LOCKED
    ));
    RETURN FOUND;
END
$$;

-- Drops rows that no mark and no verb needs any more. Claims need not look at a place in which no job has become ready for 20 seconds. A
-- verb that finds a mark older than ten seconds renews it (lower_mark), so none relies on one that is dropped.
CREATE FUNCTION @.drop_old_marks(now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    DELETE FROM @.marks AS old USING (SELECT DISTINCT ON (kind, queue, rank) * FROM @.marks ORDER BY kind, queue, rank, gen DESC, n DESC) AS newest
    WHERE newest.kind = old.kind AND newest.queue = old.queue AND newest.rank = old.rank AND (newest.gen, newest.n) > (old.gen, old.n);
    DELETE FROM @.marks AS old WHERE kind = 'ready' AND set_at < now_at - 20000000 AND (@.first_ready(old)).due_at IS NULL;
    DELETE FROM @.requests AS old USING (SELECT session, max(request) AS request FROM @.requests GROUP BY session) AS newest
    WHERE newest.session = old.session AND newest.request > old.request;
    DELETE FROM @.requests WHERE NOT EXISTS (SELECT 1 FROM @.sessions WHERE id = session);
    DELETE FROM @.awaited WHERE until_when < now_at;
    DELETE FROM @.idle WHERE since < @.noted_since();
END
$$;
