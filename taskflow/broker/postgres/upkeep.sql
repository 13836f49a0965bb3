-- Makes the moves that time has made necessary, at most `most`. With `takes_ends`, also returns the first jobs that have ended without a
-- settlement, and how many of these were dropped because too many were waiting. One caller works at a time; the others call again later.
CREATE FUNCTION @.upkeep(
    wall bigint, steady bigint, most integer, takes_ends boolean DEFAULT false,
    OUT readied integer, OUT reaped integer, OUT released integer, OUT expired integer, OUT dropped integer, OUT next_in bigint,
    OUT names text[], OUT digests bytea[], OUT bodies bytea[], OUT nexts bigint[], OUT sinces bigint[], OUT now_at bigint,
    OUT checks_marks boolean, OUT wakeups text,
    OUT ended bytea[], OUT ends_dropped integer
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    next_look bigint;
    first_due bigint;
    left_over integer := most;
    summed integer;
    faded record;
BEGIN
    now_at := @.wall(wall);
    steady := coalesce(steady, now_at);
    readied := 0; reaped := 0; released := 0; expired := 0; dropped := 0; checks_marks := false;
    next_in := R.upkeep_every;
    IF NOT @.try_lock(hashtextextended('@.upkeep', 0)) THEN
        RETURN;
    END IF;
    -- If a crash of the server loses this, it is done again, and no client has received an answer. A call that depends on it waits for the
    -- disk itself.
    SET LOCAL synchronous_commit = off;
    checks_marks := @.may_check_marks(now_at);
    PERFORM @.spare_after_outage(steady, now_at);
    reaped := @.reap(steady, now_at);
    readied := @.ready_due(now_at, left_over);
    left_over := greatest(0, left_over - readied);
    released := @.release_leases(now_at, left_over);
    left_over := greatest(0, left_over - released);
    expired := @.expire(now_at, left_over);
    left_over := greatest(0, left_over - expired);
    summed := @.sum_counts(now_at);
    dropped := @.drop_over_cap(now_at, left_over);
    SELECT * INTO faded FROM @.drop_faded(now_at, left_over - dropped);
    dropped := dropped + faded.moved;
    left_over := left_over - dropped;
    SELECT least(greatest(1, count(*)) * R.upkeep_every, min(beat_at + ttl) + 1 - steady) INTO next_in FROM @.sessions WHERE dead_at IS NULL;
    next_look := @.next_look();
    IF next_look <= now_at THEN
        SELECT offers.* INTO names, digests, bodies, nexts, sinces FROM @.offers(now_at) AS offers;
        next_look := @.next_look();
    END IF;
    first_due := least(@.first_due(now_at), next_look);
    IF left_over <= 0 OR summed = 20000 OR faded.forgotten = 1000 THEN
        next_in := 0;
    ELSIF first_due IS NOT NULL THEN
        next_in := least(next_in, first_due - @.wall(wall)); -- measured from now, not from the start of the call
    END IF;
    IF takes_ends THEN
        SELECT taken.* INTO ended, ends_dropped FROM @.take_ends() AS taken;
        IF EXISTS (SELECT 1 FROM @.ends) THEN
            next_in := 0;
        END IF;
    END IF;
    next_in := greatest(0, next_in);
    PERFORM @.pass_on_late_nudges(now_at);
    wakeups := @.wakeups();
END
$$;

-- Marks sessions dead that have sent no heartbeat for their ttl, and removes the notes of their listeners. Returns how many.
CREATE FUNCTION @.reap(steady bigint, now_at bigint) RETURNS integer LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    reaped integer;
BEGIN
    WITH lapsed AS (
        UPDATE @.sessions SET dead_at = now_at WHERE dead_at IS NULL AND steady - beat_at > ttl RETURNING listener
    ), forgotten AS (
        DELETE FROM @.idle USING lapsed WHERE idle.listener = lapsed.listener
    )
    SELECT count(*) INTO reaped FROM lapsed;
    RETURN reaped;
END
$$;

-- Removes the first ends that were noted, and returns them. First drops the oldest if there are too many.
CREATE FUNCTION @.take_ends(OUT ended bytea[], OUT dropped integer) LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET enable_bitmapscan = off AS $$
BEGIN
    DELETE FROM @.ends WHERE number <= (SELECT number FROM @.ends ORDER BY number DESC OFFSET R.most_ends LIMIT 1);
    GET DIAGNOSTICS dropped = ROW_COUNT;
    WITH first AS MATERIALIZED (
        SELECT number FROM @.ends ORDER BY number LIMIT R.max_ends
    ), taken AS (
        DELETE FROM @.ends USING first WHERE ends.number = first.number RETURNING ends.number, ends.id
    )
    SELECT array_agg(id ORDER BY number) INTO ended FROM taken;
END
$$;

-- Sums up to 20,000 rows of tally, and returns how many. They are small, and each stands for a whole verb. Not again within half a second
-- after all were summed: while a long transaction keeps dead rows, each sum has to pass all former versions.
CREATE FUNCTION @.sum_counts(now_at bigint) RETURNS integer LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    m @.marks := @.newest_mark('tally', '', 0, now_at);
    raises boolean := @.may_raise_mark(m, now_at);
    last_id bigint;
    number integer;
BEGIN
    IF (@.newest_mark('summed', '', 0, now_at)).set_at > now_at - 500000 THEN
        RETURN 0;
    END IF;
    WITH first AS MATERIALIZED (
        SELECT id FROM @.tally WHERE id >= m.at ORDER BY id LIMIT 20000
    ), taken AS (
        DELETE FROM @.tally USING first WHERE tally.id = first.id RETURNING tally.id, queue, event, before, after, n
    ), summed AS (
        SELECT queue, each.what, greatest(-P.LATEST, least(P.LATEST, sum(each.n))) AS n
        FROM taken, LATERAL (VALUES ('=' || before, -taken.n), ('=' || after, taken.n), (event, taken.n)) AS each (what, n)
        WHERE each.what IS NOT NULL GROUP BY queue, each.what
    ), added AS (
        INSERT INTO @.totals (queue, what, n) SELECT queue, what, n FROM summed ORDER BY queue, what
        ON CONFLICT (queue, what) DO UPDATE SET n = greatest(-P.LATEST, least(P.LATEST, totals.n + excluded.n))
    )
    SELECT max(id), count(*) INTO last_id, number FROM taken;
    PERFORM @.raise_mark(m, last_id, 0, now_at) WHERE raises AND last_id IS NOT NULL;
    IF number < 20000 THEN
        INSERT INTO @.marks (kind, at, set_at) VALUES ('summed', 0, now_at);
    END IF;
    RETURN number;
END
$$;

CREATE FUNCTION @.ready_due(now_at bigint, most integer) RETURNS integer LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    from_at bigint := (@.newest_mark('due', '', 0, now_at)).at;
    moved integer;
BEGIN
    WITH due AS MATERIALIZED (
        SELECT id FROM @.jobs WHERE status = S.SCHEDULED AND due_at >= from_at AND due_at <= now_at
        ORDER BY due_at, seq, id LIMIT most FOR UPDATE SKIP LOCKED
    ), readied AS (
        UPDATE @.jobs SET status = S.READY FROM due WHERE jobs.id = due.id RETURNING queue, priority, due_at, seq
    ), counted AS (
        SELECT queue, priority, count(*) AS number, min(due_at) AS due_at FROM readied GROUP BY queue, priority
    ), moved AS (
        SELECT @.count_move(queue, E.DUE, S.SCHEDULED, S.READY, number), @.announce_waiting(S.READY, queue, priority, due_at, 0, now_at, number), number FROM counted
    )
    SELECT coalesce(sum(number), 0) INTO moved FROM moved;
    RETURN moved;
END
$$;

-- Returns the due time of the first scheduled job, or NULL if there are none.
CREATE FUNCTION @.first_due(now_at bigint) RETURNS bigint
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off SET enable_bitmapscan = off AS $$
DECLARE
    m @.marks := @.newest_mark('due', '', 0, now_at);
    raises boolean := @.may_raise_mark(m, now_at);
    first bigint;
BEGIN
    SELECT due_at INTO first FROM @.jobs WHERE status = S.SCHEDULED AND due_at >= m.at ORDER BY due_at, seq, id LIMIT 1;
    PERFORM @.raise_mark(m, coalesce(first, now_at), 0, now_at) WHERE raises;
    RETURN first;
END
$$;

CREATE FUNCTION @.release_leases(now_at bigint, most integer) RETURNS integer LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    s @.sessions;
    lease record;
    moved integer := 0;
BEGIN
    FOR s IN SELECT * FROM @.sessions WHERE dead_at IS NOT NULL ORDER BY number LOOP
        PERFORM @.drop_declarations(s.id, now_at) WHERE NOT s.is_released;
        FOR lease IN SELECT id FROM @.leases_of(s) WHERE NOT s.is_released ORDER BY request, number LIMIT most - moved LOOP
            moved := moved + @.end_dead_lease(lease.id, s.id, s.is_spared, NULL, now_at)::integer;
        END LOOP;
        IF NOT s.is_released AND moved < most AND EXISTS (SELECT 1 FROM @.jobs WHERE status = S.RUNNING AND session = s.id) THEN
            UPDATE @.sessions SET recent_from = 0, older_requests = '{}' WHERE id = s.id; -- a mark that hid its leases, or a locked lease
        END IF;
        -- Not in the call that has found it dead: at "repeatable read", that call does not see what a concurrent claim has leased to the
        -- session.
        IF NOT s.is_released AND moved < most AND s.dead_at < now_at THEN
            UPDATE @.sessions SET is_released = true
            WHERE id = s.id AND NOT EXISTS (SELECT 1 FROM @.leases_of(s)) AND NOT EXISTS (SELECT 1 FROM @.declarations WHERE session = s.id)
            RETURNING true INTO s.is_released;
        END IF;
        IF s.is_released AND s.dead_at < now_at - R.repeat_for THEN
            DELETE FROM @.sessions WHERE id = s.id;
        END IF;
    END LOOP;
    RETURN moved;
END
$$;

CREATE FUNCTION @.expire(now_at bigint, most integer) RETURNS integer LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    m @.marks := @.newest_mark('expiry', '', 0, now_at);
    raises boolean := @.may_raise_mark(m, now_at);
    j @.jobs;
    moved integer := 0;
    first bigint;
BEGIN
    FOR j IN
        SELECT * FROM @.jobs WHERE expires_at IS NOT NULL AND status < S.RUNNING AND expires_at >= m.at AND expires_at <= now_at
        ORDER BY expires_at, id LIMIT most
    LOOP
        CONTINUE WHEN NOT @.try_lock_job(j.id);
        SELECT * INTO j FROM @.jobs WHERE id = j.id AND status < S.RUNNING;
        IF FOUND THEN
            @lighten(j);
            PERFORM @.finish(j, E.EXPIRE, S.CANCELLED, @.utf8(W.EXPIRED), now_at);
            moved := moved + 1;
        END IF;
    END LOOP;
    IF raises THEN
        SELECT expires_at INTO first FROM @.jobs WHERE expires_at IS NOT NULL AND status < S.RUNNING AND expires_at >= m.at
        ORDER BY expires_at, id LIMIT 1;
        PERFORM @.raise_mark(m, coalesce(first, now_at), 0, now_at);
    END IF;
    RETURN moved;
END
$$;

-- Finds declarations and runs whose session is unknown, because otherwise they would never be released. It takes one index step for each
-- session with leases.
CREATE FUNCTION @.release_orphans(now_at bigint) RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    orphan record;
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
        SELECT jobs.id, jobs.session FROM holding JOIN @.jobs ON jobs.session = holding.session AND jobs.status = S.RUNNING
        WHERE NOT EXISTS (SELECT 1 FROM @.sessions WHERE sessions.id = holding.session)
    LOOP
        PERFORM @.end_dead_lease(orphan.id, orphan.session, false, NULL, now_at)
        WHERE NOT EXISTS (SELECT 1 FROM @.sessions WHERE id = orphan.session);
    END LOOP;
    PERFORM @.drop_declarations(session, now_at) FROM (SELECT DISTINCT session FROM @.declarations) AS each
    WHERE NOT EXISTS (SELECT 1 FROM @.sessions WHERE id = session);
END
$$;
