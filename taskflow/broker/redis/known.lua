-- Whether ids are known, ended or not, after a call that was refused for want of memory: what was sent ahead of it, and belongs to no job,
-- is taken away, or it would be in the way of all that comes until it fades. Arguments: ids. The reply: how many of them are known.

prefetch(given[1])
local known, strays = 0, {}
for _, id in ipairs(given[1]) do
  local job = load(id)
  known = known + (job and 1 or 0)
  if not (job and size_apart(job[F.payload])) then
    strays[#strays + 1] = id
  end
end
drop_bodies(strays)
return known
