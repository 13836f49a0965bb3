-- Finds out what a file is, before its jobs are read.

-- name: tables
-- Parameters: none. Result: the names of the tables of the file, without SQLite's own.
SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!';

-- name: version
-- Parameters: none. Result: the version of the namespace's tables.
SELECT value FROM "~meta" WHERE name = 'version';

-- name: set_version
-- Parameters: the version, written into the text. Result: none.
INSERT INTO "~meta" (name, value) VALUES ('version', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value;

-- name: guard_version
-- Parameters: the version, written into the text. Result: none. Fails if the tables have another one: `value` must not be NULL.
UPDATE "~meta" SET value = NULL WHERE name = 'version' AND value IS NOT ?;
