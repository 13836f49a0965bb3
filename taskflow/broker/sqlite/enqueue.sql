-- Take in jobs.

-- name: add_jobs
-- Parameters: rows of the columns of `row.SENT`. Reply: none; a known id adds nothing.
INSERT INTO "~jobs" (@sent) VALUES (@sent_places) ...
ON CONFLICT (id) DO NOTHING;

-- name: last_seq
-- Parameters: none. Reply: the seq of the job that came last, 0 without one; how often job names were dropped.
SELECT coalesce(max(seq), 0), (SELECT value FROM "~meta" WHERE name = 'names') FROM "~jobs";

-- name: ids_after
-- Parameters: seq. Reply: the ids of the jobs that came after it.
SELECT id FROM "~jobs" WHERE seq > ?;

-- name: live_count
-- Parameters: none. Reply: how many jobs have not ended.
SELECT coalesce(sum(held + scheduled + ready + running), 0) FROM "~queues";
