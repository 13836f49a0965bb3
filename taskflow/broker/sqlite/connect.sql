-- Finds out what a file is, before its jobs are read.

-- name: tables
-- Parameters: none. Result: the names of the tables of the file, without SQLite's own.
SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!';

-- name: intruders
-- Parameters: the names of the namespace's tables as a JSON array. Result: type, name and SQL of the triggers on them, and of the views that
-- have such a name.
SELECT type, name, sql FROM main.sqlite_master
WHERE type IN ('trigger', 'view') AND lower(tbl_name) IN (SELECT value FROM json_each(?));

-- name: version
-- Parameters: none. Result: the version of the namespace's tables; whether the file has any trigger or view.
SELECT value, EXISTS (SELECT 1 FROM main.sqlite_master WHERE type IN ('trigger', 'view')) FROM "~meta" WHERE name = 'version';

-- name: set_version
-- Parameters: the version, written into the text. Result: none.
INSERT INTO "~meta" (name, value) VALUES ('version', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value;

-- name: guard_version
-- Parameters: the version, written into the text. Result: none. Fails if the tables have another one: `value` must not be NULL.
UPDATE "~meta" SET value = NULL WHERE name = 'version' AND value IS NOT ?;
