-- Schedules. Workers read their definitions; these functions only compare and move their times.

-- Announces a schedule that is to be looked at before all others.
CREATE FUNCTION @.announce_look(of_name text, at bigint) RETURNS void LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
BEGIN
    PERFORM @.add_wakeup('due') WHERE at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM @.schedules WHERE (look_at, name) < (at, of_name));
END
$$;

-- Saves a schedule that the caller has locked, except its body. A paused one is not looked at, and one that sleeps only to be removed.
CREATE FUNCTION @.save_schedule(s @.schedules) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    s.look_at := CASE WHEN s.asleep_since IS NOT NULL THEN least(s.asleep_since + R.keep_asleep, P.LATEST) WHEN NOT s.is_paused THEN s.look_at END;
    UPDATE @.schedules SET
        (digest, is_paused, next_at, since, look_at, asleep_since, last_at, fired_at, last_id, fired, skipped, missed)
        = (s.digest, s.is_paused, s.next_at, s.since, s.look_at, s.asleep_since, s.last_at, s.fired_at, s.last_id, s.fired, s.skipped, s.missed)
    WHERE name = s.name
        AND (digest, is_paused, next_at, since, look_at, asleep_since, last_at, fired_at, last_id, fired, skipped, missed) IS DISTINCT FROM
        (s.digest, s.is_paused, s.next_at, s.since, s.look_at, s.asleep_since, s.last_at, s.fired_at, s.last_id, s.fired, s.skipped, s.missed);
    PERFORM @.announce_look(s.name, s.look_at) WHERE FOUND;
END
$$;

-- --- define -------------------------------------------------------------------------------------------

-- Brings a definition into force. Another one has its next instant computed again, unless that has passed and is still to be fired.
CREATE FUNCTION @.bring_into_force(s @.schedules, new_digest bytea, new_body bytea, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF s.digest <> new_digest THEN
        s.digest := new_digest;
        UPDATE @.schedules SET body = new_body WHERE name = s.name;
        IF s.next_at <= now_at IS NOT TRUE THEN
            s.since := CASE WHEN s.next_at IS NULL THEN coalesce(s.since, now_at) ELSE now_at END;
            s.next_at := NULL;
            s.look_at := now_at;
        END IF;
    END IF;
    PERFORM @.save_schedule(s);
END
$$;

-- Brings the youngest declaration of a living session into force. If there is none, the schedule sleeps.
CREATE FUNCTION @.elect(s @.schedules, now_at bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    d @.declarations;
BEGIN
    SELECT declarations.* INTO d FROM @.declarations JOIN @.sessions ON id = session
    WHERE schedule = s.name AND dead_at IS NULL ORDER BY since DESC, session DESC LIMIT 1;
    IF NOT FOUND THEN
        s.asleep_since := coalesce(s.asleep_since, now_at);
        PERFORM @.save_schedule(s);
        RETURN;
    ELSIF s.asleep_since IS NOT NULL THEN
        s.asleep_since := NULL;
        s.look_at := now_at;
    END IF;
    PERFORM @.bring_into_force(s, d.digest, d.body, now_at);
END
$$;

-- Stores definitions: declared by a session that is `age` old, or put. Returns for each whether it was taken; NULL if the session is dead.
CREATE FUNCTION @.define(
    wall bigint, names text[], digests bytea[], bodies bytea[], of_session bytea, age bigint, OUT answers boolean[], OUT wakeups text
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    given record;
    s @.schedules;
BEGIN
    IF of_session IS NOT NULL THEN
        PERFORM 1 FROM @.sessions WHERE id = of_session AND dead_at IS NULL FOR SHARE;
        IF NOT FOUND THEN
            RETURN;
        END IF;
    END IF;
    answers := '{}';
    FOR given IN -- in the order in which fire() locks the rows
        SELECT * FROM unnest(names, digests, bodies) WITH ORDINALITY AS given (name, digest, body, place) ORDER BY name COLLATE "C", place
    LOOP
        LOOP -- again if another transaction has removed the schedule between the two statements
            INSERT INTO @.schedules (name, digest, body, is_declared, since, look_at)
            VALUES (given.name, given.digest, given.body, of_session IS NOT NULL, now_at, now_at) ON CONFLICT (name) DO NOTHING;
            PERFORM @.announce_look(given.name, now_at) WHERE FOUND;
            SELECT * INTO s FROM @.schedules WHERE name = given.name FOR UPDATE;
            EXIT WHEN FOUND;
        END LOOP;
        answers[given.place] := s.is_declared = (of_session IS NOT NULL);
        IF NOT answers[given.place] THEN
            CONTINUE;
        ELSIF of_session IS NULL THEN
            PERFORM @.bring_into_force(s, given.digest, given.body, now_at);
        ELSE
            INSERT INTO @.declarations (schedule, session, since, digest, body) VALUES (given.name, of_session, now_at - age, given.digest, given.body)
            ON CONFLICT (schedule, session) DO UPDATE SET since = excluded.since, digest = excluded.digest, body = excluded.body;
            PERFORM @.elect(s, now_at);
        END IF;
    END LOOP;
    wakeups := @.wakeups();
END
$$;

-- Withdraws the declarations of a dead session. A schedule that another transaction has locked is left: upkeep tries again.
CREATE FUNCTION @.drop_declarations(of_session bytea, now_at bigint) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    s @.schedules;
BEGIN
    FOR s IN
        SELECT schedules.* FROM @.declarations JOIN @.schedules ON name = schedule WHERE session = of_session
        ORDER BY name FOR UPDATE OF schedules SKIP LOCKED
    LOOP
        DELETE FROM @.declarations WHERE schedule = s.name AND session = of_session;
        PERFORM @.elect(s, now_at);
    END LOOP;
END
$$;

-- --- offers -------------------------------------------------------------------------------------------

CREATE FUNCTION @.next_look() RETURNS bigint LANGUAGE plpgsql SET enable_seqscan = off SET jit = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN (SELECT look_at FROM @.schedules WHERE look_at IS NOT NULL ORDER BY look_at, name LIMIT 1);
END
$$;

-- Leaves the schedules that are due to the caller for a while, as many as fit into an answer, and removes those that have slept for long.
CREATE FUNCTION @.offers(now_at bigint, OUT names text[], OUT digests bytea[], OUT bodies bytea[], OUT nexts bigint[], OUT sinces bigint[])
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
    WITH locked AS MATERIALIZED (
        SELECT name, asleep_since, look_at, octet_length(body) AS size FROM @.schedules WHERE look_at <= now_at
        ORDER BY look_at, name LIMIT R.max_offers FOR UPDATE SKIP LOCKED
    ), due AS (
        SELECT name, asleep_since, sum(size) OVER (ORDER BY look_at, name) AS size_so_far FROM locked
    ), gone AS (
        DELETE FROM @.schedules USING due WHERE schedules.name = due.name AND due.asleep_since IS NOT NULL
    ), offered AS (
        UPDATE @.schedules SET look_at = now_at + R.offered_for
        FROM due WHERE schedules.name = due.name AND due.asleep_since IS NULL AND size_so_far <= P.MOST_PAYLOAD_BYTES
        RETURNING schedules.*
    )
    SELECT array_agg(name), array_agg(digest), array_agg(body), array_agg(next_at), array_agg(coalesce(since, now_at))
    INTO names, digests, bodies, nexts, sinces FROM (SELECT * FROM offered ORDER BY name) AS sorted;
END
$$;

-- --- fire ---------------------------------------------------------------------------------------------

-- Moves schedules on, each if its digest and its next instant are the expected ones. `places`: the positions of their calls, which are
-- given as to enqueue(). Returns the answers to these as add_keyed() does; NULL if no call was added.
CREATE FUNCTION @.fire(
    wall bigint, capacity bigint, names text[], digests bytea[], expected bigint[], nexts bigint[], looks bigint[], misses bigint[],
    places integer[], @sent{all_%n %t[]}, OUT answers bytea[], OUT wakeups text
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    s @.schedules;
BEGIN
    IF capacity IS NOT NULL THEN
        PERFORM @.refuse_if_full(all_id, capacity);
    END IF;
    PERFORM 1 FROM @.schedules WHERE name = ANY (names) ORDER BY name FOR UPDATE;
    PERFORM @.lock_keys(all_key);
    answers := array_fill(NULL::bytea, ARRAY[cardinality(names)]);
    FOR i IN 1 .. cardinality(names) LOOP
        SELECT * INTO s FROM @.schedules
        WHERE name = names[i] AND digest = digests[i] AND next_at IS NOT DISTINCT FROM expected[i] AND NOT is_paused;
        CONTINUE WHEN NOT FOUND;
        IF places[i] IS NOT NULL THEN
            answers[i] := coalesce((@.add_jobs(now_at, @sent{all_%n[places[i]:places[i]]}))[1], '');
            s.last_at := s.next_at;
            s.fired_at := now_at;
            IF substr(answers[i], 1, 1) = 'k' THEN
                s.skipped := least(s.skipped, P.LATEST) + 1;
            ELSIF answers[i] NOT IN ('i', 'c') THEN
                s.fired := least(s.fired, P.LATEST) + 1;
                s.last_id := all_id[places[i]];
            END IF;
        END IF;
        s.missed := least(s.missed, P.LATEST) + misses[i];
        s.next_at := nexts[i];
        s.since := CASE WHEN looks[i] IS NOT NULL THEN s.since END;
        s.look_at := looks[i];
        PERFORM @.save_schedule(s);
    END LOOP;
    wakeups := @.wakeups();
END
$$;

-- --- the console --------------------------------------------------------------------------------------

CREATE FUNCTION @.schedules(names text[]) RETURNS TABLE (
    name text, digest bytea, body bytea, is_declared boolean, is_paused boolean, next_at bigint, last_at bigint, fired_at bigint, last_id bytea,
    fired bigint, skipped bigint, missed bigint, asleep_since bigint, declarers text
) LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT name, digest, body, is_declared, is_paused, next_at, last_at, fired_at, last_id, fired, skipped, missed, asleep_since, (
        SELECT string_agg(sessions.name, E'\x1f' ORDER BY since DESC, session DESC) FROM @.declarations JOIN @.sessions ON id = session
        WHERE schedule = schedules.name AND dead_at IS NULL
    )
    FROM @.schedules WHERE names IS NULL OR name = ANY (names) ORDER BY name
$$;

CREATE FUNCTION @.amend_schedule(wall bigint, of_name text, amendment text, OUT is_done boolean, OUT wakeups text) LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' AS $$
#variable_conflict use_column
DECLARE
    s @.schedules;
BEGIN
    IF amendment = 'remove' THEN
        DELETE FROM @.schedules WHERE name = of_name AND (NOT is_declared OR asleep_since IS NOT NULL);
        is_done := FOUND;
        RETURN;
    END IF;
    SELECT * INTO s FROM @.schedules WHERE name = of_name FOR UPDATE;
    is_done := FOUND;
    IF amendment = 'resume' AND s.is_paused THEN
        s.next_at := NULL;
        s.since := @.wall(wall);
        s.look_at := s.since;
    END IF;
    s.is_paused := amendment = 'pause';
    PERFORM @.save_schedule(s) WHERE is_done;
    wakeups := @.wakeups();
END
$$;
