-- Which of these jobs a filter admits. Arguments: ids, filter: {queue, job, statuses, ended before (microseconds ago), poison,
-- whether running ones are passed over}; absent fields are false. Shared by browse and purge.

local function number_in(filter)
  local queue = filter[1] and tonumber(call('HGET', P .. 'names', 'q:' .. filter[1]) or -1)
  local name = filter[2] and tonumber(call('HGET', P .. 'names', 'j:' .. filter[2]) or -1)
  return queue, name
end

local function chosen(ids, filter)
  local queue, name = number_in(filter)
  local statuses
  if filter[3] then
    statuses = {}
    for _, code in ipairs(filter[3]) do
      statuses[code] = true
    end
  end
  local found = {}
  prefetch(ids)
  for _, id in ipairs(ids) do
    local job = load(id)
    if job
      and is_kept(job)
      and (not queue or job[F.queue] == queue)
      and (not name or job[F.name] == name)
      and (not statuses or statuses[job[F.status]])
      and (not filter[4] or (has_ended(job) and job[F.ended] <= wall - filter[4]))
      and (not filter[5] or (job[F.poison] and job[F.status] == S.FAILED))
      and not (filter[6] and job[F.status] == S.RUNNING)
    then
      found[#found + 1] = id
    end
  end
  return found
end
