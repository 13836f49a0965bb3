-- The numbers of queues and job names.

-- name: queue_number
-- Parameters: name. Reply: its number, none when the queue is unknown.
SELECT number FROM "~queues" WHERE name = ?;

-- name: queue_name
-- Parameters: number. Reply: its name.
SELECT name FROM "~queues" WHERE number = ?;

-- name: add_queue
-- Parameters: name. Reply: its number.
INSERT INTO "~queues" (name) VALUES (?) RETURNING number;

-- name: job_name_number
-- Parameters: name. Reply: its number, none when it is unknown.
SELECT number FROM "~job_names" WHERE name = ?;

-- name: job_name
-- Parameters: number. Reply: the name.
SELECT name FROM "~job_names" WHERE number = ?;

-- name: add_job_name
-- Parameters: name. Reply: its number.
INSERT INTO "~job_names" (name) VALUES (?) RETURNING number;
