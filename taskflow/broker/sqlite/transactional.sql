-- Acts in a transaction of the caller.

-- name: take_write_lock
-- Parameters: none. Result: none. Changes nothing.
UPDATE "~meta" SET value = value WHERE FALSE;

-- name: has_table
-- Parameters: name. Result: 1 if the transaction sees this table in the connection's own file, otherwise 0.
SELECT count(*) FROM main.sqlite_master WHERE type = 'table' AND name = ?;

-- name: is_committed
-- Parameters: id, fence or NULL. Result: 1 if the job is there and, unless the fence is NULL, was last settled with it; otherwise 0.
SELECT count(*) FROM "~jobs" WHERE id = ? AND settled IS coalesce(?, settled);
