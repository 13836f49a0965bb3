-- Adds calls of any kind, in order, as one step. Refused by the server when it is out of memory: see the flags in scripts.py.
--
-- arguments  texts, items (see adding.lua), ids of those whose payload is kept apart
-- reply      nil when all were added, else an answer for each item (see adding.lua); or "LACKING", and none is added: a payload that was
--            sent ahead is not there

if is_lacking(given[3]) then
  return redis.status_reply('LACKING')
end
local answers = add_all(given[1], given[2])
-- Of one that was not added nobody wants it; of one that is known, and has ended, neither.
local kept, strays = {}, {}
for _, id in ipairs(given[3]) do
  local job = load(id)
  local group = job and size_apart(job[F.payload]) and kept or strays
  group[#group + 1] = id
end
keep_bodies(kept)
flush()
drop_bodies(strays)
return answers
