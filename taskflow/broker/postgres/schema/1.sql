-- 1: The tables.

-- "@." stands for the schema, S.READY and similar names for the code of a status, P. and R. for a limit. Values replace them before the
-- server sees the text. Times are microseconds since 1970. Ids of jobs and sessions, and keys, are 16 bytes.

-- --- types ----------------------------------------------------------------------------------------------

-- The server rejects values that no function could work with, whichever program writes them. It lets others pass: a worker decodes them,
-- and ends a job that it cannot read as FAILED.
CREATE DOMAIN @.identity AS bytea CHECK (octet_length(VALUE) = 16);
CREATE DOMAIN @.instant AS bigint CHECK (VALUE BETWEEN 0 AND P.LATEST);
CREATE DOMAIN @.counter AS integer CHECK (VALUE BETWEEN 0 AND P.MOST_COUNTED); -- one less than the type's maximum, because a function adds one
CREATE DOMAIN @.cause AS bytea CHECK (octet_length(VALUE) >= 8);
CREATE DOMAIN @.amount AS bigint CHECK (VALUE BETWEEN -P.LATEST AND P.LATEST);
CREATE DOMAIN @.arrival AS bigint CHECK (VALUE > 0);
CREATE DOMAIN @.status AS smallint CHECK (VALUE BETWEEN S.HELD AND S.BURIED);
CREATE DOMAIN @.priority AS smallint CHECK (VALUE BETWEEN -100 AND 100);
CREATE DOMAIN @.queue_name AS text COLLATE "C" CHECK (octet_length(VALUE) BETWEEN 1 AND 400);
CREATE DOMAIN @.job_name AS text COLLATE "C" CHECK (octet_length(VALUE) BETWEEN 1 AND 800);
-- The conversion fails for text that is not UTF-8, which an SQL_ASCII database would admit.
CREATE DOMAIN @.schedule_name AS text COLLATE "C" CHECK (octet_length(convert_to(VALUE, 'UTF8')) BETWEEN 1 AND 800);
CREATE DOMAIN @.channel AS text COLLATE "C" CHECK (octet_length(VALUE) BETWEEN 1 AND 63); -- as NOTIFY takes it
CREATE DOMAIN @.topic AS text COLLATE "C" CHECK (octet_length(VALUE) BETWEEN 1 AND 500);
CREATE DOMAIN @.identities AS bytea CHECK (octet_length(VALUE) <= P.MOST_JOINED_BYTES AND octet_length(VALUE) % 16 = 0);

-- --- jobs -----------------------------------------------------------------------------------------------

CREATE SEQUENCE @.arrivals;

-- The order leaves few bytes between the columns that most rows have.
CREATE TABLE @.jobs (
    id @.identity NOT NULL,
    seq @.arrival NOT NULL DEFAULT nextval('@.arrivals'),
    created_at @.instant NOT NULL,
    due_at @.instant NOT NULL,
    epoch @.counter NOT NULL DEFAULT 0, -- rises by one with each lease
    status @.status NOT NULL,
    priority @.priority NOT NULL, -- higher runs first
    queue @.queue_name NOT NULL,
    job @.job_name NOT NULL,
    payload bytea,
    extras bytea, -- msgpack: the fields that the store does not act on
    expires_at @.instant, -- cancelled if it has not started by then
    key bytea, -- of the jobs with a key, at most one waits and one runs
    awaits @.counter, -- HELD: the number of jobs that must end before this one is released
    joins @.identities, -- the jobs that wait for this one
    behind @.identity, -- HELD: the running job with the same key
    -- Its current lease, or what remains of the last one.
    session @.identity,
    request bigint,
    number @.counter, -- the position in the answer to that request
    claimed_at bigint,
    claimed_steady bigint,
    worker bytea, -- the worker's name
    started_at bigint,
    settled bytea, -- the fence of its last settlement: epoch, session, request, number
    -- Its runs so far.
    failures @.counter NOT NULL DEFAULT 0,
    crashes @.counter NOT NULL DEFAULT 0,
    snoozes @.counter NOT NULL DEFAULT 0,
    hand_backs @.counter NOT NULL DEFAULT 0,
    parked_at @.instant,
    errors bytea, -- msgpack, one error after another
    progress bytea,
    cancel_requested text,
    result bytea,
    reason bytea, -- why it ended
    waiting_for bytea, -- why it waits
    is_poison boolean,
    ended_at @.instant,
    fade_at @.instant, -- the job is dropped then
    cause @.cause, -- FAILED: a fingerprint of 8 bytes, and the deploy
    CONSTRAINT a_run_is_leased CHECK (
        CASE WHEN status = S.RUNNING THEN session IS NOT NULL AND (number + claimed_steady) IS NOT NULL AND (request >= 0) IS TRUE ELSE session IS NULL END
    ),
    CONSTRAINT an_end_has_its_time CHECK ((status >= S.SUCCEEDED) = (ended_at IS NOT NULL) AND (status >= S.SUCCEEDED) = (fade_at IS NOT NULL)),
    CONSTRAINT a_failure_has_a_cause CHECK (status <> S.FAILED OR cause IS NOT NULL),
    CONSTRAINT the_held_await CHECK (status <> S.HELD OR coalesce(awaits, 0) > 0)
) WITH (
    -- Vacuumed after this many dead rows, however many live ones there are, in steps so short that a claim hardly waits for one. The total
    -- rate is that of the server's default settings (200 in 2 ms): a higher one would take processor time and log bandwidth from claims and
    -- commits.
    autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_vacuum_insert_scale_factor = 0.1, autovacuum_analyze_threshold = 10000, autovacuum_analyze_scale_factor = 0.1,
    autovacuum_vacuum_cost_limit = 100, autovacuum_vacuum_cost_delay = 1, toast.autovacuum_vacuum_threshold = 10000,
    toast.autovacuum_vacuum_scale_factor = 0.02
);
COMMENT ON TABLE @.jobs IS 'A job: waiting, running, or ended and kept for a while.';

CREATE UNIQUE INDEX jobs_by_id ON @.jobs (id);
CREATE INDEX jobs_ready ON @.jobs (queue, priority DESC, due_at, seq) WHERE status = S.READY;
CREATE INDEX jobs_due ON @.jobs (due_at, seq, id) WHERE status = S.SCHEDULED;
CREATE UNIQUE INDEX jobs_leased ON @.jobs (session, request, number) WHERE status = S.RUNNING;
CREATE INDEX jobs_expiring ON @.jobs (expires_at, id) WHERE expires_at IS NOT NULL AND status < S.RUNNING;
CREATE INDEX jobs_held ON @.jobs (seq) WHERE status = S.HELD;
CREATE INDEX jobs_succeeded ON @.jobs (queue, ended_at, seq) WHERE status = S.SUCCEEDED;
CREATE INDEX jobs_failed ON @.jobs (queue, ended_at, seq) WHERE status = S.FAILED;
CREATE INDEX jobs_cancelled ON @.jobs (queue, ended_at, seq) WHERE status = S.CANCELLED;
CREATE INDEX jobs_causes ON @.jobs (cause, job, ended_at, queue) WHERE status = S.FAILED;
CREATE INDEX jobs_fading ON @.jobs (fade_at, id) WHERE fade_at IS NOT NULL;
CREATE UNIQUE INDEX jobs_waiting_with_key ON @.jobs (key) WHERE key IS NOT NULL AND status < S.RUNNING;
CREATE UNIQUE INDEX jobs_running_with_key ON @.jobs (key) WHERE key IS NOT NULL AND status = S.RUNNING;
-- A transaction at "repeatable read" does not see a job that was added after it began. This index rejects its own job with that key.
CREATE UNIQUE INDEX jobs_first_of_key ON @.jobs (key) WHERE key IS NOT NULL AND status <= S.RUNNING AND behind IS NULL;

-- Jobs without tags have no row here. The tags themselves are among a job's extras.
CREATE TABLE @.tags (tag text COLLATE "C", id bytea, PRIMARY KEY (tag, id))
    WITH (autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_scale_factor = 0.02);
COMMENT ON TABLE @.tags IS 'The jobs that have a tag.';

CREATE TABLE @.paused (queue text COLLATE "C" PRIMARY KEY);
COMMENT ON TABLE @.paused IS 'Queues of which no job is leased.';

-- --- listeners ------------------------------------------------------------------------------------------

-- A listener is named by its own channel. Its notes are hints. After a crash of the server these tables are empty, the connections are cut,
-- and each listener writes its notes again.

-- `since`: it has waited since then, by the server's own clock. A listener writes its notes every minute, and old ones do not count.
-- `nudged_at`: it was notified then of jobs in the topic `nudged_for`, and has not claimed since. The notes of its other queues have only
-- the time.
CREATE UNLOGGED TABLE @.idle (
    listener @.channel NOT NULL,
    topic @.topic NOT NULL,
    since bigint NOT NULL,
    nudged_at bigint,
    nudged_for @.topic,
    PRIMARY KEY (listener, topic)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE @.idle IS 'Listeners that wait for jobs of a queue, of any queue, or for what is due.';
CREATE INDEX idle_by_topic ON @.idle (topic, since);
CREATE INDEX idle_nudged ON @.idle (nudged_at) WHERE nudged_at IS NOT NULL;

CREATE UNLOGGED TABLE @.awaited (id bytea, listener @.channel, until_when bigint NOT NULL, PRIMARY KEY (id, listener))
    WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE @.awaited IS 'Jobs whose end a listener waits for.';

-- --- workers --------------------------------------------------------------------------------------------

CREATE TABLE @.sessions (
    id bytea PRIMARY KEY,
    number bigint GENERATED ALWAYS AS IDENTITY,
    name text NOT NULL CONSTRAINT a_name_is_short CHECK (octet_length(name) <= P.MOST_BYTES),
    ttl bigint NOT NULL CONSTRAINT a_ttl_is_possible CHECK (ttl BETWEEN 1 AND R.longest),
    about bytea NOT NULL CONSTRAINT about_is_short CHECK (octet_length(about) <= P.MOST_BYTES), -- msgpack: queues, concurrency
    registered_at @.instant NOT NULL,
    beat_at @.instant NOT NULL, -- the last heartbeat
    is_spared boolean NOT NULL DEFAULT false, -- its deadline was moved once, because the store itself was away
    dead_at @.instant,
    is_released boolean NOT NULL DEFAULT false, -- it is dead, and has no lease any more
    -- Its leases belong to the requests from `recent_from` on, and to some `older_requests`.
    recent_from bigint NOT NULL DEFAULT 0 CONSTRAINT recent_from_is_possible CHECK (recent_from BETWEEN 0 AND P.LATEST),
    older_requests bigint[] NOT NULL DEFAULT '{}',
    listener @.channel, -- is notified of a run that is asked to stop
    wants_ends boolean NOT NULL DEFAULT false, -- its upkeep asks for ends without a settlement
    deploy bytea NOT NULL DEFAULT '' CONSTRAINT a_deploy_is_short CHECK (octet_length(deploy) <= P.MOST_BYTES),
    CONSTRAINT the_released_are_dead CHECK (dead_at IS NOT NULL OR NOT is_released)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE @.sessions IS 'A worker''s session: it holds leases, and is dead when it has sent no heartbeat for its ttl.';

-- Hints: after a crash of the server this table is empty.
CREATE UNLOGGED TABLE @.ends (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id @.identity NOT NULL)
    WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE @.ends IS 'Jobs that have ended without a settlement, for workers that hear of them.';

-- One row for each request, because all versions of a row that changes often would have to be read. A session's newest row counts.
CREATE TABLE @.requests (
    session bytea NOT NULL,
    request bigint NOT NULL,
    ended_in @.queue_name, -- the queue of the last job that it leased: the next request begins with the following queue
    PRIMARY KEY (session, request)
) WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE @.requests IS 'The requests by which sessions have claimed jobs.';

-- --- schedules ------------------------------------------------------------------------------------------

CREATE TABLE @.schedules (
    name @.schedule_name PRIMARY KEY,
    digest @.identity NOT NULL, -- another one if the body is another
    body bytea NOT NULL CONSTRAINT a_body_is_not_too_long CHECK (octet_length(body) <= P.MOST_PAYLOAD_BYTES), -- only workers read it
    is_declared boolean NOT NULL, -- by sessions; otherwise it was put
    is_paused boolean NOT NULL DEFAULT false,
    next_at @.instant, -- the instant to fire next; NULL if it has to be computed, or there is none
    since @.instant, -- compute the next instant after this; NULL if there is none
    look_at @.instant, -- offered then; a schedule that sleeps is removed then
    asleep_since @.instant, -- no living session declares it since then
    last_at @.instant, -- the instant that was fired last
    fired_at @.instant, -- when that happened
    last_id @.identity, -- the last job that was added
    fired bigint NOT NULL DEFAULT 0,
    skipped bigint NOT NULL DEFAULT 0,
    missed bigint NOT NULL DEFAULT 0,
    CONSTRAINT the_paused_are_not_offered CHECK (look_at IS NULL OR NOT is_paused OR asleep_since IS NOT NULL)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE @.schedules IS 'Schedules, each with the definition that is in force.';
CREATE INDEX schedules_by_look ON @.schedules (look_at, name) WHERE look_at IS NOT NULL;

CREATE TABLE @.declarations (
    schedule @.schedule_name REFERENCES @.schedules ON DELETE CASCADE,
    session bytea,
    since bigint NOT NULL, -- the session is this old
    digest @.identity NOT NULL,
    body bytea NOT NULL CONSTRAINT a_body_is_not_too_long CHECK (octet_length(body) <= P.MOST_PAYLOAD_BYTES),
    PRIMARY KEY (schedule, session)
) WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE @.declarations IS 'Definitions of schedules by sessions. That of the youngest living session is in force.';
CREATE INDEX declarations_by_session ON @.declarations (session);

-- --- audit log --------------------------------------------------------------------------------------

CREATE TABLE @.acts (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id @.identity NOT NULL UNIQUE,
    at @.instant NOT NULL,
    body bytea NOT NULL CONSTRAINT an_act_is_short CHECK (octet_length(body) <= P.MOST_BYTES) -- msgpack: only operators read it
);
COMMENT ON TABLE @.acts IS 'What operators did to jobs, queues and schedules.';

-- --- marks and counts --------------------------------------------------------------------------------

-- How far an ordered index has been read: in a place of this kind, no live row is known before (at, seq). The newest row of a place counts;
-- older ones are never read, and are dropped now and then. Rows are added and never changed, because all versions of a row that changes
-- often would have to be read while a long transaction keeps them.
--
-- kind     place              order                 written by
-- ready    queue, -priority   jobs_ready            every function that makes a job ready, and claims
-- due                         jobs_due              upkeep
-- expiry                      jobs_expiring         upkeep, and functions that put an expired job back
-- fade                        jobs_fading           upkeep, and functions that drop the kept data of a job
-- kept     queue, 1: failed   jobs_failed, or both others  upkeep
-- tally                       id of tally           upkeep
CREATE TABLE @.marks (
    kind text COLLATE "C" NOT NULL,
    queue text COLLATE "C" NOT NULL DEFAULT '',
    rank smallint NOT NULL DEFAULT 0,
    n bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    at bigint NOT NULL,
    seq bigint NOT NULL DEFAULT 0,
    set_at bigint NOT NULL
) WITH (autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE @.marks IS 'Low-water marks: where to begin to read an index of jobs.';
CREATE UNIQUE INDEX marks_newest ON @.marks (kind, queue, rank, n DESC);

-- The changes that a function has made in a queue, one row each, so that none waits for another: `n` jobs moved with an event from one
-- status to another. `late`: a job became ready or scheduled in a transaction that may last long; see low_water_marks.sql.
CREATE TABLE @.tally (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue @.queue_name NOT NULL,
    event text CONSTRAINT an_event_is_short CHECK (octet_length(event) <= 100),
    before smallint,
    after smallint,
    n @.amount NOT NULL,
    late_priority smallint,
    late_at bigint
) WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE @.tally IS 'Counts that upkeep has not yet added to totals.';

CREATE TABLE @.totals (queue text COLLATE "C" NOT NULL, what text NOT NULL, n @.amount NOT NULL, PRIMARY KEY (queue, what))
    WITH (fillfactor = 50, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE @.totals IS 'Counts by queue: of an event, or, as "=" and its code, of the jobs that have a status.';

CREATE VIEW @.counted AS
    SELECT queue, what, greatest(-P.LATEST, least(P.LATEST, sum(n)))::bigint AS n
    FROM (
        SELECT queue, what, n FROM @.totals
        UNION ALL
        SELECT queue, each.what, each.n FROM @.tally, LATERAL (VALUES ('=' || before, -tally.n), ('=' || after, tally.n), (event, tally.n)) AS each (what, n)
        WHERE each.what IS NOT NULL
    ) AS every
    GROUP BY queue, what;
COMMENT ON VIEW @.counted IS 'totals and tally together.';

CREATE TABLE @.meta (name text PRIMARY KEY, value bigint NOT NULL)
    WITH (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE @.meta IS 'The version of this schema, its random number, the time of the last heartbeat, and when to check the marks.';
INSERT INTO @.meta (name, value) VALUES ('store', ('x' || substr(replace(gen_random_uuid()::text, '-', ''), 17))::bit(64)::bigint);
