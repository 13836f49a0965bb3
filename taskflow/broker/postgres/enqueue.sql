-- Returns "i" if the id is known, "c" if it is that of another job, and NULL if it is unknown.
CREATE FUNCTION @.known_as(of_id bytea, of_queue text, of_job text, of_key bytea, of_payload bytea) RETURNS bytea LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN status = S.BURIED
            OR queue = of_queue AND job = of_job AND key IS NOT DISTINCT FROM of_key AND coalesce(payload = of_payload, true) THEN 'i'::bytea
        ELSE 'c'::bytea
    END FROM @.jobs WHERE id = of_id
$$;

-- Adds one call that has a key, or awaits or joins others. Returns "" if it was added, "r" and the id that it replaced, "k" and the id that
-- has the key, or the answer of known_as().
CREATE FUNCTION @.add_keyed(j @.jobs, on_conflict integer, now_at bigint) RETURNS bytea LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    waiting @.jobs;
    running bytea;
    standing bytea := @.known_as(j.id, j.queue, j.job, j.key, j.payload);
BEGIN
    IF standing IS NOT NULL THEN
        RETURN standing;
    END IF;
    IF j.key IS NOT NULL AND on_conflict = 0 THEN -- without a lock on the rows, because a refusal needs none
        standing := coalesce(
            (SELECT id FROM @.jobs WHERE key = j.key AND status < S.RUNNING),
            (SELECT id FROM @.jobs WHERE key = j.key AND status = S.RUNNING AND cancel_requested IS NULL)
        );
        IF standing IS NOT NULL THEN
            IF @.has_fixed_snapshot() THEN -- it may have ended since the transaction began: then this is a serialization failure
                PERFORM 1 FROM @.jobs WHERE id = standing FOR SHARE;
            END IF;
            RETURN 'k'::bytea || standing;
        END IF;
    END IF;
    IF j.key IS NOT NULL THEN
        SELECT * INTO waiting FROM @.jobs WHERE key = j.key AND status < S.RUNNING FOR UPDATE;
        -- Updated, not only locked: a settlement of that job that waits for the key, at "repeatable read", must not miss the job that waits
        -- for it.
        UPDATE @.jobs SET key = key WHERE key = j.key AND status = S.RUNNING RETURNING id INTO running;
        IF waiting.id IS NOT NULL THEN
            @lighten(waiting);
            PERFORM @.finish(waiting, E.REPLACE, S.CANCELLED, @.utf8(format(W.REPLACED_BY, @.id_text(j.id))), now_at);
        END IF;
        IF running IS NOT NULL THEN
            j.awaits := least(coalesce(j.awaits, 0) + 1, P.MOST_COUNTED);
            j.behind := running;
            j.waiting_for := @.utf8(format(W.WAITS_BEHIND, @.id_text(running)));
        END IF;
    END IF;
    j.seq := nextval('@.arrivals');
    PERFORM @.enter(j, E.ENQUEUE, now_at, true);
    RETURN CASE WHEN waiting.id IS NULL THEN ''::bytea ELSE 'r'::bytea || waiting.id END;
END
$$;

-- Adds one call with an unknown id and no key, in statements without the overhead of those for many calls.
CREATE FUNCTION @.add_keyless(now_at bigint, @sent{%n %t}) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    due CONSTANT bigint := greatest(now_at, coalesce(at, now_at + after));
    to_status CONSTANT integer := CASE WHEN awaits > 0 THEN S.HELD WHEN due > now_at THEN S.SCHEDULED ELSE S.READY END;
    new_seq CONSTANT bigint := nextval('@.arrivals');
BEGIN
    INSERT INTO @.jobs (seq, created_at, due_at, status, queue, job, extras, expires_at, joins, @as_sent{%n})
    VALUES (new_seq, now_at, due, to_status, queue, job, extras, now_at + expiry, joins, @as_sent{%n});
    INSERT INTO @.tally (queue, event, before, after, n) VALUES (queue, E.ENQUEUE, NULL, to_status, 1);
    IF substr(extras, 2, 2) = P.TAGGED THEN -- as in has_tags()
        PERFORM @.index_tags(ARRAY[id], ARRAY[extras]);
    END IF;
    IF to_status = S.READY AND @.is_after_mark(queue, -priority, due, new_seq, now_at) THEN
        PERFORM @.add_wakeup('queue:' || queue);
    ELSE
        PERFORM @.announce_waiting(to_status, queue, priority, due, new_seq, now_at);
    END IF;
END
$$;

-- Returns `number` elements: the given ones, or the only given one repeated.
CREATE FUNCTION @.repeated(given anyarray, number integer) RETURNS anyarray LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE cardinality(given) WHEN 1 THEN array_fill(given[1], ARRAY[number]) ELSE given END
$$;

-- Adds calls in order. Arrays of queues, jobs, priorities and conflicts may have one element if all are equal. Returns NULL if all were
-- added, else an answer for each.
CREATE FUNCTION @.add_jobs(now_at bigint, @sent{all_%n %t[]}) RETURNS bytea[]
LANGUAGE plpgsql SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    answers bytea[];
    topics text[];
    numbers bigint[];
    j @.jobs;
    of record;
BEGIN
    IF cardinality(all_id) = 1 AND all_key[1] IS NULL AND NOT EXISTS (SELECT 1 FROM @.jobs WHERE id = all_id[1]) THEN
        PERFORM @.add_keyless(now_at, @sent{all_%n[1]});
        RETURN NULL;
    END IF;
    all_queue := @.repeated(all_queue, cardinality(all_id));
    all_job := @.repeated(all_job, cardinality(all_id));
    all_priority := @.repeated(all_priority, cardinality(all_id));
    all_conflict := @.repeated(all_conflict, cardinality(all_id));
    IF cardinality(array_remove(all_key, NULL)) = 0 THEN
        -- If one of the ids is known, the whole block is rolled back: looking for each one before, or ON CONFLICT, costs more.
        BEGIN
            WITH given AS (
                SELECT * FROM unnest(@sent{all_%n}) WITH ORDINALITY AS given (@sent{%n}, place)
            ), added AS (
                INSERT INTO @.jobs (created_at, due_at, status, queue, job, extras, expires_at, joins, @as_sent{%n})
                SELECT now_at, greatest(now_at, coalesce(at, now_at + after)),
                    CASE
                        WHEN awaits > 0 THEN S.HELD
                        WHEN greatest(now_at, coalesce(at, now_at + after)) > now_at THEN S.SCHEDULED
                        ELSE S.READY
                    END,
                    queue, job, extras, now_at + expiry, joins, @as_sent{%n}
                FROM given ORDER BY place
                RETURNING queue, status, priority, due_at, seq
            ), grouped AS (
                SELECT queue, status, priority, count(*) AS number, min(due_at) AS due_at, min(seq) AS seq FROM added
                GROUP BY queue, status, priority
            ), counted AS (
                INSERT INTO @.tally (queue, event, before, after, n) SELECT queue, E.ENQUEUE, NULL, status, number FROM grouped
            ), lowered AS ( -- like announce_waiting(), but only if there is something to do
                SELECT CASE status
                    WHEN S.SCHEDULED THEN @.lower_mark('due', '', 0, due_at, 0, now_at)
                    WHEN S.READY THEN @.lower_mark('ready', queue, -priority, due_at, seq, now_at)
                END
                FROM grouped
                WHERE status <> S.READY OR NOT @.is_after_mark(queue, -priority, due_at, seq, now_at)
            )
            SELECT array_agg(CASE status WHEN S.SCHEDULED THEN 'due' ELSE 'queue:' || queue END),
                array_agg(CASE status WHEN S.SCHEDULED THEN @.is_first_due(due_at, seq)::integer ELSE number END)
            INTO topics, numbers FROM grouped
            WHERE (SELECT count(*) FROM lowered) >= 0 AND status IN (S.SCHEDULED, S.READY);
            IF topics IS NOT NULL THEN
                PERFORM @.add_wakeup(topic, number) FROM unnest(topics, numbers) AS each (topic, number);
            END IF;
            IF cardinality(all_extras) > 0 AND EXISTS (SELECT 1 FROM unnest(all_extras) AS extras WHERE @.has_tags(extras)) THEN
                PERFORM @.index_tags(all_id, all_extras);
            END IF;
            RETURN NULL;
        EXCEPTION WHEN unique_violation THEN
            NULL; -- one by one
        END;
    END IF;
    PERFORM @.lock_keys(all_key);
    FOR of IN
        SELECT * FROM unnest(@sent{all_%n}) WITH ORDINALITY AS given (@sent{%n}, place) ORDER BY place
    LOOP
        j := NULL;
        SELECT @as_sent{of.%n} INTO @as_sent{j.%n};
        j.created_at := now_at;
        j.due_at := greatest(now_at, coalesce(of.at, now_at + of.after));
        j.epoch := 0;
        j.queue := of.queue;
        j.job := of.job;
        j.extras := of.extras;
        j.expires_at := now_at + of.expiry;
        j.joins := of.joins;
        j.failures := 0;
        j.crashes := 0;
        j.snoozes := 0;
        j.hand_backs := 0;
        answers := answers || @.add_keyed(j, of.conflict, now_at);
    END LOOP;
    RETURN answers;
END
$$;

CREATE FUNCTION @.refuse_if_full(ids bytea[], capacity bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    fresh CONSTANT bigint := (SELECT count(*) FROM unnest(ids) AS given (id) WHERE NOT EXISTS (SELECT 1 FROM @.jobs WHERE jobs.id = given.id));
BEGIN
    IF fresh > 0 AND fresh + (SELECT count(*) FROM @.jobs WHERE status <= S.RUNNING) > capacity THEN
        RAISE EXCEPTION USING MESSAGE = format(W.STORE_FULL, capacity), ERRCODE = 'disk_full';
    END IF;
END
$$;

-- The verb `enqueue`. `capacity` is the maximum number of live jobs, or NULL.
CREATE FUNCTION @.enqueue_all(
    wall bigint, capacity bigint, @sent{all_%n %t[]},
    OUT answers bytea[], OUT wakeups text
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '3s' AS $$
#variable_conflict use_column
BEGIN
    IF capacity IS NOT NULL THEN
        PERFORM @.refuse_if_full(all_id, capacity);
    END IF;
    answers := @.add_jobs(@.wall(wall), @sent{all_%n});
    wakeups := @.wakeups();
END
$$;
