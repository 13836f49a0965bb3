-- 2: What verbs read does not grow while somebody's long transaction keeps dead rows from being cleaned away.

-- How far an ordered index has been read: of such a kind in such a place nothing that is alive stands before (at, seq), as far as is
-- known. The newest row of a place counts; older ones are never read, and are dropped now and then. Rows are added, never changed: of one
-- that is changed often all versions would have to be walked.
--
--   kind     place              order                 written by
--   ready    queue, -priority   jobs_ready            every verb that makes a job ready, and claims
--   due                         jobs_due              upkeep
--   expiry                      jobs_expiring         upkeep, and whoever puts an expired job back
--   fade                        jobs_fading           upkeep, and whoever drops what is kept of a job
--   kept     queue, 1: failed   jobs_kept             upkeep
--   tally                       id of tally           upkeep
CREATE SEQUENCE @.marks_n;
CREATE TABLE @.marks (
    kind text COLLATE "C" NOT NULL,
    queue text COLLATE "C" NOT NULL DEFAULT '',
    rank smallint NOT NULL DEFAULT 0,
    n bigint NOT NULL DEFAULT nextval('@.marks_n'),
    at bigint NOT NULL,
    seq bigint NOT NULL DEFAULT 0,
    set_at bigint NOT NULL
);
CREATE UNIQUE INDEX marks_newest ON @.marks (kind, queue, rank, n DESC);
INSERT INTO @.marks (kind, queue, rank, at, set_at)
    SELECT DISTINCT 'ready', queue, -priority, 0, 0 FROM @.jobs WHERE status = S.READY;

-- The requests by which a session has claimed: the newest counts. A row each, for the same reason.
CREATE TABLE @.requests (session bytea NOT NULL, request bigint NOT NULL, PRIMARY KEY (session, request));
INSERT INTO @.requests (session, request) SELECT id, request FROM @.sessions WHERE request > 0;

-- A session's leases are of the requests from `floor` on, and of some `older` ones. `is_released`: it is dead and has none.
ALTER TABLE @.sessions
    DROP COLUMN request,
    ADD COLUMN floor bigint NOT NULL DEFAULT 0,
    ADD COLUMN older bigint[] NOT NULL DEFAULT '{}',
    ADD COLUMN is_released boolean NOT NULL DEFAULT false;

-- Counts: a row for what a verb has done in a queue: so many jobs went through an event from one status to another. `late` is that of a job
-- that became ready in a transaction which may go on for long: see marks.sql.
DROP VIEW @.counted;
INSERT INTO @.totals (queue, what, n) SELECT queue, what, sum(n) FROM @.tally GROUP BY queue, what
    ON CONFLICT (queue, what) DO UPDATE SET n = totals.n + excluded.n;
DROP TABLE @.tally;
CREATE TABLE @.tally (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue text COLLATE "C" NOT NULL,
    event text,
    before smallint,
    after smallint,
    n bigint NOT NULL,
    late_priority smallint,
    late_at bigint
);
CREATE VIEW @.counted AS
    SELECT queue, what, sum(n)::bigint AS n
    FROM (
        SELECT queue, what, n FROM @.totals
        UNION ALL
        SELECT queue, each.what, each.n FROM @.tally, LATERAL (VALUES ('=' || before, -tally.n), ('=' || after, tally.n), (event, tally.n)) AS each (what, n)
        WHERE each.what IS NOT NULL
    ) AS every
    GROUP BY queue, what;

-- Cleaned by what has died in them, not by how much lies in them; the small ones, whose every row dies soon, at once.
ALTER TABLE @.jobs SET (
    autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_vacuum_insert_scale_factor = 0.1, autovacuum_analyze_threshold = 10000, autovacuum_analyze_scale_factor = 0.1,
    autovacuum_vacuum_cost_limit = 1000, toast.autovacuum_vacuum_threshold = 10000, toast.autovacuum_vacuum_scale_factor = 0.02
);
ALTER TABLE @.marks SET (autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0);
ALTER TABLE @.requests SET (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
ALTER TABLE @.tally SET (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
ALTER TABLE @.totals SET (autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0);
ALTER TABLE @.sessions SET (autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0);
ALTER TABLE @.awaited SET (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
ALTER TABLE @.meta SET (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0);
