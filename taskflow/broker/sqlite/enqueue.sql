-- Adds jobs.

-- name: add_jobs
-- Parameters: rows of the columns of `row.SENT`. Result: none; a known id adds nothing.
INSERT INTO "~jobs" (@sent) VALUES (@sent_places) ...
ON CONFLICT (id) DO NOTHING;

-- name: add_tags
-- Parameters: rows of tag and a job's id. Result: none.
WITH tagged (tag, id) AS (VALUES (?, ?) ...)
INSERT INTO "~tags" (tag, id, seq)
SELECT tag, j.id, seq FROM tagged CROSS JOIN "~jobs" AS j WHERE j.id = tagged.id
ON CONFLICT DO NOTHING;

-- name: last_seq
-- Parameters: none. Result: the seq of the newest job, 0 if there is none; how often job names were dropped.
SELECT coalesce(max(seq), 0), (SELECT value FROM "~meta" WHERE name = 'names') FROM "~jobs";

-- name: ids_after
-- Parameters: seq. Result: the ids of later jobs.
SELECT id FROM "~jobs" WHERE seq > ?;

-- name: live_count
-- Parameters: none. Result: the number of jobs that have not ended.
SELECT coalesce(sum(held + scheduled + ready + running), 0) FROM "~queues";
