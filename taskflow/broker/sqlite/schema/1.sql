-- 1: The tables.
--
-- They are derived from the declaration of records in `engine/records.py`: see tables.py. "~x" stands for the namespace's table x.

@TABLES
