-- Low-water marks: positions from which to read an index. While any transaction in the database is open, rows that died after it began
-- cannot be vacuumed, and a reader that starts at the beginning of an index would pass all of them each time.
--
-- A mark may be too low, but must not be too high for long, because jobs before it are not found. No transaction waits for a lock on a
-- mark, because rows are only added. A row of `marks` states that its transaction saw no live row before (at, seq). It also stores which
-- transactions that one saw: all before `upto` except those in `open`. A function that gives a job a time in the past adds a row to
-- `lowered` in the same transaction (lower_mark). This row counts against every mark whose transaction did not see it. A function that has
-- read the index from a mark on adds a higher mark (raise_mark). So no mark hides a job, in whatever order transactions commit.
--
-- A function that gives a job the current time adds no row, because all marks trail that time by half a second. A user's transaction adds
-- one when it commits (on_commit). A check of all indexes, every ten seconds or after a slow operation, finds what remains, such as a
-- commit that itself takes long (check_marks).

-- Returns the lowest position that counts against a mark, or NULL.
CREATE FUNCTION @.lowest_since(of_kind text, of_queue text, of_rank smallint, of_upto xid8, of_open xid8[]) RETURNS TABLE (lowest bigint)
LANGUAGE sql STABLE AS $$
    SELECT min(at) FROM (
        SELECT at FROM @.lowered WHERE kind = of_kind AND queue = of_queue AND rank = of_rank AND xid >= of_upto
        UNION ALL
        SELECT at FROM @.lowered WHERE kind = of_kind AND queue = of_queue AND rank = of_rank AND xid = ANY (of_open)
    ) AS every
$$;

-- Returns the mark of a place. Its `upto` and `open` describe what this transaction sees, and so what a mark that it raises covers.
-- `is_lowered`: rows of `lowered` count against it, and a new mark would replace them. Marks from another server's dump may lie in the
-- future, and are ignored.
CREATE FUNCTION @.newest_mark(of_kind text, of_queue text DEFAULT '', of_rank integer DEFAULT 0) RETURNS @.mark LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    newest @.mark;
BEGIN
    SELECT of_kind, of_queue, of_rank, pg_snapshot_xmax(seen.now),
        ARRAY(SELECT pg_snapshot_xip(seen.now) UNION SELECT seen.own WHERE seen.own < pg_snapshot_xmax(seen.now)),
        least(since.lowest, coalesce(m.at, 0)), CASE WHEN since.lowest <= m.at THEN 0 ELSE coalesce(m.seq, 0) END, coalesce(m.set_at, 0),
        since.lowest IS NOT NULL
    INTO newest
    FROM (SELECT pg_current_snapshot() AS now, pg_current_xact_id_if_assigned() AS own) AS seen
    LEFT JOIN LATERAL (
        SELECT * FROM @.marks WHERE kind = of_kind AND queue = of_queue AND rank = of_rank AND upto <= pg_snapshot_xmax(pg_current_snapshot())
        ORDER BY kind, queue, rank, upto DESC, n_open, set_at DESC LIMIT 1
    ) AS m ON true
    LEFT JOIN LATERAL @.lowest_since(of_kind, of_queue, of_rank::smallint, m.upto, m.open) AS since ON true;
    RETURN newest;
END
$$;

-- Records that there is a live row at `new_at`. Without a mark, an index is read from its start. Ready jobs are found only by marks, so a
-- missing mark is created there, at the start. A mark that may soon be dropped is renewed: see drop_old_marks().
CREATE FUNCTION @.lower_mark(of_kind text, of_queue text, of_rank integer, new_at bigint, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    newest @.marks;
BEGIN
    SELECT * INTO newest FROM @.marks WHERE kind = of_kind AND queue = of_queue AND rank = of_rank AND upto <= pg_snapshot_xmax(pg_current_snapshot())
    ORDER BY kind, queue, rank, upto DESC, n_open, set_at DESC LIMIT 1;
    IF of_kind = 'ready' AND newest.set_at >= now_at - 10000000 IS NOT TRUE THEN
        INSERT INTO @.marks (kind, queue, rank, upto, open, n_open, at, seq, set_at)
        VALUES (
            of_kind, of_queue, of_rank, coalesce(newest.upto, '0'), coalesce(newest.open, '{}'), coalesce(newest.n_open, 0),
            coalesce(newest.at, 0), coalesce(newest.seq, 0), now_at
        );
    END IF;
    IF new_at < now_at - 250000 OR new_at < newest.at THEN -- or the clock was set back
        INSERT INTO @.lowered (kind, queue, rank, xid, at) VALUES (of_kind, of_queue, of_rank, pg_current_xact_id(), new_at);
    END IF;
END
$$;

-- Records that there is no live row before (new_at, new_seq), because the index was read from the mark m on. Does nothing if that mark was
-- set within the last 0.2 s, unless the clock was set back.
CREATE FUNCTION @.raise_mark(m @.mark, new_at bigint, new_seq bigint, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF new_at > now_at - 500000 THEN
        new_at := now_at - 500000;
        new_seq := 0;
    END IF;
    IF m.set_at NOT BETWEEN now_at - 200000 AND now_at
        AND ((new_at, new_seq) > (m.at, m.seq) OR m.is_lowered AND (new_at, new_seq) = (m.at, m.seq))
    THEN
        INSERT INTO @.marks (kind, queue, rank, upto, open, n_open, at, seq, set_at)
        VALUES (m.kind, m.queue, m.rank, m.upto, m.open, cardinality(m.open), new_at, new_seq, now_at);
    END IF;
END
$$;

-- --- ready jobs --------------------------------------------------------------------------------------

-- Returns the marks of all priorities in the queues from `first` up to `past` (NULL: no end), in order. Each mark takes one step in the
-- index. The function is inlined into the calling statement, which may stop after a few marks, and which determines the plan.
CREATE FUNCTION @.walk_marks(first text, past text) RETURNS TABLE (queue text, rank smallint, at bigint, seq bigint) LANGUAGE sql STABLE AS $$
    WITH RECURSIVE step AS (
        (
            SELECT * FROM @.marks WHERE kind = 'ready' AND marks.queue >= first AND upto <= pg_snapshot_xmax(pg_current_snapshot())
            ORDER BY kind, marks.queue, marks.rank, upto DESC, n_open, set_at DESC LIMIT 1
        )
        UNION ALL
        SELECT next.* FROM step CROSS JOIN LATERAL (
            SELECT * FROM @.marks
            WHERE kind = 'ready' AND (marks.queue, marks.rank) > (step.queue, step.rank) AND upto <= pg_snapshot_xmax(pg_current_snapshot())
            ORDER BY kind, marks.queue, marks.rank, marks.upto DESC, marks.n_open, marks.set_at DESC LIMIT 1
        ) AS next
        WHERE past IS NULL OR next.queue < past
    )
    SELECT step.queue, step.rank, least(since.lowest, step.at), CASE WHEN since.lowest <= step.at THEN 0 ELSE step.seq END
    FROM step CROSS JOIN LATERAL @.lowest_since('ready', step.queue, step.rank, step.upto, step.open) AS since
    WHERE past IS NULL OR step.queue < past
$$;

-- Returns the marks of all queues, or of one.
CREATE FUNCTION @.ready_marks(of_queue text DEFAULT NULL) RETURNS TABLE (queue text, rank smallint, at bigint, seq bigint) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
BEGIN
    RETURN QUERY SELECT * FROM @.walk_marks(coalesce(of_queue, ''), of_queue || E'\x01');
END
$$;

-- Returns the first ready job of a place, at or after this position.
CREATE FUNCTION @.first_ready(of_queue text, of_rank integer, from_at bigint, from_seq bigint, OUT due_at bigint, OUT seq bigint)
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
BEGIN
    SELECT due_at, seq INTO due_at, seq FROM @.jobs
    WHERE status = S.READY AND queue = of_queue AND (-priority) = of_rank AND (due_at, seq) >= (from_at, from_seq)
    ORDER BY due_at, seq LIMIT 1;
END
$$;

-- Raises a place's mark to the first job that is still ready, even if another transaction has locked it, because it may stay ready.
CREATE FUNCTION @.raise_ready_mark(of_queue text, of_rank integer, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    m @.mark := @.newest_mark('ready', of_queue, of_rank);
    first record;
BEGIN
    IF m.set_at NOT BETWEEN now_at - 200000 AND now_at THEN
        first := @.first_ready(of_queue, of_rank, m.at, m.seq);
        PERFORM @.raise_mark(m, coalesce(first.due_at, now_at), coalesce(first.seq, 0), now_at);
    END IF;
END
$$;

-- --- leases -------------------------------------------------------------------------------------------

-- Records the session's first lease. The caller has locked the session, as claims do, so each later lease belongs to a higher request. The
-- leases of a dead session are read from the start, because another program may have changed their claims, and no other query finds them.
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

-- Handles a late row of tally at the commit. Without a priority, the job is scheduled. Runs as the owner, and only for tally, because the
-- owner of another table could choose the values freely.
CREATE FUNCTION @.on_commit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    is_ready CONSTANT boolean := NEW.late_priority IS NOT NULL;
    is_early CONSTANT boolean := is_ready -- run by SET CONSTRAINTS before the commit: others would wait for the rest until this transaction ends
        AND position('@.' || NEW.queue || ' ' || NEW.late_priority || ';' IN coalesce(current_setting('taskflow.uncommitted_places', true), '')) = 0;
BEGIN
    IF TG_RELID <> '@.tally'::regclass THEN
        RAISE EXCEPTION 'this is a trigger of @.tally alone' USING ERRCODE = 'insufficient_privilege';
    ELSIF is_ready AND NOT is_early AND NOT @.has_fixed_snapshot() THEN
        PERFORM @.lower_mark('ready', NEW.queue, -NEW.late_priority, NEW.late_at, @.wall(NULL));
    ELSE -- the time of the commit is unknown, or this transaction sees only older marks
        INSERT INTO @.lowered (kind, queue, rank, xid, at) VALUES (
            CASE WHEN is_ready THEN 'ready' ELSE 'due' END, CASE WHEN is_ready THEN NEW.queue ELSE '' END, coalesce(-NEW.late_priority, 0),
            pg_current_xact_id(), NEW.late_at
        );
        INSERT INTO @.marks (kind, queue, rank, at, set_at) SELECT 'ready', NEW.queue, -NEW.late_priority, 0, @.wall(NULL) WHERE is_ready;
    END IF;
    IF NOT is_early THEN
        PERFORM @.notify_at_commit(CASE WHEN is_ready THEN 'queue:' || NEW.queue END);
    END IF;
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
    live @.mark[];
    m @.mark;
    newest @.mark;
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
            SELECT 'due', '', 0, due_at, 0 FROM @.jobs WHERE @IS_DUE
            ORDER BY due_at, seq LIMIT 1
        )
        UNION ALL
        (SELECT 'fade', '', 0, fade_at, 0 FROM @.jobs WHERE fade_at IS NOT NULL ORDER BY fade_at, id LIMIT 1)
        UNION ALL
        (SELECT 'tally', '', 0, id, 0 FROM @.tally ORDER BY id LIMIT 1)
    )
    SELECT coalesce(array_agg(ROW(kind, queue, rank, NULL, NULL, at, seq, NULL, NULL)::@.mark), '{}') INTO live FROM every;
    now_at := @.wall(wall); -- marks that were set while it was reading are not from the future
    FOREACH m IN ARRAY live LOOP
        newest := @.newest_mark(m.kind, m.queue, m.rank);
        CONTINUE WHEN (m.at, m.seq) >= (newest.at, newest.seq) AND (m.kind <> 'ready' OR newest.set_at > 0);
        INSERT INTO @.lowered (kind, queue, rank, xid, at) VALUES (m.kind, m.queue, m.rank, pg_current_xact_id(), m.at);
        INSERT INTO @.marks (kind, queue, rank, at, set_at) SELECT m.kind, m.queue, m.rank, 0, now_at WHERE newest.set_at = 0;
        IF m.kind IN ('ready', 'due') THEN
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
    UPDATE @.meta SET value = now_at + 20000000 WHERE ctid = ANY (ARRAY( -- a time a day ahead comes from a clock that was set back
        SELECT ctid FROM @.meta WHERE name = 'check_marks_at' AND value NOT BETWEEN now_at + 1 AND now_at + 86400000000 FOR UPDATE SKIP LOCKED
    ));
    RETURN FOUND;
END
$$;

-- Drops rows that no mark and no operation needs any more. Claims need not check a place in which no job has become ready for 20 seconds.
-- An operation that finds a mark older than ten seconds renews it (lower_mark), so no operation relies on a dropped mark.
CREATE FUNCTION @.drop_old_marks(now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    -- Each row looks its newest neighbour up in the index. A join is quadratic with a plan that was made when the tables were empty.
    DELETE FROM @.marks AS old WHERE old.ctid <> ( -- including equivalent marks, which renewals have added
        SELECT m.ctid FROM @.marks AS m
        WHERE m.kind = old.kind AND m.queue = old.queue AND m.rank = old.rank AND m.upto <= pg_snapshot_xmax(pg_current_snapshot())
        ORDER BY m.upto DESC, m.n_open, m.set_at DESC LIMIT 1
    );
    DELETE FROM @.lowered AS old WHERE xid <> pg_current_xact_id() AND ( -- each statement sees more transactions than the one before
        xid > pg_snapshot_xmax(pg_current_snapshot()) OR NOT EXISTS (SELECT 1 FROM @.marks AS m WHERE m.kind = old.kind AND m.queue = old.queue AND m.rank = old.rank)
        OR EXISTS (
            SELECT 1 FROM @.marks AS m
            WHERE m.kind = old.kind AND m.queue = old.queue AND m.rank = old.rank AND m.upto <= pg_snapshot_xmax(pg_current_snapshot()) AND old.xid < m.upto AND old.xid <> ALL (m.open)
        )
    );
    DELETE FROM @.marks AS old WHERE kind = 'ready' AND set_at < now_at - 20000000 AND (@.first_ready(queue, rank, at, seq)).due_at IS NULL
        AND NOT EXISTS (SELECT 1 FROM @.lowered AS l WHERE l.kind = old.kind AND l.queue = old.queue AND l.rank = old.rank);
    DELETE FROM @.requests AS old WHERE old.request < (SELECT max(r.request) FROM @.requests AS r WHERE r.session = old.session);
    DELETE FROM @.requests WHERE NOT EXISTS (SELECT 1 FROM @.sessions WHERE id = session);
    DELETE FROM @.awaited WHERE until_when < now_at;
    DELETE FROM @.idle WHERE since < @.noted_since();
END
$$;
