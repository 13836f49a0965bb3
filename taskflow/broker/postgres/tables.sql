-- The tables.

-- "@." stands for the schema, S.READY and similar names for status codes, and P. and R. for limits. Values replace them before the server
-- sees the text. Times are microseconds since 1970. Ids of jobs and sessions, and keys, are 16 bytes.

-- --- records --------------------------------------------------------------------------------------------

@TABLES

COMMENT ON TABLE @.jobs IS 'A job: waiting, running, or ended and kept for a while.';
COMMENT ON TABLE @.keys IS 'The live jobs that have a key: the holder, and the one that waits behind it.';
COMMENT ON TABLE @.sessions IS 'A worker''s session: it holds leases, and is dead when it has sent no heartbeat for its ttl.';
COMMENT ON TABLE @.schedules IS 'Schedules, with their declarations.';
COMMENT ON TABLE @.queues IS 'Paused queues, whose jobs are not leased.';
COMMENT ON TABLE @.ends IS 'Jobs that ended without a settlement, for workers that want to know.';
COMMENT ON TABLE @.actions IS 'The audit log: operators'' actions on jobs, queues and schedules.';
COMMENT ON TABLE @.inbox IS 'Work that callers'' transactions leave for the time after their commit.';
COMMENT ON TABLE @.facts IS 'Facts about the whole store, such as an outage.';
COMMENT ON TABLE @.history IS 'The workers'' measurements by minute, ten minutes and hour.';
COMMENT ON TABLE @.notes IS 'The results of jobs in flows, for the jobs that await them.';
COMMENT ON TABLE @.flows IS 'Work that remains to be done on the jobs of flows.';
COMMENT ON TABLE @.tags IS 'The jobs that have a tag.';
COMMENT ON TABLE @.declared IS 'The schedules that a session declares.';

-- --- listeners ------------------------------------------------------------------------------------------

-- A listener is named after its channel. Its notes, which show what it waits for, are hints. After a crash of the server these tables are
-- empty, the connections are cut, and each listener writes its notes again.

-- `since`: when it began to wait, by the server's own clock. A listener renews its notes every minute, and old ones are ignored.
-- `is_nudged`: it was notified of jobs in one of the queues of this note, and has not claimed since.
CREATE UNLOGGED TABLE @.idle (
    listener text COLLATE "C" NOT NULL CHECK (octet_length(listener) BETWEEN 1 AND 63), -- the limit of NOTIFY
    note bigint NOT NULL DEFAULT 0,
    topic text COLLATE "C" NOT NULL CHECK (octet_length(topic) BETWEEN 1 AND 500),
    since bigint NOT NULL,
    is_nudged boolean NOT NULL DEFAULT false,
    PRIMARY KEY (listener, note, topic)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE @.idle IS 'Listeners that wait for jobs of a queue or of any queue, or for due jobs.';
CREATE INDEX idle_by_topic ON @.idle (topic, since);

CREATE UNLOGGED TABLE @.awaited (
    id bytea,
    listener text COLLATE "C" CHECK (octet_length(listener) BETWEEN 1 AND 63),
    until_when bigint NOT NULL,
    PRIMARY KEY (id, listener)
) WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE @.awaited IS 'Jobs whose end a listener waits for.';

-- One row for each request, because all versions of a row that changes often would have to be read. A session's newest row counts.
CREATE TABLE @.requests (
    session bytea NOT NULL,
    request bigint NOT NULL,
    ended_in text COLLATE "C", -- the queue of the last job that it leased: the next request begins with the following queue
    leases_from bytea NOT NULL DEFAULT '', -- none of the session's leases has a lower claim: see raise_first_lease
    PRIMARY KEY (session, request)
) WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE @.requests IS 'The requests by which sessions have claimed jobs.';

-- --- marks and counts --------------------------------------------------------------------------------

-- How far an ordered index has been read: in a place of this kind, there was no live row before (at, seq) for a transaction that saw all
-- transactions before `upto` except those in `open`. For each place, the row counts whose transaction saw most: the one with the highest
-- `upto`, and among these the one with the fewest in `open`. Other rows are never read, and are dropped now and then. Rows are added and
-- never changed, because all versions of a row that changes often would have to be read while a long transaction keeps them.
--
-- kind     place              order                 written by
-- ready    queue, -priority   jobs_ready            every function that makes a job ready, and claims
-- due                         jobs_due              upkeep
-- fade                        jobs_fading           upkeep, and functions that drop the kept data of a job
-- kept     queue, 1: failed   jobs_failed, or both others  upkeep
-- tally                       id of tally           upkeep
CREATE TABLE @.marks (
    kind text COLLATE "C" NOT NULL,
    queue text COLLATE "C" NOT NULL DEFAULT '',
    rank smallint NOT NULL DEFAULT 0,
    upto xid8 NOT NULL DEFAULT '0',
    open xid8[] NOT NULL DEFAULT '{}',
    n_open integer NOT NULL DEFAULT 0,
    at bigint NOT NULL,
    seq bigint NOT NULL DEFAULT 0,
    set_at bigint NOT NULL
) WITH (autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE @.marks IS 'Low-water marks: where to begin reading an index of jobs.';
CREATE INDEX marks_newest ON @.marks (kind, queue, rank, upto DESC, n_open, set_at DESC);

CREATE TABLE @.lowered (
    kind text COLLATE "C" NOT NULL,
    queue text COLLATE "C" NOT NULL,
    rank smallint NOT NULL,
    xid xid8 NOT NULL,
    at bigint NOT NULL
) WITH (autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE @.lowered IS 'Times in the past that a transaction has given to jobs. They lower marks that others raise meanwhile.';
CREATE INDEX lowered_by_place ON @.lowered (kind, queue, rank, xid);

CREATE TYPE @.mark AS (
    kind text, queue text, rank smallint, upto xid8, open xid8[], at bigint, seq bigint, set_at bigint, is_lowered boolean
);

-- Each row counts a change that a function has made in a queue, so that no function waits for another: with an event, `n` jobs moved from
-- one status to another. `late_at`: a job became ready or scheduled in a transaction that may last long; see low_water_marks.sql.
CREATE TABLE @.tally (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue text COLLATE "C" NOT NULL,
    event text CONSTRAINT an_event_is_short CHECK (octet_length(event) <= 100),
    before smallint,
    after smallint,
    n bigint NOT NULL CHECK (n BETWEEN -P.LATEST AND P.LATEST),
    late_priority smallint,
    late_at bigint
) WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE @.tally IS 'Counts that upkeep has not yet added to totals.';

CREATE TABLE @.totals (queue text COLLATE "C" NOT NULL, what text NOT NULL, n bigint NOT NULL CHECK (n BETWEEN -P.LATEST AND P.LATEST), PRIMARY KEY (queue, what))
    WITH (fillfactor = 50, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE @.totals IS 'Counts by queue: of each event, and of the jobs in each status (as "=" and its code).';

CREATE VIEW @.counted AS
    SELECT queue, what, greatest(-P.LATEST, least(P.LATEST, sum(n)))::bigint AS n
    FROM (
        SELECT queue, what, n FROM @.totals
        UNION ALL
        SELECT queue, each.what, each.n
        FROM (SELECT queue, before, after, event, sum(n) AS n FROM @.tally GROUP BY queue, before, after, event) AS tally, -- first: fewer rows
            LATERAL (VALUES ('=' || before, -tally.n), ('=' || after, tally.n), (event, tally.n)) AS each (what, n)
        WHERE each.what IS NOT NULL
    ) AS every
    GROUP BY queue, what;
COMMENT ON VIEW @.counted IS 'totals and tally together.';

CREATE TABLE @.meta (name text PRIMARY KEY, value bigint NOT NULL)
    WITH (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE @.meta IS 'The version of this schema, its random number, when to check the marks, and rows to lock.';
INSERT INTO @.meta (name, value) VALUES ('store', ('x' || substr(replace(gen_random_uuid()::text, '-', ''), 17))::bit(64)::bigint);
INSERT INTO @.meta (name, value) VALUES ('check_marks_at', 0);
INSERT INTO @.meta (name, value) SELECT 'keys ' || n, 0 FROM generate_series(0, 63) AS n; -- see lock_records()
