-- 3: Less to write for each job that ends; claims of any queue go on where the session's last one ended.

-- What is kept of all queues in the order of its end, without the queue: an upkeep that drops what is too much of one passes over the others',
-- once, by its mark (kind "kept").
DROP INDEX @.jobs_kept;
CREATE INDEX jobs_ended ON @.jobs (ended_at, seq) WHERE status BETWEEN S.SUCCEEDED AND S.CANCELLED;

-- The queue of the last job that a request has claimed: the next one begins with the queue that follows.
ALTER TABLE @.requests ADD COLUMN ended_in text COLLATE "C";
