-- Moves the sessions' deadlines if the clock or an outage would end them too early or too late.
CREATE FUNCTION @.spare_after_outage(steady bigint, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    pulse bigint := (SELECT value FROM @.meta WHERE name = 'pulse');
BEGIN
    -- Times in the future: another program wrote them, the clock was set back, or this call has waited for a lock since it read the clock.
    -- They would keep a session alive, or hide its end. (least() ignores a NULL: it would declare a living session dead.)
    UPDATE @.sessions SET beat_at = least(beat_at, steady), dead_at = CASE WHEN dead_at IS NOT NULL THEN least(dead_at, now_at) END
    WHERE beat_at > steady + 1000000 OR dead_at > now_at;
    IF pulse > steady THEN
        UPDATE @.meta SET value = steady WHERE name = 'pulse';
        UPDATE @.sessions SET beat_at = steady WHERE dead_at IS NULL AND beat_at > steady;
    ELSE -- no worker has sent a heartbeat for a session's whole ttl, so the store was away, not the workers: it gets one more ttl, once
        UPDATE @.sessions SET is_spared = true, beat_at = steady
        WHERE dead_at IS NULL AND NOT is_spared AND steady - greatest(0, pulse) > ttl;
    END IF;
END
$$;

-- Registers a session. Returns false if it is dead.
CREATE FUNCTION @.register(
    wall bigint, steady bigint, new_id bytea, new_name text, new_ttl bigint, new_about bytea, new_wants_ends boolean, new_deploy bytea
) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    died_at bigint;
BEGIN
    steady := coalesce(steady, now_at);
    PERFORM @.spare_after_outage(steady, now_at);
    INSERT INTO @.sessions (id, name, ttl, about, registered_at, beat_at, wants_ends, deploy)
    VALUES (new_id, new_name, new_ttl, new_about, now_at, steady, new_wants_ends, new_deploy)
    ON CONFLICT (id) DO NOTHING;
    IF FOUND THEN -- a session that was forgotten and is registered again gets a fresh start
        DELETE FROM @.requests WHERE session = new_id;
    ELSE
        UPDATE @.sessions SET about = new_about WHERE id = new_id AND dead_at IS NULL AND about <> new_about;
    END IF;
    SELECT dead_at INTO died_at FROM @.sessions WHERE id = new_id;
    IF died_at IS NOT NULL THEN
        RETURN false;
    END IF;
    INSERT INTO @.meta (name, value) VALUES ('pulse', steady) ON CONFLICT (name) DO UPDATE SET value = excluded.value;
    RETURN true;
END
$$;

-- --- beat ---------------------------------------------------------------------------------------------

-- Takes the heartbeat of a session. `requests` and `numbers` name claims; `reported_...`, `running_for` and `progress` are the reports.
-- Returns whether the session is lost, the number of ghosts, which of the named claims are held (their positions, from 1), and which of
-- these are asked to stop. `died_of`: the cause of death of the worker's process, whose leases are crashes; `fingerprint`: that of poison
-- of this cause. With `looks` also the outlook: whether a job is ready, and microseconds until upkeep may have something to move, NULL if
-- nothing waits for it. `checks_marks` as in upkeep.
CREATE FUNCTION @.beat(
    wall bigint, steady bigint, of_session bytea, requests bigint[], numbers integer[], seen bigint,
    reported_requests bigint[], reported_numbers integer[], running_for bigint[], progresses bytea[], leaving boolean,
    died_of bytea, looks boolean, fingerprint bytea DEFAULT NULL,
    OUT is_lost boolean, OUT ghosts integer, OUT held integer[], OUT stopping integer[], OUT wakeups text,
    OUT is_ready boolean, OUT due_in bigint, OUT checks_marks boolean
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET jit = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    s @.sessions;
    new_recent_from bigint;
    dues bigint[];
    lease record;
    j @.jobs;
BEGIN
    steady := coalesce(steady, now_at);
    ghosts := 0;
    PERFORM @.spare_after_outage(steady, now_at);
    SELECT * INTO s FROM @.sessions WHERE id = of_session FOR UPDATE;
    is_lost := s.id IS NULL OR s.dead_at IS NOT NULL;
    IF is_lost THEN
        RETURN;
    END IF;
    new_recent_from := greatest(
        s.recent_from, least(seen, coalesce((SELECT request FROM @.requests WHERE session = of_session ORDER BY request DESC LIMIT 1), 0)) + 1
    );
    s.older_requests := (SELECT coalesce(array_agg(DISTINCT request), '{}') FROM @.leases_of(s) WHERE request < new_recent_from);
    s.recent_from := new_recent_from;
    UPDATE @.sessions SET beat_at = steady, is_spared = false, recent_from = s.recent_from, older_requests = s.older_requests WHERE id = of_session;
    -- This waits for no lock of another program, because a late heartbeat would end its session.
    FOR i IN 1 .. cardinality(reported_requests) LOOP
        UPDATE @.jobs SET started_at = now_at - running_for[i], progress = coalesce(progresses[i], progress)
        WHERE id = (
            SELECT id FROM @.jobs
            WHERE session = of_session AND request = reported_requests[i] AND number = reported_numbers[i] AND status = S.RUNNING
            FOR UPDATE SKIP LOCKED
        );
    END LOOP;
    FOR lease IN
        SELECT id FROM @.leases_of(s) AS held
        WHERE request <= seen AND claimed_steady <= steady - R.ghost_after
            AND NOT EXISTS (SELECT 1 FROM unnest(requests, numbers) AS named (request, number)
                WHERE named.request = held.request AND named.number = held.number)
        ORDER BY request, number
    LOOP
        CONTINUE WHEN NOT @.try_lock_job(lease.id);
        SELECT * INTO j FROM @.jobs WHERE id = lease.id AND session = of_session AND status = S.RUNNING;
        IF FOUND THEN
            @lighten(j);
            PERFORM @.requeue(j, E.GHOST, now_at);
            ghosts := ghosts + 1;
        END IF;
    END LOOP;
    IF leaving OR died_of IS NOT NULL THEN
        PERFORM @.end_session(s, died_of, fingerprint, now_at);
    END IF;
    SELECT array_agg(named.place), array_agg(named.place) FILTER (WHERE lease.is_asked_to_stop) INTO held, stopping
    FROM unnest(requests, numbers) WITH ORDINALITY AS named (request, number, place)
    JOIN @.leases_of(s) AS lease ON lease.request = named.request AND lease.number = named.number;
    INSERT INTO @.meta (name, value) VALUES ('pulse', steady) ON CONFLICT (name) DO UPDATE SET value = excluded.value;
    PERFORM @.pass_on_late_nudges(now_at) WHERE looks;
    wakeups := @.wakeups();
    IF NOT looks THEN
        RETURN;
    END IF;
    checks_marks := @.may_check_marks(now_at);
    is_ready := EXISTS (
        SELECT 1 FROM @.ready_marks(now_at) AS m
        WHERE NOT EXISTS (SELECT 1 FROM @.paused WHERE paused.queue = m.queue) AND @.first_ready(m) IS NOT NULL
    );
    dues := ARRAY[
        @.first_due(now_at),
        @.next_look(),
        (
            SELECT expires_at FROM @.jobs
            WHERE expires_at IS NOT NULL AND status < S.RUNNING AND expires_at >= (@.newest_mark('expiry', '', 0, now_at)).at
            ORDER BY expires_at, id LIMIT 1
        ),
        (SELECT fade_at FROM @.jobs WHERE fade_at IS NOT NULL AND fade_at >= (@.newest_mark('fade', '', 0, now_at)).at ORDER BY fade_at, id LIMIT 1)
    ];
    SELECT CASE WHEN bool_or(dead_at IS NOT NULL) THEN 0 ELSE min(least(beat_at, steady) + least(ttl, R.longest)) + 1 - steady END INTO due_in
    FROM @.sessions WHERE dead_at IS NULL OR NOT is_released;
    due_in := greatest(0, least(due_in, (SELECT min(due) FROM unnest(dues) AS due) - @.wall(wall)));
    IF s.wants_ends AND EXISTS (SELECT 1 FROM @.ends) THEN
        due_in := 0;
    END IF;
END
$$;

-- Marks a session dead, and ends its leases: as crashes with the cause `died_of`, or, if that is NULL, as hand-backs. Upkeep ends those on
-- jobs that another transaction has locked now.
CREATE FUNCTION @.end_session(s @.sessions, died_of bytea, fingerprint bytea, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    lease record;
BEGIN
    UPDATE @.sessions SET dead_at = now_at, is_spared = died_of IS NULL WHERE id = s.id;
    IF died_of IS NOT NULL THEN
        DELETE FROM @.idle WHERE listener = s.listener;
    END IF;
    PERFORM @.drop_declarations(s.id, now_at);
    FOR lease IN SELECT id FROM @.leases_of(s) ORDER BY request, number LOOP
        PERFORM @.end_dead_lease(lease.id, s.id, died_of IS NULL, died_of, now_at, fingerprint);
    END LOOP;
END
$$;

-- Looks up each of the older requests: an index of the session alone would also read all its former leases that cannot be vacuumed yet.
CREATE FUNCTION @.leases_of(s @.sessions)
RETURNS TABLE (id @.identity, request bigint, number @.counter, claimed_steady bigint, is_asked_to_stop boolean)
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT jobs.id, jobs.request, jobs.number, jobs.claimed_steady, jobs.cancel_requested IS NOT NULL
    FROM @.jobs WHERE status = S.RUNNING AND session = s.id AND jobs.request >= s.recent_from;
    RETURN QUERY
    SELECT lease.*
    FROM unnest(s.older_requests) AS held (request) CROSS JOIN LATERAL (
        SELECT jobs.id, jobs.request, jobs.number, jobs.claimed_steady, jobs.cancel_requested IS NOT NULL
        FROM @.jobs WHERE status = S.RUNNING AND session = s.id AND jobs.request = held.request
        OFFSET 0
    ) AS lease
    WHERE held.request < s.recent_from;
END
$$;

CREATE FUNCTION @.workers(wall bigint, steady bigint) RETURNS TABLE (
    session bytea, session_name text, session_ttl bigint, session_about bytea, registered bigint, silent_for bigint, leases bigint, is_dying boolean
) LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT id, name, ttl, about, registered_at, greatest(0, coalesce(steady, @.wall(wall)) - greatest(0, beat_at)), count_of.leases, dead_at IS NOT NULL
    FROM @.sessions, LATERAL (SELECT count(*) AS leases FROM @.leases_of(sessions)) AS count_of
    WHERE NOT is_released AND (dead_at IS NULL OR count_of.leases > 0)
$$;
