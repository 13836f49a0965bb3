-- 5: Autovacuum cleans the jobs in steps so short that a claim hardly waits for one.

-- In all as much in a second as by the server's own settings (200 in 2 ms): more of it at a time takes the processor, and the log's disk, from
-- claims and commits.
ALTER TABLE @.jobs SET (autovacuum_vacuum_cost_limit = 100, autovacuum_vacuum_cost_delay = 1);
