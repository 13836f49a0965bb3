-- What the file is, before its jobs are looked at.

-- name: tables
-- Parameters: none. Reply: the names of the tables of the file, SQLite's own left out.
SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!';

-- name: version
-- Parameters: none. Reply: the version of the namespace's tables.
SELECT value FROM "~meta" WHERE name = 'version';

-- name: add_meta
-- Parameters: name, value. Reply: none.
INSERT INTO "~meta" (name, value) VALUES (?, ?);
