-- What the file is, before its jobs are looked at.

-- name: tables
-- Parameters: none. Reply: the names of the tables of the file, SQLite's own left out.
SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!';

-- name: version
-- Parameters: none. Reply: the version of the namespace's tables.
SELECT value FROM "~meta" WHERE name = 'version';

-- name: set_version
-- Parameters: the version, written into the text. Reply: none.
INSERT INTO "~meta" (name, value) VALUES ('version', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value;

-- name: guard_version
-- Parameters: the version, written into the text. Reply: none. Fails if the tables have another one: `value` must not be NULL.
UPDATE "~meta" SET value = NULL WHERE name = 'version' AND value IS NOT ?;
