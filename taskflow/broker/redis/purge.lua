-- Drops those of the jobs that a filter admits (choose.lua), in order of arrival, up to a limit. Arguments: ids, filter, limit.
-- The reply: how many.

prefetch(given[1])
set_all_aside()
flush()
local ids = chosen(given[1], given[2])
table.sort(ids, function(one, other)
  return load(one)[F.seq] < load(other)[F.seq]
end)
local purged = {}
for _, id in ipairs(ids) do
  local job = load(id)
  if #purged < given[3] and job[F.status] ~= S.RUNNING then
    if is_waiting(job) then
      finish(id, job, E.CANCEL, S.CANCELLED, W.PURGED)
    end
    purged[#purged + 1] = id
  end
end
flush()
for _, id in ipairs(purged) do
  bury(id, load(id))
end
flush()
return #purged
