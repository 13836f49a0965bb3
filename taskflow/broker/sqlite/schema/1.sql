-- 1: The tables.
--
-- The tables of one namespace. In every statement of this folder "~x" stands for the namespace's table x.
--
-- Times are microseconds since 1970 by the wall clock; `..._steady` and `beat_at` are microseconds of the boot clock.
-- A status is a code of `record.CODES`. NULL means dropped: only the id and the last fence stay, until `fade_at`.

CREATE TABLE "~meta" (
  name TEXT NOT NULL PRIMARY KEY, -- version, pulse, names, ends_dropped
  value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO "~meta" (name, value) VALUES ('pulse', 0), ('names', 0), ('ends_dropped', 0);

-- Queues and their counts. `is_used` means that it has ever had a job.
CREATE TABLE "~queues" (
  number INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  is_paused INTEGER NOT NULL DEFAULT 0,
  is_used INTEGER NOT NULL DEFAULT 0,
  held INTEGER NOT NULL DEFAULT 0 CHECK (held >= 0),
  scheduled INTEGER NOT NULL DEFAULT 0 CHECK (scheduled >= 0),
  ready INTEGER NOT NULL DEFAULT 0 CHECK (ready >= 0),
  running INTEGER NOT NULL DEFAULT 0 CHECK (running >= 0),
  succeeded INTEGER NOT NULL DEFAULT 0 CHECK (succeeded >= 0),
  failed INTEGER NOT NULL DEFAULT 0 CHECK (failed >= 0),
  cancelled INTEGER NOT NULL DEFAULT 0 CHECK (cancelled >= 0)
);

-- A claim of every queue reads only queues with ready jobs, so that a thousand empty ones cost nothing.
CREATE INDEX "~queues_ready" ON "~queues" (name) WHERE ready > 0 AND is_paused = 0;

-- A name that no job has any more is dropped. Its number is given to no other name, so that a cached number is never wrong. But before a
-- cached number is used for a new job, `names` in the meta table must be unchanged: it counts how often names were dropped.
CREATE TABLE "~job_names" (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE
);

CREATE TABLE "~totals" (
  queue INTEGER NOT NULL,
  event TEXT NOT NULL,
  number INTEGER NOT NULL,
  PRIMARY KEY (queue, event)
) WITHOUT ROWID;

-- `about` contains what is only shown: queues and concurrency, packed.
CREATE TABLE "~sessions" (
  number INTEGER PRIMARY KEY,
  id BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
  name TEXT NOT NULL,
  ttl REAL NOT NULL,
  about BLOB NOT NULL,
  registered_at INTEGER NOT NULL,
  boot_id TEXT NOT NULL,
  beat_at INTEGER NOT NULL,
  is_spared INTEGER NOT NULL DEFAULT 0,
  dead_at INTEGER,
  request INTEGER NOT NULL DEFAULT 0,
  wants_ends INTEGER NOT NULL DEFAULT 0 -- its upkeep asks for ends without a settlement
);

-- `seq` only orders jobs, and is never used outside a transaction, so it does no harm that SQLite reuses the number of a dropped last
-- row.
-- `claim` is (session, request, number) as 28 bytes that sort like it; `settled` is the claim and the epoch of the last settlement.
-- The large columns come last, because SQLite reads a row up to the last column that it needs.
-- `spoilt` lists the columns with unsound values and their former content, as packed by `row.pack_spoilt`.
-- `cause` is that of a failed job, as packed by `cause.pack_cause`.
-- `joins` are concatenated ids, `errors` as in `verdict.append_error`, `extras` as in `envelope.pack_extras`.
CREATE TABLE "~jobs" (
  seq INTEGER PRIMARY KEY,
  id BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
  status INTEGER,
  queue INTEGER NOT NULL,
  name INTEGER NOT NULL,
  priority INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  due_at INTEGER NOT NULL,
  expires_at INTEGER,
  key BLOB,
  extras BLOB,
  awaits INTEGER NOT NULL DEFAULT 0,
  joins BLOB,
  behind BLOB,
  epoch INTEGER NOT NULL DEFAULT 0,
  failures INTEGER NOT NULL DEFAULT 0,
  crashes INTEGER NOT NULL DEFAULT 0,
  snoozes INTEGER NOT NULL DEFAULT 0,
  hand_backs INTEGER NOT NULL DEFAULT 0,
  claim BLOB,
  claimed_at INTEGER,
  claimed_steady INTEGER NOT NULL DEFAULT 0,
  started_at INTEGER,
  worker TEXT,
  progress BLOB,
  settled BLOB,
  parked_at INTEGER,
  cancel_requested TEXT,
  reason TEXT,
  waiting_for TEXT,
  is_poison INTEGER NOT NULL DEFAULT 0,
  ended_at INTEGER,
  fade_at INTEGER,
  spoilt BLOB,
  cause BLOB,
  errors BLOB,
  result BLOB,
  payload BLOB,
  -- Violations that a bug in the protocol would cause; each becomes an error.
  CHECK ((status IS 3) = (claim IS NOT NULL)),
  CHECK ((status IS NULL OR status >= 4) = (ended_at IS NOT NULL)),
  CHECK (status IS NOT 0 OR awaits > 0)
);

-- The index of tags. Jobs without tags have no entry. A job's tags themselves are among its extras.
CREATE TABLE "~tags" (
  tag TEXT NOT NULL,
  id BLOB NOT NULL,
  seq INTEGER NOT NULL,
  PRIMARY KEY (tag, id)
) WITHOUT ROWID;
CREATE INDEX "~tags_seq" ON "~tags" (seq);

-- Values that were too long for their row, moved here when it was repaired, because every change of a row writes all of it.
CREATE TABLE "~oversized" (
  seq INTEGER NOT NULL,
  name TEXT NOT NULL,
  value,
  PRIMARY KEY (seq, name)
);

-- Each index is partial: a job is in the indexes of its status and in no other. SQLite adds seq as the last column.
CREATE INDEX "~jobs_held" ON "~jobs" (status) WHERE status = 0;
CREATE INDEX "~jobs_ready" ON "~jobs" (queue, priority DESC, due_at) WHERE status = 2;
CREATE INDEX "~jobs_due" ON "~jobs" (due_at, queue) WHERE status = 1;
CREATE INDEX "~jobs_expiring" ON "~jobs" (expires_at) WHERE expires_at IS NOT NULL AND status < 3;
CREATE UNIQUE INDEX "~jobs_leased" ON "~jobs" (claim) WHERE claim IS NOT NULL;
CREATE INDEX "~jobs_key" ON "~jobs" (key) WHERE key IS NOT NULL AND status < 4;
CREATE INDEX "~jobs_fading" ON "~jobs" (fade_at) WHERE status >= 4;
CREATE INDEX "~jobs_dropped" ON "~jobs" (fade_at) WHERE status IS NULL;
CREATE INDEX "~jobs_failed" ON "~jobs" (queue, ended_at) WHERE status = 5;
CREATE INDEX "~jobs_causes" ON "~jobs" (cause, name, ended_at, queue) WHERE status = 5;
CREATE INDEX "~jobs_done" ON "~jobs" (queue, ended_at) WHERE status IN (4, 6);

-- Jobs that have ended without a settlement, for workers that hear of them. New numbers are higher than all others.
CREATE TABLE "~ends" (
  number INTEGER PRIMARY KEY,
  id BLOB NOT NULL
) STRICT;

-- Schedules. STRICT: SQLite enforces the types of columns. `look_at` is when upkeep offers a schedule, or removes one that sleeps.
CREATE TABLE "~schedules" (
  number INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  digest BLOB NOT NULL,
  body BLOB NOT NULL,
  is_declared INTEGER NOT NULL,
  look_at INTEGER,
  is_paused INTEGER NOT NULL,
  next_at INTEGER,
  last_at INTEGER,
  fired_at INTEGER,
  last_id BLOB,
  fired INTEGER NOT NULL,
  skipped INTEGER NOT NULL,
  missed INTEGER NOT NULL,
  asleep_since INTEGER,
  since INTEGER
) STRICT;
CREATE INDEX "~schedules_look" ON "~schedules" (look_at) WHERE look_at IS NOT NULL;

-- The definitions that living sessions declare. `since` is when a session's age began.
CREATE TABLE "~declarations" (
  name TEXT NOT NULL,
  session BLOB NOT NULL,
  since INTEGER NOT NULL,
  digest BLOB NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (name, session)
) STRICT, WITHOUT ROWID;
CREATE INDEX "~declarations_session" ON "~declarations" (session);

-- The audit log: what operators did.
CREATE TABLE "~acts" (
  number INTEGER PRIMARY KEY,
  id BLOB NOT NULL UNIQUE,
  at INTEGER NOT NULL,
  body BLOB NOT NULL
) STRICT;
