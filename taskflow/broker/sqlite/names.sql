-- The numbers of queues and job names.

-- name: queue_number
-- Parameters: name. Result: its number; no row if the queue is unknown.
SELECT number FROM "~queues" WHERE name = ?;

-- name: queue_name
-- Parameters: number. Result: its name.
SELECT name FROM "~queues" WHERE number = ?;

-- name: add_queue
-- Parameters: name. Result: its number.
INSERT INTO "~queues" (name) VALUES (?) RETURNING number;

-- name: job_name_number
-- Parameters: name. Result: its number; no row if it is unknown.
SELECT number FROM "~job_names" WHERE name = ?;

-- name: job_name
-- Parameters: number. Result: the name.
SELECT name FROM "~job_names" WHERE number = ?;

-- name: add_job_name
-- Parameters: name. Result: its number.
INSERT INTO "~job_names" (name) VALUES (?) RETURNING number;
