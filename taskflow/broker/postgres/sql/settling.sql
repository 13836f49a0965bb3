-- Ends or turns runs, item by item; see packing.py for the kinds of verdicts. Answers: whether each is OK.
CREATE FUNCTION @.settle(
    wall bigint, ids bytea[], epochs integer[], sessions bytea[], requests bigint[], numbers integer[], kinds integer[], ran_for bigint[],
    keep_for bigint[], contents bytea[], errors bytea[], afters bigint[], followed integer[], f_ids bytea[], f_queues text[], f_jobs text[],
    f_priorities integer[], f_afters bigint[], f_ats bigint[], f_expiries bigint[], f_keys bytea[], f_conflicts integer[], f_payloads bytea[],
    f_extras bytea[], f_awaited integer[], f_joined bytea[], OUT answers boolean[], OUT rung text
) LANGUAGE plpgsql SET lock_timeout = '3s' SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    done bytea[];
    j @.jobs;
    fence bytea;
    keys bytea[];
    leaders bytea[];
BEGIN
    SELECT array_agg(key) FILTER (WHERE key IS NOT NULL), array_agg(joins) FILTER (WHERE joins IS NOT NULL) INTO keys, leaders
    FROM @.jobs WHERE id = ANY (ids);
    PERFORM @.lock_keys(keys || f_keys);
    PERFORM 1 FROM @.jobs WHERE id = ANY (ids || @.apart(leaders)) ORDER BY id FOR UPDATE;
    done := @.settle_plainly(now_at, ids, epochs, sessions, requests, numbers, kinds, ran_for, keep_for, contents, followed);
    IF cardinality(done) = cardinality(ids) AND (SELECT count(DISTINCT id) FROM unnest(ids) AS id) = cardinality(ids) THEN
        answers := array_fill(true, ARRAY [cardinality(ids)]);
        rung := current_setting('taskflow.rung', true);
        RETURN;
    END IF;
    FOR i IN 1 .. cardinality(ids) LOOP
        fence := int4send(epochs[i]) || sessions[i] || int8send(requests[i]) || int4send(numbers[i]);
        IF ids[i] = ANY (done) THEN
            answers[i] := (SELECT settled = fence FROM @.jobs WHERE id = ids[i]);
            CONTINUE;
        END IF;
        SELECT * INTO j FROM @.jobs WHERE id = ids[i];
        IF NOT FOUND THEN
            answers[i] := false;
        ELSIF j.status = S.RUNNING AND j.epoch = epochs[i] AND j.session = sessions[i] AND j.request = requests[i] AND j.number = numbers[i] THEN
            j.settled := fence;
            j.started_at := now_at - ran_for[i];
            PERFORM @.end_run(j, kinds[i], keep_for[i], contents[i], errors[i], afters[i], now_at);
            answers[i] := true;
            IF i = ANY (followed) THEN
                PERFORM @.add_all(
                    now_at, array_agg(f.id ORDER BY f.n), array_agg(f.queue ORDER BY f.n), array_agg(f.job ORDER BY f.n),
                    array_agg(f.priority ORDER BY f.n), array_agg(f.after ORDER BY f.n), array_agg(f.at ORDER BY f.n),
                    array_agg(f.expiry ORDER BY f.n), array_agg(f.key ORDER BY f.n), array_agg(f.conflict ORDER BY f.n),
                    array_agg(f.payload ORDER BY f.n), array_agg(f.extra ORDER BY f.n), array_agg(f.awaits ORDER BY f.n),
                    array_agg(f.joins ORDER BY f.n)
                )
                FROM unnest(followed, f_ids, f_queues, f_jobs, f_priorities, f_afters, f_ats, f_expiries, f_keys, f_conflicts, f_payloads, f_extras,
                    f_awaited, f_joined) WITH ORDINALITY
                    AS f (of, id, queue, job, priority, after, at, expiry, key, conflict, payload, extra, awaits, joins, n)
                WHERE f.of = i;
            END IF;
        ELSE
            answers[i] := j.settled IS NOT DISTINCT FROM fence;
        END IF;
    END LOOP;
    rung := current_setting('taskflow.rung', true);
END
$$;

-- The ids that stand one after another in each of these.
CREATE FUNCTION @.apart(joined bytea[]) RETURNS bytea[] LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF joined IS NULL THEN
        RETURN NULL;
    END IF;
    RETURN ARRAY (
        SELECT DISTINCT substr(each, 16 * i + 1, 16) FROM unnest(joined) AS each, LATERAL generate_series(0, length(each) / 16 - 1) AS i
    );
END
$$;

-- Successes of jobs that nobody waits for by key or join, all at once. The ids of those that were such.
CREATE FUNCTION @.settle_plainly(
    now_at bigint, ids bytea[], epochs integer[], sessions bytea[], requests bigint[], numbers integer[], kinds integer[], ran_for bigint[],
    keep_for bigint[], contents bytea[], followed integer[]
) RETURNS bytea[] LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    settled_ids bytea[];
BEGIN
    WITH given AS (
        SELECT * FROM unnest(ids, epochs, sessions, requests, numbers, kinds, ran_for, keep_for, contents) WITH ORDINALITY
            AS given (id, epoch, session, request, number, kind, ran_for, keep_for, result, place)
        WHERE kind = 1 AND place <> ALL (followed)
    ), matching AS MATERIALIZED ( -- each found by its id: the planner would else compare every lease with every settlement
        SELECT given.* FROM given
        CROSS JOIN LATERAL (SELECT * FROM @.jobs WHERE jobs.id = given.id OFFSET 0) AS found
        WHERE found.status = S.RUNNING AND found.epoch = given.epoch AND found.session = given.session
            AND found.request = given.request AND found.number = given.number AND found.key IS NULL AND found.joins IS NULL
    ), done AS (
        UPDATE @.jobs SET
            status = S.SUCCEEDED, payload = NULL, result = matching.result, session = NULL, request = NULL, number = NULL, reason = NULL,
            crashes = 0, hand_backs = 0, parked_at = NULL, started_at = now_at - matching.ran_for, ended_at = now_at,
            fade_at = now_at + matching.keep_for,
            settled = int4send(matching.epoch) || matching.session || int8send(matching.request) || int4send(matching.number)
        FROM matching
        WHERE jobs.id = matching.id
        RETURNING jobs.id, jobs.queue
    ), counted AS (
        SELECT @.count_move(queue, E.SUCCEED, S.RUNNING, S.SUCCEEDED, count(*)) FROM done GROUP BY queue
    ), told AS (
        SELECT @.ring(string_agg('job:' || encode(id, 'hex'), E'\n')) FROM done HAVING count(*) > 0
    )
    SELECT coalesce(array_agg(id), '{}') INTO settled_ids FROM done
    WHERE (SELECT count(*) FROM counted) >= 0 AND (SELECT count(*) FROM told) >= 0;
    RETURN settled_ids;
END
$$;

CREATE FUNCTION @.end_run(j @.jobs, kind integer, keep_for bigint, content bytea, error bytea, after bigint, now_at bigint)
RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF kind < 7 THEN
        j.crashes := 0;
        j.hand_backs := 0;
        j.parked_at := NULL;
    END IF;
    IF error IS NOT NULL THEN -- its time is the last of its fields: a 64-bit number
        j.failures := j.failures + 1;
        j.errors := @.noted(j.errors, error || '\xcf'::bytea || int8send(now_at));
    END IF;
    CASE kind
        WHEN 1 THEN
            j.result := content;
            j.payload := NULL;
            PERFORM @.finish(j, E.SUCCEED, S.SUCCEEDED, NULL, now_at, keep_for);
        WHEN 2 THEN
            PERFORM @.finish(j, E.FAIL, S.FAILED, content, now_at);
        WHEN 3 THEN
            PERFORM @.finish(j, E.DISCARD, S.FAILED, content, now_at);
        WHEN 4 THEN
            PERFORM @.finish(j, E.CANCEL, S.CANCELLED, content, now_at);
        WHEN 5 THEN
            PERFORM @.wait_again(j, E.RETRY, now_at, now_at + after);
        WHEN 6 THEN
            j.snoozes := j.snoozes + 1;
            PERFORM @.wait_again(j, E.SNOOZE, now_at, now_at + after);
        WHEN 7 THEN
            j.parked_at := coalesce(j.parked_at, now_at);
            j.waiting_for := content;
            PERFORM @.wait_again(j, E.PARK, now_at, now_at + after);
        WHEN 8 THEN
            PERFORM @.hand_back(j, content IS NOT NULL, now_at);
    END CASE;
END
$$;

CREATE FUNCTION @.cancel(wall bigint, ids bytea[], OUT statuses integer[], OUT rung text) LANGUAGE plpgsql SET lock_timeout = '3s' AS $$
#variable_conflict use_column
DECLARE
    now_at bigint := @.wall(wall);
    j @.jobs;
BEGIN
    PERFORM @.lock_jobs(ids);
    FOR i IN 1 .. cardinality(ids) LOOP
        SELECT * INTO j FROM @.jobs WHERE id = ids[i] AND status < S.GONE AND (ended_at IS NULL OR fade_at > now_at);
        statuses[i] := coalesce(j.status, -1);
        IF statuses[i] BETWEEN S.HELD AND S.READY THEN
            PERFORM @.finish(j, E.CANCEL, S.CANCELLED, @.utf8(W.CANCELLED), now_at);
        ELSIF statuses[i] = S.RUNNING THEN
            UPDATE @.jobs SET cancel_requested = W.CANCELLED WHERE id = j.id;
            PERFORM @.ring('session:' || encode(j.session, 'hex'));
        END IF;
    END LOOP;
    rung := current_setting('taskflow.rung', true);
END
$$;

CREATE FUNCTION @.read(wall bigint, ids bytea[]) RETURNS SETOF @.jobs LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
    now_at bigint := @.wall(wall);
BEGIN
    RETURN QUERY SELECT * FROM @.jobs WHERE id = ANY (ids) AND status < S.GONE AND (ended_at IS NULL OR fade_at > now_at);
END
$$;
