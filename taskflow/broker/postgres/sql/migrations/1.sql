-- 1: The tables.

-- The tables. "@." stands for the schema, S.READY and the like for a status's code: both are written in before the server sees it.
-- Times are microseconds since 1970. Ids, sessions and keys are 16 bytes.

CREATE TABLE @.meta (
    name text PRIMARY KEY,
    value bigint NOT NULL
);

CREATE SEQUENCE @.arrivals;

CREATE TABLE @.sessions (
    id bytea PRIMARY KEY,
    number bigint GENERATED ALWAYS AS IDENTITY,
    name text NOT NULL,
    ttl bigint NOT NULL,
    about bytea NOT NULL,
    registered_at bigint NOT NULL,
    beat_at bigint NOT NULL,
    request bigint NOT NULL DEFAULT 0,
    is_spared boolean NOT NULL DEFAULT false,
    dead_at bigint
) WITH (fillfactor = 50);

CREATE TABLE @.jobs (
    id bytea NOT NULL,
    seq bigint NOT NULL DEFAULT nextval('@.arrivals'),
    created_at bigint NOT NULL,
    due_at bigint NOT NULL,
    epoch integer NOT NULL DEFAULT 0,
    status smallint NOT NULL,
    priority smallint NOT NULL,
    queue text COLLATE "C" NOT NULL,
    job text COLLATE "C" NOT NULL,
    payload bytea,
    extras bytea,
    expires_at bigint,
    key bytea,
    awaits integer,
    joins bytea,
    behind bytea,
    session bytea,
    request bigint,
    number integer,
    claimed_at bigint,
    claimed_steady bigint,
    worker bytea,
    started_at bigint,
    settled bytea,
    failures integer NOT NULL DEFAULT 0,
    crashes integer NOT NULL DEFAULT 0,
    snoozes integer NOT NULL DEFAULT 0,
    hand_backs integer NOT NULL DEFAULT 0,
    parked_at bigint,
    errors bytea,
    progress bytea,
    cancel_requested text,
    result bytea,
    reason bytea,
    waiting_for bytea,
    is_poison boolean,
    ended_at bigint,
    fade_at bigint,
    CONSTRAINT a_run_is_leased CHECK ((status = S.RUNNING) = (session IS NOT NULL)),
    CONSTRAINT an_end_has_its_time CHECK ((status >= S.SUCCEEDED) = (ended_at IS NOT NULL)),
    CONSTRAINT the_held_await CHECK (status <> S.HELD OR awaits > 0)
);

CREATE UNIQUE INDEX jobs_by_id ON @.jobs (id);
CREATE INDEX jobs_ready ON @.jobs (queue, priority DESC, due_at, seq) WHERE status = S.READY;
CREATE INDEX jobs_due ON @.jobs (due_at, seq, id) WHERE status = S.SCHEDULED;
CREATE UNIQUE INDEX jobs_leased ON @.jobs (session, request, number) WHERE status = S.RUNNING;
CREATE INDEX jobs_expiring ON @.jobs (expires_at, id) WHERE expires_at IS NOT NULL AND status < S.RUNNING;
CREATE UNIQUE INDEX jobs_waiting_with_key ON @.jobs (key) WHERE key IS NOT NULL AND status < S.RUNNING;
CREATE UNIQUE INDEX jobs_running_with_key ON @.jobs (key) WHERE key IS NOT NULL AND status = S.RUNNING;
CREATE INDEX jobs_fading ON @.jobs (fade_at, id) WHERE fade_at IS NOT NULL;
CREATE INDEX jobs_kept ON @.jobs (queue, (status = S.FAILED), ended_at, seq) WHERE status BETWEEN S.SUCCEEDED AND S.CANCELLED;

CREATE TABLE @.paused (queue text COLLATE "C" PRIMARY KEY);

-- Counts: what verbs add, row by row, so that none waits for another; upkeep sums them up in totals. `what` is an event, or "=" and a status.
CREATE TABLE @.tally (queue text COLLATE "C" NOT NULL, what text NOT NULL, n bigint NOT NULL);
CREATE TABLE @.totals (queue text COLLATE "C" NOT NULL, what text NOT NULL, n bigint NOT NULL, PRIMARY KEY (queue, what)) WITH (fillfactor = 50);

CREATE VIEW @.counted AS
    SELECT queue, what, sum(n)::bigint AS n
    FROM (SELECT queue, what, n FROM @.totals UNION ALL SELECT queue, what, n FROM @.tally) AS every
    GROUP BY queue, what;

-- Jobs whose end somebody waits for.
CREATE TABLE @.awaited (id bytea PRIMARY KEY, until_when bigint NOT NULL);
