-- Adds calls of any kind, in order, as one step. Refused by the server when it is out of memory: see the flags in scripts.py.
--
-- arguments  texts, items (see adding.lua)
-- reply      nil when all were added, else an answer for each item (see adding.lua)

local answers = add_all(given[1], given[2])
flush()
return answers
