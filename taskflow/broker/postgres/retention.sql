-- The end of what is kept: upkeep drops ended jobs that are too many or too old, and forgets their ids later.

CREATE FUNCTION @.drop_over_cap(now_at bigint, most integer) RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
    crowded record;
    moved integer := 0;
    unsummed bigint := (@.newest_mark('tally', '', 0, now_at)).at;
BEGIN
    FOR crowded IN
        SELECT queue, failed, sum(n) - R.kept_per_queue AS over FROM (
            SELECT queue, what = '=' || S.FAILED AS failed, n FROM @.totals
            WHERE what IN ('=' || S.SUCCEEDED, '=' || S.CANCELLED, '=' || S.FAILED)
            UNION ALL
            SELECT queue, after = S.FAILED, n FROM @.tally WHERE id >= unsummed AND after BETWEEN S.SUCCEEDED AND S.CANCELLED
            UNION ALL
            SELECT queue, before = S.FAILED, -n FROM @.tally WHERE id >= unsummed AND before BETWEEN S.SUCCEEDED AND S.CANCELLED
        ) AS every
        GROUP BY 1, 2 HAVING sum(n) > R.kept_per_queue ORDER BY 1, 2
    LOOP
        EXIT WHEN moved >= most;
        moved := moved + @.drop_oldest(crowded.queue, crowded.failed, least(crowded.over, most - moved)::integer, now_at);
    END LOOP;
    RETURN moved;
END
$$;

-- Drops the oldest ended jobs of a queue, failed ones or the others, except rows that another transaction has locked.
CREATE FUNCTION @.drop_oldest(of_queue text, are_failed boolean, most integer, now_at bigint) RETURNS integer LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    m @.marks := @.newest_mark('kept', of_queue, are_failed::integer, now_at);
    raises boolean := @.may_raise_mark(m, now_at);
    moved integer;
    first_at bigint;
    last_at bigint;
    last_seq bigint;
    tagged bytea[];
    tags bytea[];
BEGIN
    WITH chosen AS MATERIALIZED (
        (SELECT ctid AS tid, ended_at, seq, status FROM @.jobs
        WHERE are_failed AND status = S.FAILED AND queue = of_queue AND (ended_at, seq) >= (m.at, m.seq) ORDER BY ended_at, seq LIMIT most)
        UNION ALL
        (SELECT ctid AS tid, ended_at, seq, status FROM @.jobs
        WHERE NOT are_failed AND status = S.SUCCEEDED AND queue = of_queue AND (ended_at, seq) >= (m.at, m.seq) ORDER BY ended_at, seq LIMIT most)
        UNION ALL
        (SELECT ctid AS tid, ended_at, seq, status FROM @.jobs
        WHERE NOT are_failed AND status = S.CANCELLED AND queue = of_queue AND (ended_at, seq) >= (m.at, m.seq) ORDER BY ended_at, seq LIMIT most)
        ORDER BY ended_at, seq LIMIT most
    ), locked AS MATERIALIZED (
        SELECT it.tid, chosen.status, it.extras FROM chosen CROSS JOIN LATERAL (
            SELECT ctid AS tid, extras FROM @.jobs WHERE jobs.ctid = chosen.tid AND jobs.status + 0 BETWEEN S.SUCCEEDED AND S.CANCELLED
            FOR UPDATE SKIP LOCKED
        ) AS it
    ), buried AS (
        UPDATE @.jobs SET status = S.BURIED, @drop{%n = %d}, fade_at = least(jobs.ended_at + R.repeat_for, P.LATEST)
        FROM locked WHERE jobs.ctid = locked.tid
        RETURNING locked.status AS status, jobs.fade_at, jobs.id, locked.extras
    ), counted AS (
        SELECT @.count_move(of_queue, E.DROP, status, NULL, count(*)), @.count_move(of_queue, W.DROPPED_OVER_CAP, NULL, NULL, count(*)),
            count(*) AS number, min(fade_at) AS fade_at
        FROM buried GROUP BY status
    ), reached AS (
        SELECT ended_at, seq FROM chosen ORDER BY ended_at DESC, seq DESC LIMIT 1
    )
    SELECT coalesce(sum(number), 0), min(fade_at), (SELECT ended_at FROM reached), (SELECT reached.seq FROM reached),
        (SELECT array_agg(id) FROM buried WHERE @.has_tags(extras)), (SELECT array_agg(substr(extras, 1, P.MOST_TAGS)) FROM buried WHERE @.has_tags(extras))
    INTO moved, first_at, last_at, last_seq, tagged, tags FROM counted;
    IF tagged IS NOT NULL THEN
        PERFORM @.drop_tags(tagged, tags);
    END IF;
    PERFORM @.lower_mark('fade', '', 0, first_at, 0, now_at) WHERE moved > 0;
    PERFORM @.raise_mark(m, last_at, last_seq, now_at) WHERE raises AND last_at IS NOT NULL;
    RETURN moved;
END
$$;

-- Buries ended jobs that need not be kept any longer, then forgets ids that no resent call can refer to any more, 1,000 of these at a time.
CREATE FUNCTION @.drop_faded(now_at bigint, most integer, OUT moved integer, OUT forgotten integer) LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    m @.marks := @.newest_mark('fade', '', 0, now_at);
    raises boolean := @.may_raise_mark(m, now_at);
    last_at bigint;
    last_id bytea;
    buried_ids bytea[];
    tagged bytea[];
    tags bytea[];
    until bigint;
BEGIN
    moved := 0;
    forgotten := 0;
    IF most <= 0 THEN
        RETURN;
    END IF;
    SELECT fade_at INTO last_at FROM @.jobs WHERE fade_at >= m.at ORDER BY fade_at, id LIMIT 1;
    IF last_at <= now_at IS NOT TRUE THEN
        PERFORM @.raise_mark(m, coalesce(last_at, now_at), 0, now_at) WHERE raises;
        RETURN;
    END IF;
    -- After a burst, very many ids may be due to be forgotten. Reading all of them in each call would cost the square of their number.
    SELECT fade_at INTO until FROM @.jobs WHERE fade_at >= m.at ORDER BY fade_at, id OFFSET most + 1000 LIMIT 1;
    WITH first AS MATERIALIZED (
        SELECT ctid AS tid, status, fade_at, extras FROM @.jobs WHERE fade_at >= m.at AND fade_at <= least(now_at, until) AND status < S.BURIED
        ORDER BY fade_at, id LIMIT most FOR UPDATE SKIP LOCKED
    ), buried AS (
        UPDATE @.jobs SET status = S.BURIED, @drop{%n = %d}, fade_at = least(jobs.ended_at + R.repeat_for, P.LATEST)
        FROM first WHERE jobs.ctid = first.tid
        RETURNING jobs.queue, first.status AS status, first.fade_at AS faded_at, jobs.id AS id, first.extras AS extras
    ), counted AS (
        SELECT @.count_move(queue, E.DROP, status, NULL, count(*)), count(*) AS number FROM buried GROUP BY queue, status
    )
    SELECT coalesce(sum(number), 0), (SELECT faded_at FROM buried ORDER BY faded_at DESC, id DESC LIMIT 1),
        (SELECT id FROM buried ORDER BY faded_at DESC, id DESC LIMIT 1), (SELECT array_agg(id) FROM buried),
        (SELECT array_agg(id) FROM buried WHERE @.has_tags(extras)), (SELECT array_agg(substr(extras, 1, P.MOST_TAGS)) FROM buried WHERE @.has_tags(extras))
    INTO moved, last_at, last_id, buried_ids, tagged, tags FROM counted;
    IF tagged IS NOT NULL THEN
        PERFORM @.drop_tags(tagged, tags);
    END IF;
    -- If the limit is used up, forget only ids that were due before the last job that was buried.
    IF moved < most THEN
        last_at := now_at + 1;
        last_id := '';
    END IF;
    WITH old AS MATERIALIZED (
        SELECT ctid AS tid FROM @.jobs WHERE status = S.BURIED AND fade_at >= m.at AND (fade_at, id) < (last_at, last_id)
        ORDER BY fade_at, id LIMIT 1000 FOR UPDATE SKIP LOCKED
    )
    DELETE FROM @.jobs USING old WHERE jobs.ctid = old.tid;
    GET DIAGNOSTICS forgotten = ROW_COUNT;
    DELETE FROM @.jobs WHERE id = ANY (buried_ids) AND (fade_at, id) < (last_at, last_id);
    SELECT fade_at INTO last_at FROM @.jobs WHERE fade_at >= m.at ORDER BY fade_at, id LIMIT 1;
    PERFORM @.raise_mark(m, coalesce(last_at, now_at), 0, now_at) WHERE raises;
    PERFORM @.lower_mark('fade', '', 0, min(fade_at), 0, now_at) FROM @.jobs WHERE id = ANY (buried_ids) HAVING count(*) > 0;
END
$$;
