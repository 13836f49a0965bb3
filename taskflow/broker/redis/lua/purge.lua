-- Drops those of the jobs that a filter admits (choose.lua), up to a limit. Arguments: ids, filter, limit. The reply: how many.

local purged = 0
for _, id in ipairs(chosen(given[1], given[2])) do
  local job = load(id)
  if purged < given[3] and is_kept(job) and job[F.status] ~= S.RUNNING then
    if is_waiting(job) then
      finish(id, job, E.CANCEL, S.CANCELLED, W.PURGED)
    end
    flush()
    bury(id, job)
    flush()
    purged = purged + 1
  end
end
return purged
