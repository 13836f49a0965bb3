-- Jobs as they stand. Arguments: ids; those of them whose end is waited for; until when (microseconds from now) for these. The reply:
-- {time and texts as msgpack; id, job, id, job, ...} of those that are kept.

local reply, numbers = { '' }, {}
prefetch(given[1])
for _, id in ipairs(given[1]) do
  local job = load(id)
  if job and is_kept(job) then
    reply[#reply + 1] = id
    reply[#reply + 1] = cmsgpack.pack(job)
    numbers[job[F.queue]], numbers[job[F.name]] = true, true
  end
end
for _, id in ipairs(given[2]) do
  local job = load(id)
  if job and job[F.status] <= S.RUNNING then
    call('ZADD', P .. 'awaited', wall + given[3], id)
  end
end
reply[1] = cmsgpack.pack({ wall, texts_of(numbers) })
return reply
