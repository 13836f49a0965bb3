-- Operations for jobs without ties, which read only headers. Rows are changed in the order of their ids, in which all functions lock them.

-- Adds READY jobs without ties, all or none. Queue, priority, job and flags may have one element if all are equal. Returns the numbers,
-- from 1, of the jobs whose ids are known, and whether the store is full.
CREATE FUNCTION @.add(
    ids bytea[], flags_of smallint[], priorities smallint[], queues text[], jobs text[], lasts bigint[], sents bytea[], contents bytea[],
    capacity bigint, new_rev bigint, wall bigint, OUT known integer[], OUT is_full boolean, OUT wakeups text
) LANGUAGE plpgsql @SETTINGS SET lock_timeout = '3s' AS $$
#variable_conflict use_column
DECLARE
    now_at CONSTANT bigint := @.wall(wall);
    added bigint := 0;
    place record;
BEGIN
    IF capacity IS NOT NULL THEN
        is_full := (SELECT count(*) FROM unnest(ids) AS g (id) WHERE NOT EXISTS (SELECT 1 FROM @.jobs WHERE jobs.id = g.id OFFSET 0)) > @.room(capacity);
        IF is_full THEN
            RETURN;
        END IF;
    END IF;
    FOR place IN
        WITH made AS (
            INSERT INTO @.jobs (id, rev, status, flags, priority, queue, job, created_at, due_at, expires_at, awaits, epoch, sent, content)
            SELECT g.id, new_rev, S.READY, coalesce(g.flags, flags_of[1]), coalesce(g.priority, priorities[1]), coalesce(g.queue, queues[1]),
                coalesce(g.job, jobs[1]), now_at, now_at, now_at + g.last, 0, 0, g.sent, g.content
            FROM unnest(ids, flags_of, priorities, queues, jobs, lasts, sents, contents) WITH ORDINALITY
                AS g (id, flags, priority, queue, job, last, sent, content, n)
            ORDER BY g.n
            ON CONFLICT (id) DO NOTHING RETURNING queue, priority
        ), counted AS (
            INSERT INTO @.tally (queue, event, after, n) SELECT queue, E.ENQUEUE, S.READY, count(*) FROM made GROUP BY queue
        )
        SELECT queue, priority, count(*) AS number FROM made GROUP BY queue, priority
    LOOP
        added := added + place.number;
        PERFORM @.record_place(place.queue, place.priority, S.READY, place.number, now_at, NULL, now_at);
    END LOOP;
    IF added < cardinality(ids) THEN -- a job with this revision is from the same call, which was sent again
        known := ARRAY(SELECT g.n FROM unnest(ids) WITH ORDINALITY AS g (id, n) WHERE (SELECT rev FROM @.jobs WHERE jobs.id = g.id) <> new_rev);
    END IF;
    wakeups := @.wakeups();
END
$$;

-- Ends runs as SUCCEEDED. Ids of 16 bytes are concatenated, and so are fences of 37, the form of jobs.settled: epoch (8), session (16),
-- claim (12), and 0. keep_for and results may have one element if all are equal. Returns NULL if all runs have ended now. Otherwise returns
-- for each run: true if it ended so now or earlier, false for a different fence, NULL for a job with ties. `are_awaited`: a caller waits
-- for one of the jobs; one that has just begun to wait may not be seen. A job that awaits nothing any more is READY now if promote() would
-- make it so: a separate call and its commit would delay it. `released`: the others that await nothing any more. `+ 0` and
-- BETWEEN force a look-up of each id: with `=`, a plan made for an empty table would read the whole index.
CREATE FUNCTION @.succeed(
    ids bytea, fences bytea, ran_for bigint[], keep_for bigint[], results bytea[], keys_of bytea[], awaited_by bytea[], notes bytea[],
    new_rev bigint, wall bigint, OUT answers boolean[], OUT are_awaited boolean, OUT released bytea[], OUT wakeups text
) LANGUAGE plpgsql @SETTINGS SET lock_timeout = '300ms' AS $$
#variable_conflict use_column
DECLARE
    now_at CONSTANT bigint := @.wall(wall);
    done bytea[];
    lone bytea[] := '{}'; -- jobs that alone have their keys
    place record;
BEGIN
    IF cardinality(awaited_by) > 0 THEN
        PERFORM 1 FROM @.jobs WHERE id = ANY (awaited_by) ORDER BY id FOR UPDATE;
    END IF;
    IF cardinality(keys_of) > 0 THEN
        lone := ARRAY(SELECT holder FROM @.keys WHERE id = ANY (keys_of) AND next IS NULL ORDER BY id FOR UPDATE);
    END IF;
    WITH ended AS (
        UPDATE @.jobs SET
            status = S.SUCCEEDED, rev = new_rev, content = coalesce(g.outcome, results[1]), session = NULL, claim = NULL, settled = g.fence,
            started_at = now_at - g.length, ended_at = now_at, fade_at = now_at + coalesce(g.keep, keep_for[1])
        FROM (
            SELECT substr(ids, 16 * n::integer - 15, 16) AS id, substr(fences, 37 * n::integer - 36, 37) AS fence, length, keep, outcome, awaited, note
            FROM unnest(ran_for, keep_for, results, awaited_by, notes) WITH ORDINALITY AS given (length, keep, outcome, awaited, note, n)
            ORDER BY 1 OFFSET 0
        ) AS g
        WHERE jobs.id BETWEEN g.id AND g.id AND jobs.status + 0 = S.RUNNING AND int8send(jobs.epoch) || jobs.session || jobs.claim || E'\\x00' = g.fence
            AND (jobs.flags & @TIES = CASE WHEN g.awaited IS NULL THEN 0 ELSE @AWAITED END
                OR jobs.flags & @TIES = @KEYED AND jobs.id = ANY (lone))
            AND (SELECT true FROM @.notes WHERE notes.id = g.note OFFSET 0) IS NULL
        RETURNING jobs.id, jobs.queue
    ), counted AS (
        INSERT INTO @.tally (queue, event, before, after, n) SELECT queue, E.SUCCEED, S.RUNNING, S.SUCCEEDED, count(*) FROM ended GROUP BY queue
    )
    SELECT CASE WHEN count(*) < cardinality(ran_for) THEN coalesce(array_agg(id), '{}') END INTO done FROM ended;
    IF done IS NOT NULL THEN
        answers := ARRAY(
            SELECT CASE
                WHEN g.id = ANY (done) THEN true
                WHEN r.status = S.RUNNING AND int8send(r.epoch) || r.session || r.claim || E'\\x00' = g.fence THEN NULL
                ELSE coalesce(r.settled = g.fence, false)
            END
            FROM (
                SELECT n, substr(ids, 16 * n - 15, 16) AS id, substr(fences, 37 * n - 36, 37) AS fence FROM generate_series(1, cardinality(ran_for)) AS n
            ) AS g LEFT JOIN LATERAL (
                SELECT status, epoch, session, claim, settled FROM @.jobs WHERE jobs.id = g.id OFFSET 0
            ) AS r ON true ORDER BY g.n
        );
    END IF;
    IF cardinality(awaited_by) > 0 THEN
        INSERT INTO @.notes (id, rev, size, state)
        SELECT g.note, new_rev, octet_length(g.outcome) + 1, E'\\x00'::bytea || g.outcome FROM (
            SELECT substr(ids, 16 * n::integer - 15, 16) AS id, note, coalesce(outcome, results[1]) AS outcome
            FROM unnest(notes, results) WITH ORDINALITY AS given (note, outcome, n)
        ) AS g WHERE g.note IS NOT NULL AND (done IS NULL OR g.id = ANY (done)) ORDER BY g.note ON CONFLICT DO NOTHING;
        FOR place IN
            WITH added AS (
                UPDATE @.jobs AS r SET
                    awaits = greatest(-P.LATEST, r.awaits - g.number), status = CASE WHEN o.is_free THEN S.READY ELSE r.status END,
                    rev = CASE WHEN o.is_free THEN new_rev ELSE r.rev END, due_at = CASE WHEN o.is_free THEN now_at ELSE r.due_at END
                FROM (
                    SELECT awaited, count(DISTINCT id) AS number FROM (
                        SELECT substr(ids, 16 * n::integer - 15, 16) AS id, awaited FROM unnest(awaited_by) WITH ORDINALITY AS given (awaited, n)
                    ) AS each WHERE awaited IS NOT NULL AND (done IS NULL OR id = ANY (done)) GROUP BY awaited
                ) AS g CROSS JOIN LATERAL (
                    SELECT ctid AS tid, status = S.HELD AND awaits <= g.number AND flags & (@BEHIND | @LIMITED | @FAIR) = 0 AND due_at <= now_at AS is_free
                    FROM @.jobs WHERE jobs.id = g.awaited OFFSET 0
                ) AS o
                WHERE r.ctid = o.tid RETURNING o.is_free, r.queue, r.priority, r.status, r.due_at, r.awaits, r.flags
            ), counted AS (
                INSERT INTO @.tally (queue, event, before, after, n)
                SELECT queue, E.RELEASE, S.HELD, S.READY, count(*) FROM added WHERE is_free GROUP BY queue
            )
            SELECT queue, priority, status, count(*) AS number, min(due_at) AS due_at FROM added
            WHERE is_free OR status = S.HELD AND awaits <= 0 AND flags & @BEHIND = 0 GROUP BY queue, priority, status
        LOOP
            PERFORM @.record_place(place.queue, place.priority, place.status, place.number, place.due_at, NULL, now_at);
        END LOOP;
        wakeups := @.wakeups();
        released := ARRAY(
            SELECT g.awaited FROM (SELECT DISTINCT awaited FROM unnest(awaited_by) AS given (awaited) WHERE awaited IS NOT NULL) AS g
            LEFT JOIN LATERAL (SELECT status, awaits FROM @.jobs WHERE jobs.id = g.awaited OFFSET 0) AS r ON true
            WHERE r.status IS NULL OR r.status = S.BURIED OR r.status = S.HELD AND r.awaits <= 0
        );
    END IF;
    IF cardinality(lone) > 0 THEN
        DELETE FROM @.keys WHERE id = ANY (keys_of) AND next IS NULL AND holder = ANY (lone)
            AND (SELECT rev FROM @.jobs WHERE jobs.id = holder) = new_rev;
    END IF;
    are_awaited := EXISTS ( -- by id, because many dead rows may not be vacuumed yet
        SELECT 1 FROM @.awaited WHERE id = ANY (ARRAY (SELECT substr(ids, 16 * n - 15, 16) FROM generate_series(1, cardinality(ran_for)) AS n))
    );
END
$$;

-- Ends runs of jobs with limits as SUCCEEDED, and hands their slots on: see [hot_limits] in seam.py. The runs are as for succeed(), in the
-- order of their ids. `ended` contains the indexes, from 0, of those that have ended, or is NULL if all have. `opened` are the gates that
-- still have room although jobs wait there. If another transaction holds a waiting job, no run ends, and the general decision follows. It
-- doesn't wait for it, because an operation that cancels the job holds it and waits for the gate.
CREATE FUNCTION @.hand_over(
    ids bytea, fences bytea, ran_for bigint[], keep_for bigint[], results bytea[], gate_ids bytea[], new_rev bigint, wall bigint,
    OUT ended integer[], OUT opened bytea[], OUT are_awaited boolean, OUT wakeups text
) LANGUAGE plpgsql @SETTINGS SET lock_timeout = '300ms' AS $$
#variable_conflict use_column
DECLARE
    now_at bigint;
    tids tid[]; -- of the runs, NULL for one that doesn't end
    passing tid[];
    simple bytea[]; -- the gates that don't need the general decision
    taken_of bigint[];
    are_open boolean[];
    are_dropped boolean[];
    number bigint;
    place record;
BEGIN
    SELECT array_agg(r.tid ORDER BY g.n) INTO tids FROM (
        SELECT n::integer AS n, substr(ids, 16 * n::integer - 15, 16) AS id, substr(fences, 37 * n::integer - 36, 37) AS fence
        FROM generate_series(1, cardinality(gate_ids)) AS n OFFSET 0
    ) AS g LEFT JOIN LATERAL (
        SELECT ctid AS tid FROM @.jobs
        WHERE id = g.id AND status + 0 = S.RUNNING AND int8send(epoch) || session || claim || E'\\x00' = g.fence AND flags & @TIES = @LIMITED FOR UPDATE
    ) AS r ON true;
    PERFORM 1 FROM @.gates WHERE id = ANY (gate_ids) ORDER BY id FOR UPDATE;
    now_at := @.wall(wall);
    WITH given AS (
        SELECT gate, count(*) AS number FROM unnest(tids, gate_ids) AS run (tid, gate) WHERE tid IS NOT NULL GROUP BY gate
    ), decided AS MATERIALIZED (
        SELECT given.gate, given.number, r.most, r.has_waiting, r.is_set, r.tat, r.taken - given.number + w.number AS taken, w.tids
        FROM given CROSS JOIN LATERAL (
            SELECT taken, most, has_waiting, is_set, tat FROM @.gates WHERE id = given.gate AND taken >= given.number OFFSET 0
        ) AS r CROSS JOIN LATERAL (
            SELECT array_agg(tid) AS tids, count(*) AS number, coalesce(bool_and(is_simple), true) AS are_simple FROM (
                SELECT ctid AS tid, status = S.SCHEDULED AND flags & (@FAIR | @MANY_GATES) = 0 AND state IS NULL
                    AND (SELECT true FROM @.queues WHERE id = pg_catalog.convert_to(jobs.queue, 'UTF8') OFFSET 0) IS NULL AS is_simple
                FROM @.jobs WHERE gate >= given.gate AND gate <= given.gate AND gate IS NOT NULL
                ORDER BY gate, (-priority), due_at, seq
                LIMIT CASE WHEN r.has_waiting = 0 THEN 0 ELSE least(given.number, greatest(0, r.most - r.taken + given.number)) END
                FOR UPDATE NOWAIT
            ) AS each
        ) AS w WHERE w.are_simple
    )
    SELECT array_agg(d.gate), array_agg(d.taken), array_agg(d.has_waiting <> 0 AND d.taken < d.most), sum(d.number),
        array_agg(d.taken <= 0 AND d.has_waiting = 0 AND d.is_set = 0 AND d.tat IS NULL),
        (SELECT array_agg(tid) FROM decided CROSS JOIN LATERAL unnest(decided.tids) AS tid)
    INTO simple, taken_of, are_open, number, are_dropped, passing FROM decided AS d;
    IF number IS DISTINCT FROM cardinality(ran_for) THEN
        tids := ARRAY(SELECT CASE WHEN gate = ANY (simple) THEN tid END FROM unnest(tids, gate_ids) WITH ORDINALITY AS run (tid, gate, n) ORDER BY n);
        ended := ARRAY(SELECT (n - 1)::integer FROM unnest(tids) WITH ORDINALITY AS run (tid, n) WHERE tid IS NOT NULL);
    END IF;
    WITH ended AS (
        UPDATE @.jobs AS r SET
            status = S.SUCCEEDED, rev = new_rev, content = coalesce(g.outcome, results[1]), session = NULL, claim = NULL,
            settled = substr(fences, 37 * g.n::integer - 36, 37), started_at = now_at - g.length, ended_at = now_at,
            fade_at = now_at + coalesce(g.keep, keep_for[1])
        FROM unnest(tids, ran_for, keep_for, results) WITH ORDINALITY AS g (tid, length, keep, outcome, n)
        WHERE r.ctid = g.tid RETURNING r.queue
    )
    INSERT INTO @.tally (queue, event, before, after, n) SELECT queue, E.SUCCEED, S.RUNNING, S.SUCCEEDED, count(*) FROM ended GROUP BY queue;
    FOR place IN
        WITH readied AS (
            UPDATE @.jobs AS r SET status = S.READY, rev = new_rev, gate = NULL, since = now_at
            FROM unnest(passing) AS g (tid) WHERE r.ctid = g.tid RETURNING r.queue, r.priority, r.due_at
        ), counted AS (
            INSERT INTO @.tally (queue, event, before, after, n)
            SELECT queue, E.DUE, S.SCHEDULED, S.READY, count(*) FROM readied GROUP BY queue
        )
        SELECT queue, priority, count(*) AS number, min(due_at) AS due_at FROM readied GROUP BY queue, priority
    LOOP
        PERFORM @.record_place(place.queue, place.priority, S.READY, place.number, place.due_at, NULL, now_at);
    END LOOP;
    UPDATE @.gates AS r SET rev = new_rev, taken = g.taken, is_open = g.is_open::integer
    FROM unnest(simple, taken_of, are_open, are_dropped) AS g (id, taken, is_open, is_dropped)
    WHERE NOT g.is_dropped AND r.id BETWEEN g.id AND g.id AND (r.taken, r.is_open) <> (g.taken, g.is_open::integer);
    IF true = ANY (are_dropped) THEN
        DELETE FROM @.gates WHERE id = ANY (ARRAY(SELECT g.id FROM unnest(simple, are_dropped) AS g (id, is_dropped) WHERE g.is_dropped));
    END IF;
    opened := ARRAY(SELECT g.id FROM unnest(simple, are_open) AS g (id, is_open) WHERE g.is_open);
    are_awaited := EXISTS (
        SELECT 1 FROM @.awaited WHERE id = ANY (ARRAY(SELECT substr(ids, 16 * n - 15, 16) FROM generate_series(1, cardinality(ran_for)) AS n))
    );
    wakeups := @.wakeups();
END
$$;

-- --- upkeep -------------------------------------------------------------------------------------------

-- Makes the jobs in `due` READY whose time has come. Returns their number, when the next one is due, and whether the caller should check
-- the marks. Also adds up counts. If a crash of the server loses these changes, a later call repeats them, because no client's answer
-- depends on them.
CREATE FUNCTION @.promote(
    most integer, new_rev bigint, wall bigint, OUT moved bigint, OUT next_due bigint, OUT checks_marks boolean, OUT wakeups text
) LANGUAGE plpgsql @SETTINGS SET lock_timeout = '3s' AS $$
#variable_conflict use_column
DECLARE
    now_at CONSTANT bigint := @.wall(wall);
    m @.mark := @.newest_mark('due');
    place record;
BEGIN
    SET LOCAL synchronous_commit = off;
    checks_marks := @.may_check_marks(now_at);
    moved := 0;
    FOR place IN
        WITH due AS MATERIALIZED (
            SELECT id, status FROM @.jobs
            WHERE (@IS_DUE) AND due_at >= m.at AND due_at <= now_at
            ORDER BY due_at, seq LIMIT most FOR UPDATE SKIP LOCKED
        ), readied AS (
            UPDATE @.jobs AS r SET status = S.READY, rev = new_rev, due_at = CASE WHEN due.status = S.HELD THEN greatest(r.due_at, now_at) ELSE r.due_at END
            FROM due WHERE r.id BETWEEN due.id AND due.id RETURNING r.queue, r.priority, r.due_at, due.status AS former
        ), counted AS (
            INSERT INTO @.tally (queue, event, before, after, n)
            SELECT queue, CASE former WHEN S.HELD THEN E.RELEASE ELSE E.DUE END, former, S.READY, count(*) FROM readied GROUP BY queue, former
        )
        SELECT queue, priority, count(*) AS number, min(due_at) AS due_at FROM readied GROUP BY queue, priority
    LOOP
        moved := moved + place.number;
        PERFORM @.record_place(place.queue, place.priority, S.READY, place.number, place.due_at, NULL, now_at);
    END LOOP;
    SELECT due_at INTO next_due FROM @.jobs
    WHERE (@IS_DUE) AND due_at >= m.at ORDER BY due_at, seq LIMIT 1;
    PERFORM @.raise_mark(m, coalesce(next_due, now_at), 0, now_at);
    PERFORM @.sum_counts(now_at);
    IF moved = 0 THEN
        PERFORM @.nudge_again(now_at);
    END IF;
    wakeups := @.wakeups();
END
$$;

-- Buries ended jobs without ties that exceed their queue's cap or need not be kept any longer. Then forgets up to 1,000 ids that no resent
-- call can refer to any more. Returns how many jobs it buried, and the jobs with ties, each with whether it exceeds the cap.
CREATE FUNCTION @.fade(
    most integer, max_kept bigint, repeat_for bigint, new_rev bigint, wall bigint,
    OUT buried bigint, OUT has_more boolean, OUT left_ids bytea[], OUT left_over_cap boolean[]
) LANGUAGE plpgsql @SETTINGS SET lock_timeout = '3s' AS $$
#variable_conflict use_column
DECLARE
    now_at CONSTANT bigint := @.wall(wall);
    unsummed CONSTANT bigint := (@.newest_mark('tally')).at;
    crowded record;
    faded record;
BEGIN
    SET LOCAL synchronous_commit = off;
    buried := 0;
    left_ids := '{}';
    left_over_cap := '{}';
    FOR crowded IN
        SELECT queue, failed, sum(n) - max_kept AS over FROM (
            SELECT queue, what = '=' || S.FAILED AS failed, n FROM @.totals
            WHERE what IN ('=' || S.SUCCEEDED, '=' || S.CANCELLED, '=' || S.FAILED)
            UNION ALL
            SELECT queue, after = S.FAILED, n FROM @.tally WHERE id >= unsummed AND after BETWEEN S.SUCCEEDED AND S.CANCELLED
            UNION ALL
            SELECT queue, before = S.FAILED, -n FROM @.tally WHERE id >= unsummed AND before BETWEEN S.SUCCEEDED AND S.CANCELLED
        ) AS every
        GROUP BY 1, 2 HAVING sum(n) > max_kept ORDER BY 1, 2
    LOOP
        EXIT WHEN buried + cardinality(left_ids) >= most;
        SELECT * INTO faded FROM @.drop_oldest(
            crowded.queue, crowded.failed, least(crowded.over, most - buried - cardinality(left_ids))::integer, repeat_for, new_rev, now_at
        );
        buried := buried + faded.moved;
        left_ids := left_ids || faded.tied;
        left_over_cap := left_over_cap || array_fill(true, ARRAY[cardinality(faded.tied)]);
        has_more := has_more IS TRUE OR crowded.over > faded.moved + cardinality(faded.tied);
    END LOOP;
    SELECT * INTO faded FROM @.drop_faded(now_at, (most - buried - cardinality(left_ids))::integer, repeat_for, new_rev);
    buried := buried + faded.moved;
    left_over_cap := left_over_cap || array_fill(false, ARRAY[(SELECT count(*) FROM unnest(faded.tied) AS id WHERE id <> ALL (left_ids))::integer]);
    left_ids := left_ids || ARRAY(SELECT id FROM unnest(faded.tied) AS id WHERE id <> ALL (left_ids));
    has_more := has_more IS TRUE OR faded.has_more;
END
$$;

-- Drops the oldest ended jobs of a queue, either failed ones or other ones, except rows that another transaction has locked.
CREATE FUNCTION @.drop_oldest(
    of_queue text, are_failed boolean, most integer, repeat_for bigint, new_rev bigint, now_at bigint, OUT moved bigint, OUT tied bytea[]
) LANGUAGE plpgsql @SETTINGS AS $$
#variable_conflict use_column
DECLARE
    m @.mark := @.newest_mark('kept', of_queue, are_failed::integer);
    first_at bigint;
    last_at bigint;
    last_seq bigint;
    skipped bigint; -- locked by others
BEGIN
    WITH chosen AS MATERIALIZED (
        SELECT ended.* FROM unnest(CASE WHEN are_failed THEN ARRAY[S.FAILED] ELSE ARRAY[S.SUCCEEDED, S.CANCELLED] END) AS one (status)
        CROSS JOIN LATERAL (
            SELECT id, ended_at, seq FROM @.jobs
            WHERE jobs.status > S.RUNNING AND jobs.status < S.BURIED AND jobs.status = one.status AND queue = of_queue AND (ended_at, seq) >= (m.at, m.seq)
            ORDER BY ended_at, seq LIMIT most
        ) AS ended ORDER BY ended_at, seq LIMIT most
    ), locked AS MATERIALIZED (
        SELECT id, status, flags FROM @.jobs WHERE id = ANY (ARRAY(SELECT id FROM chosen)) AND status + 0 BETWEEN S.SUCCEEDED AND S.CANCELLED
        ORDER BY id FOR UPDATE SKIP LOCKED
    ), buried AS (
        UPDATE @.jobs AS r SET status = S.BURIED, rev = new_rev, cause = NULL, fade_at = least(r.ended_at, P.LATEST) + repeat_for,
            sent = NULL, state = NULL, content = NULL
        FROM locked WHERE r.id BETWEEN locked.id AND locked.id AND locked.flags & @KEPT_APART = 0
        RETURNING locked.status, r.fade_at
    ), counted AS (
        INSERT INTO @.tally (queue, event, before, n) SELECT of_queue, E.DROP, status, count(*) FROM buried GROUP BY status
    ), counted_again AS (
        INSERT INTO @.tally (queue, event, n) SELECT of_queue, W.DROPPED_OVER_CAP, count(*) FROM buried HAVING count(*) > 0
    ), reached AS (
        SELECT ended_at, seq FROM chosen ORDER BY ended_at DESC, seq DESC LIMIT 1
    )
    SELECT (SELECT count(*) FROM buried), (SELECT min(fade_at) FROM buried), (SELECT ended_at FROM reached), (SELECT reached.seq FROM reached),
        ARRAY(SELECT id FROM locked WHERE flags & @KEPT_APART <> 0), (SELECT count(*) FROM chosen) - (SELECT count(*) FROM locked)
    INTO moved, first_at, last_at, last_seq, tied, skipped;
    PERFORM @.lower_mark('fade', '', 0, first_at, now_at) WHERE moved > 0;
    PERFORM @.raise_mark(m, last_at, last_seq, now_at) WHERE last_at IS NOT NULL AND cardinality(tied) = 0 AND skipped = 0;
END
$$;

-- Buries ended jobs that need not be kept any longer, and forgets ids. Both are taken from the first rows that are due.
CREATE FUNCTION @.drop_faded(now_at bigint, most integer, repeat_for bigint, new_rev bigint, OUT moved bigint, OUT tied bytea[], OUT has_more boolean)
LANGUAGE plpgsql @SETTINGS AS $$
#variable_conflict use_column
DECLARE
    m @.mark := @.newest_mark('fade');
    looked_at bigint;
    left_over bigint;
    first_at bigint;
BEGIN
    IF m.set_at > now_at + 250000 THEN -- the clock was set back: jobs that succeed now fade before the mark
        PERFORM @.lower_mark('fade', '', 0, 0, now_at);
        m := @.newest_mark('fade');
    END IF;
    WITH first AS MATERIALIZED (
        SELECT id, status, flags, fade_at, least(ended_at, P.LATEST) + repeat_for <= now_at AS is_old
        FROM @.jobs WHERE fade_at >= m.at AND fade_at <= now_at ORDER BY fade_at, id LIMIT greatest(0, most) + 1000 FOR UPDATE SKIP LOCKED
    ), faded AS MATERIALIZED (
        SELECT id, status, flags, is_old FROM first WHERE status < S.BURIED ORDER BY fade_at, id LIMIT greatest(0, most)
    ), forgotten AS (
        DELETE FROM @.jobs WHERE id = ANY (ARRAY(
            SELECT id FROM first WHERE status = S.BURIED UNION ALL SELECT id FROM faded WHERE is_old AND flags & @KEPT_APART = 0
        )) RETURNING queue, status
    ), buried AS (
        UPDATE @.jobs AS r SET status = S.BURIED, rev = new_rev, cause = NULL, fade_at = least(r.ended_at, P.LATEST) + repeat_for,
            sent = NULL, state = NULL, content = NULL
        FROM faded WHERE r.id BETWEEN faded.id AND faded.id AND faded.flags & @KEPT_APART = 0 AND NOT is_old
        RETURNING r.queue, faded.status AS status, r.fade_at
    ), dropped AS (
        SELECT queue, status FROM buried UNION ALL SELECT queue, status FROM forgotten WHERE status < S.BURIED
    ), counted AS (
        INSERT INTO @.tally (queue, event, before, n) SELECT queue, E.DROP, status, count(*) FROM dropped GROUP BY queue, status
    )
    SELECT (SELECT count(*) FROM dropped), (SELECT min(fade_at) FROM buried), ARRAY(SELECT id FROM faded WHERE flags & @KEPT_APART <> 0),
        (SELECT count(*) FROM first), (SELECT count(*) FROM first WHERE status < S.BURIED) - (SELECT count(*) FROM faded)
    INTO moved, first_at, tied, looked_at, left_over;
    has_more := looked_at = greatest(0, most) + 1000 OR left_over > 0;
    PERFORM @.lower_mark('fade', '', 0, first_at, now_at) WHERE first_at IS NOT NULL;
    IF m.set_at NOT BETWEEN now_at - 200000 AND now_at THEN
        SELECT fade_at INTO first_at FROM @.jobs WHERE fade_at >= m.at ORDER BY fade_at, id LIMIT 1;
        PERFORM @.raise_mark(m, coalesce(first_at, now_at), 0, now_at);
    END IF;
END
$$;

-- --- counts -------------------------------------------------------------------------------------------

-- Adds up to 20,000 rows of tally to the totals, and returns their number. The rows are small, and each represents a whole operation. Does
-- nothing within half a second after all rows were added, because each call has to skip the dead rows that a long transaction keeps.
CREATE FUNCTION @.sum_counts(now_at bigint) RETURNS integer LANGUAGE plpgsql @SETTINGS AS $$
#variable_conflict use_column
DECLARE
    m @.mark := @.newest_mark('tally');
    last_id bigint;
    number integer;
BEGIN
    IF m.set_at BETWEEN now_at - 500000 AND now_at THEN
        RETURN 0;
    END IF;
    WITH first AS MATERIALIZED (
        SELECT id FROM @.tally WHERE id >= m.at ORDER BY id LIMIT 20000 FOR UPDATE SKIP LOCKED
    ), taken AS (
        DELETE FROM @.tally WHERE id = ANY (ARRAY(SELECT id FROM first)) RETURNING id, queue, event, before, after, n
    ), summed AS (
        SELECT queue, each.what, greatest(-P.LATEST, least(P.LATEST, sum(each.n))) AS n
        FROM taken, LATERAL (VALUES ('=' || before, -taken.n), ('=' || after, taken.n), (event, taken.n)) AS each (what, n)
        WHERE each.what IS NOT NULL GROUP BY queue, each.what
    ), added AS (
        INSERT INTO @.totals (queue, what, n) SELECT queue, what, n FROM summed ORDER BY queue, what
        ON CONFLICT (queue, what) DO UPDATE SET n = greatest(-P.LATEST, least(P.LATEST, totals.n + excluded.n))
    )
    SELECT max(id), count(*) INTO last_id, number FROM taken;
    INSERT INTO @.marks (kind, upto, open, n_open, at, set_at)
    SELECT 'tally', m.upto, m.open, cardinality(m.open), last_id, CASE WHEN number < 20000 THEN now_at ELSE 0 END WHERE number > 0;
    RETURN number;
END
$$;

CREATE FUNCTION @.server_info() RETURNS TABLE (version text, fsync text, full_page_writes text, synchronous_commit text, size bigint)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT current_setting('server_version'), current_setting('fsync'), current_setting('full_page_writes'),
        current_setting('synchronous_commit'), pg_total_relation_size('@.jobs'::regclass)
$$;

-- Functions that change rows are plpgsql, which keeps its plans. Plans of SQL functions are made at every call.

-- Returns microseconds since 1970: the time that a test has given, or else the server's.
CREATE FUNCTION @.wall(given bigint) RETURNS bigint LANGUAGE sql AS $$
    SELECT coalesce(given, (extract(epoch FROM pg_catalog.clock_timestamp()) OPERATOR(pg_catalog.*) 1000000::numeric)::bigint)
$$;

CREATE FUNCTION @.id_text(id bytea) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT encode(id, 'hex')::uuid::text
$$;

CREATE FUNCTION @.utf8(words text) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT pg_catalog.convert_to(words, 'UTF8')
$$;

CREATE FUNCTION @.is_paused(of_queue text) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (SELECT 1 FROM @.queues WHERE id = @.utf8(of_queue));
END
$$;
