-- 7: Jobs that somebody else has written so that no verb can work with them are found, and mended.

-- `spoilt` names the columns that could not be read, with what stood there: a line each, with a tab between.
ALTER TABLE @.jobs ADD COLUMN spoilt text;
CREATE INDEX jobs_unsound ON @.jobs (seq) WHERE P.UNSOUND;
ALTER TABLE @.marks ALTER COLUMN rank TYPE integer; -- a stored priority may be any smallint, and its rank is the negative of it
